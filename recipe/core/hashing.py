"""sha256 of files, folders and whatever else a stage depends on."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Optional

READERS = 4  # files of a folder that are read at a time


def digest(path: Path, unwanted: Optional[threading.Event] = None) -> str:
    """sha256 of a file, or of a folder's relative names and contents; "absent" if there is none.

    Reading a file ends early where nobody wants the result any more.
    """
    if path.is_dir():
        return digest_of(sums(path))
    if not path.is_file():
        return "absent"
    total = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            if unwanted and unwanted.is_set():
                break
            total.update(block)
    return total.hexdigest()


def sums(folder: Path, links: bool = True) -> Dict[str, str]:
    """Relative name → sha256 of every file of a folder and its folders; without `links`, of its own files."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and (links or not path.is_symlink())
    )
    unwanted = threading.Event()
    with ThreadPoolExecutor(READERS) as readers:
        try:
            values = list(readers.map(lambda file: digest(file, unwanted), found))
        finally:
            unwanted.set()  # Ctrl-C does not wait until the files are read
    return {str(file.relative_to(folder)): value for file, value in zip(found, values)}


def digest_of(found: Dict[str, str]) -> str:
    """`digest` of the folder whose `sums` are these."""
    return hashlib.sha256("".join(f"{name}\0{value}\0" for name, value in found.items()).encode()).hexdigest()


def below(path: Path) -> List[Path]:
    """All files of a folder and its folders, sorted; of a file itself."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def stamp(path: Path) -> List[Any]:
    """Names, sizes and times below `path`: equal stamps mean untouched files, without reading them."""
    files = [file for file in below(path) if file.exists()]
    return [[str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def key_of(inputs: Dict[str, Any]) -> str:
    """One sha256 for everything a stage depends on; paths count by content."""
    flat = {name: digest(value) if isinstance(value, Path) else value for name, value in inputs.items()}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def source(*places: Path) -> str:
    """One sha256 of the code on which a stage's result depends: module files, and folders of packages."""
    return key_of({str(number): place for number, place in enumerate(places)})
