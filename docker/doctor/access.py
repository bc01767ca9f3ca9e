"""Finds paths that the user can only access through a group: some engines' containers run without the user's groups."""

import contextlib
import grp
import os
from pathlib import Path
from typing import Optional, Tuple

from lines import CACHE, ROOT, existing
from needs import Need

READ, WRITE, ENTER = 4, 2, 1


def shared_by_group(need: Need) -> Optional[Tuple[Path, str]]:
    """(path, group) of the first path of a run that the user can only access through a supplementary group."""
    wanted = [(existing(need.folder), READ | WRITE | ENTER), (existing(CACHE), READ | WRITE | ENTER)]
    wanted += [(ROOT, READ | ENTER), (need.model, READ | ENTER)]
    with contextlib.suppress(OSError):
        wanted += [(path, READ) for path in sorted(need.model.iterdir())]
    for path, rights in wanted:
        group = _group_needed(path, rights)
        if group:
            return path, group
    return None


def _group_needed(path: Path, rights: int) -> str:
    """The group that gives the user `rights` to `path`; "" if no group is needed."""
    for place in (path, *path.parents):
        try:
            found = os.stat(str(place))
        except OSError:
            continue  # it does not exist, or a folder above it is closed
        is_own = found.st_uid == os.geteuid() or found.st_gid == os.getegid()
        by_others, by_group = (found.st_mode >> shift & rights == rights for shift in (0, 3))
        if not is_own and not by_others and by_group and found.st_gid in os.getgroups():
            with contextlib.suppress(KeyError):
                return grp.getgrgid(found.st_gid).gr_name
            return str(found.st_gid)
        rights = ENTER
    return ""
