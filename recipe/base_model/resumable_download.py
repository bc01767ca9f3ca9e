"""Downloads the files of a model: several at a time, resumed, and compared with the hub's checksums.

The hubs' clients do not resume reliably. modelscope 1.9.5 takes the length of the rest for the length of the file, so
an interrupted file never completes, and it loses every unfinished file when stopped. huggingface_hub 0.21.4 keeps
multiples of 10 MB, and appends the whole file where a server ignores ranges.
"""

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from recipe.base_model import hub_addresses, hub_clients
from recipe.base_model.hub_addresses import MIRRORS, NAMES, Files
from recipe.base_model.hub_errors import as_recipe_errors, is_temporary, status
from recipe.core.errors import HostLacks
from recipe.core.settings import Model

SILENCE = 30  # seconds without a byte, after which a transfer is restarted
TRIES = 5  # in a row without a new byte
PARALLEL = 4  # files at a time, like modelscope
BLOCK = 1 << 16  # bytes; an interrupted transfer loses its last block


def partial_file(place: Path, name: str) -> Path:
    """Where the bytes of an incomplete file are kept."""
    return place / ".recipe" / (name.replace("/", "__") + ".part")


def _size(path: Path) -> int:
    """Bytes of a file; 0 if there is none (another thread may have renamed it)."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def downloaded_bytes(place: Path, name: str) -> int:
    return _size(partial_file(place, name)) or _size(place / name)


def download(
    model: Model, files: Files, names: List[str], place: Path, on_file: Callable[[str], None], show: Callable[[], None]
) -> None:
    """Download `names` of `files` into `place`. Calls `on_file` for each file that is complete and checked (its entry
    then has its sha256), and `show` twice a second.

    What has arrived is kept and resumed next time, also after an error. Raises HostLacks, InputWrong.
    """
    if not names:
        return
    if model.source == "modelscope":
        with contextlib.suppress(Exception):  # sets where the client looks for cookies
            hub_clients.modelscope_api()
    stop = threading.Event()
    from multiprocessing import TimeoutError as NotYet
    from multiprocessing.pool import ThreadPool  # slow to import, and rarely needed

    with as_recipe_errors(model), ThreadPool(PARALLEL) as pool:
        jobs = pool.imap_unordered(lambda name: _download_file(model, name, files[name], place, stop), names)
        try:
            while True:
                with contextlib.suppress(NotYet):
                    on_file(jobs.next(timeout=0.5))
                show()
        except StopIteration:
            pass
        finally:
            stop.set()


def _download_file(model: Model, name: str, file: Dict[str, Any], place: Path, stop: threading.Event) -> str:
    """Complete the partial file, check it and rename it. Returns `name`, also if it was stopped before the end."""
    import requests

    part = partial_file(place, name)
    part.parent.mkdir(parents=True, exist_ok=True)
    headers, urls = hub_clients.request_headers(model), hub_addresses.file_urls(model, name, file["at"])
    most = failures = 0
    while not part.exists() or _size(part) != file["size"]:
        if _size(part) > file["size"]:
            part.unlink()
        try:
            # While another address is left to try, a response of the wrong size is rejected.
            _append(urls[0], name, file["size"] if len(urls) > 1 else None, headers, part, stop)
            failure: Exception = OSError(f"{name} is not {file['size']:,} bytes long, as the hub states")
        except requests.RequestException as error:
            if len(urls) > 1 and status(error) in hub_addresses.TRY_NEXT:
                urls = urls[1:]
                continue
            if not is_temporary(error):
                raise
            failure = error
        now = _size(part)
        if now == file["size"]:
            break
        failures = 0 if most < now < file["size"] else failures + 1
        most = max(most, now)
        if stop.is_set():
            return name
        if failures == TRIES:
            raise failure
        stop.wait(2**failures / 4)
    _check(model, name, file, part)
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(str(part), str(place / name))
    return name


def _append(
    url: str, name: str, size: Optional[int], headers: Dict[str, str], part: Path, stop: threading.Event
) -> None:
    """Download the rest of a file into `part`; from the start if the server ignores ranges."""
    have = _size(part)
    more = {"Range": f"bytes={have}-"} if have else {}
    with hub_addresses.get(url, headers, SILENCE, **more) as response:
        response.raise_for_status()
        hub_addresses.check_response(response, name, size)
        with part.open("ab" if response.status_code == 206 else "wb") as stream:
            for block in response.iter_content(BLOCK):
                if stop.is_set():
                    return
                stream.write(block)


def _check(model: Model, name: str, file: Dict[str, Any], part: Path) -> None:
    """Compare a complete file with the checksum that the hub states, and note its sha256. Raises HostLacks."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {file['size']}\0".encode())
    with part.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            sha256.update(block)
            if file.get("git"):
                git.update(block)
    found = sha256.hexdigest()
    if found != (file["sha256"] or found) or (file.get("git") and git.hexdigest() != file["git"]):
        part.unlink()
        raise HostLacks(
            f"{name} of {model.id} arrived damaged: its sha256 {found[:12]}… is not the checksum that "
            f"{NAMES[model.source]} states. It was deleted, the other files are kept: type the same command again to "
            f"fetch it again. If that repeats, something between here and the hub changes files: use a mirror "
            f"({MIRRORS[model.source]})."
        )
    file["sha256"] = found
