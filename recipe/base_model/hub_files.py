"""Downloads the files of a model from its hub: several at a time, resumed, and compared with the hub's checksums."""

import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List

from recipe.base_model import hub_addresses, hub_clients
from recipe.base_model.hub_addresses import MIRRORS, NAMES, Files
from recipe.base_model.hub_errors import as_recipe_errors
from recipe.core import resumable_download
from recipe.core.errors import HostLacks
from recipe.core.resumable_download import size_of
from recipe.core.settings import Model
from recipe.core.translation import _

PARALLEL = 4  # files at a time, like modelscope


def partial_file(place: Path, name: str) -> Path:
    """Where the bytes of an incomplete file are kept."""
    return place / ".recipe" / (name.replace("/", "__") + ".part")


def downloaded_bytes(place: Path, name: str) -> int:
    return size_of(partial_file(place, name)) or size_of(place / name)


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
    part = partial_file(place, name)
    part.parent.mkdir(parents=True, exist_ok=True)
    headers, urls = hub_clients.request_headers(model), hub_addresses.file_urls(model, name, file["at"])
    if resumable_download.complete(part, name, file["size"], urls, headers, stop):
        _check(model, name, file, part)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(part), str(place / name))
    return name


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
            _(
                "{file} of {model} arrived damaged: its sha256 {found}… is not the checksum that {hub} states. It was "
                "deleted, the other files are kept: type the same command again to fetch it again. If that repeats, "
                "something between here and the hub changes files: use a mirror ({mirror}).",
                file=name,
                model=model.id,
                found=found[:12],
                hub=NAMES[model.source],
                mirror=MIRRORS[model.source],
            )
        )
    file["sha256"] = found
