"""Downloads a file over HTTP and resumes it where it was interrupted, also in a later process.

requests has no such function, and the hubs' clients do not resume reliably. modelscope 1.9.5 takes the length of the
rest for the length of the file, so an interrupted file never completes, and it loses every unfinished file when
stopped. huggingface_hub 0.21.4 keeps multiples of 10 MB, and appends the whole file where a server ignores ranges.
"""

import threading
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence

from recipe.core import http
from recipe.core.translation import _

CONNECT = 10  # seconds for a connection
SILENCE = 30  # seconds without a byte, after which a transfer is restarted
TRIES = 5  # in a row without a new byte
BLOCK = 1 << 16  # bytes; an interrupted transfer loses its last block
TRY_NEXT = (400, 401, 403, 404, 405, 410, 501)  # statuses after which the next address of the same file is tried


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none (another thread may have renamed it)."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def complete(
    part: Path, name: str, size: Optional[int], urls: Sequence[str], headers: Dict[str, str],
    stop: threading.Event, show: Callable[[Optional[int]], None] = lambda size: None,
) -> bool:  # fmt: skip
    """Download the rest of the file `name` into `part`, from the first of `urls` that has it. False if stopped before.

    `size`: its bytes, None if only the server knows them. Calls `show` with the size after every block.
    Raises requests' errors and OSError.
    """
    import requests

    most = failures = 0
    while not part.exists() or size_of(part) != size:
        if size is not None and size_of(part) > size:
            part.unlink()
        try:
            # While another address is left to try, a response of the wrong size is rejected.
            stated = _append(urls[0], name, size if len(urls) > 1 else None, headers, part, stop, show)
            if stop.is_set():
                return size_of(part) == size
            size = size or stated or size_of(part)  # a body of unstated length has ended well
            failure: Exception = OSError(
                _("{name} is not {size:,} bytes long, as the server states", name=name, size=size)
            )
        except requests.RequestException as error:
            if len(urls) > 1 and http.status(error) in TRY_NEXT:
                urls = urls[1:]
                continue
            if size is None and http.status(error) == 416:  # the partial file is not the beginning of this one
                part.unlink()
            elif not http.is_temporary(error) or (size is None and http.is_unresolved(error)):
                raise
            failure = error
        now = size_of(part)
        if now == size:
            break
        failures = 0 if most < now and (size is None or now < size) else failures + 1
        most = max(most, now)
        if stop.is_set():
            return False
        if failures == TRIES:
            raise failure
        stop.wait(2**failures / 4)
    return True


def _append(
    url: str, name: str, size: Optional[int], headers: Dict[str, str], part: Path, stop: threading.Event,
    show: Callable[[Optional[int]], None],
) -> Optional[int]:  # fmt: skip
    """Download the rest of a file into `part`; from the start if the server ignores ranges. Returns the file's size as
    the server states it.
    """
    have = size_of(part)
    more = {"Range": f"bytes={have}-"} if have else {}
    with http.get(url, headers, (CONNECT, SILENCE), **more) as response:
        response.raise_for_status()
        http.check_response(response, name, size)
        stated = http.file_size(response)
        with part.open("ab" if response.status_code == 206 else "wb") as stream:
            for block in response.iter_content(BLOCK):
                if stop.is_set():
                    break
                stream.write(block)
                show(stated)
    return stated
