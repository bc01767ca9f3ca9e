"""Files written beside and renamed into place."""

import os
import shutil
from pathlib import Path

from recipe.core.errors import RunFailed
from recipe.core.translation import _

LFS = b"version https://git-lfs"  # how a pointer begins


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(str(part), str(path))


def relative_path(path: Path, root: Path) -> str:
    """`path` relative to `root`, if it lies below it."""
    try:
        return str(path.resolve().relative_to(root.resolve()))
    except ValueError:
        return str(path)


def lfs_pointer(path: Path) -> str:
    """What to say of a file that is only Git LFS's pointer to the real one; "" for all others."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        head = stream.read(len(LFS))
    if head != LFS:
        return ""
    return _("it is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file")


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists():
        path.unlink()


def replace(new: Path, old: Path) -> None:
    """Put `new` where `old` is. A folder cannot be renamed over another: the old one steps aside first."""
    if not new.exists():
        raise RunFailed(_("The stage ended without writing {file}.", file=old.name))
    if new.is_file() and not old.is_dir():
        os.replace(str(new), str(old))
        return
    aside = old.with_name(f".{old.name}.old")
    remove(aside)
    if old.exists():
        os.replace(str(old), str(aside))
    os.replace(str(new), str(old))
    remove(aside)
