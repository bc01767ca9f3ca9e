"""Fetches the workbook that a recipe names by address (data.url) and checksum (data.sha256), if it is missing.

The address belongs to the first of data.files, and only if that has the address's own file name: a file of the user's
that is missing, or has another content, is left to the user.
"""

import os
import shlex
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from recipe.core import http, resumable_download
from recipe.core.errors import HostLacks, NotFetched, RecipeError
from recipe.core.hashing import digest
from recipe.core.progress import transfer_progress
from recipe.core.run import Run
from recipe.core.settings import Data
from recipe.core.translation import _

RAW = "https://raw.githubusercontent.com"
MIRROR = "GITHUB_RAW"  # the environment variable with what stands in RAW's place


def is_published(data: Data, name: str) -> bool:
    """Whether `name` is the file that the recipe's address and checksum belong to."""
    address = unquote(urlsplit(data.url).path)
    return bool(data.sha256) and name == data.files[0] and Path(name).name == address.rpartition("/")[2]


def address(data: Data) -> str:
    """Where the published file is fetched from: data.url, or the same at a mirror of RAW."""
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    if not mirror or not data.url.startswith(f"{RAW}/"):
        return data.url
    return f"{mirror if '://' in mirror else f'https://{mirror}'}{data.url[len(RAW) :]}"


def ensure(run: Run) -> None:
    """Fetch the recipe's published workbook if it is missing. Raises HostLacks, NotFetched."""
    name = run.settings.data.files[0]
    if not is_published(run.settings.data, name) or os.path.lexists(run.root / name):
        return
    if os.environ.get("RECIPE_FETCH") == "no":
        raise NotFetched("workbook")
    fetch(run)


def fetch(run: Run) -> None:
    """Fetch the published workbook beside its place, check it, and put it there. Raises HostLacks."""
    data = run.settings.data
    name, url = data.files[0], address(data)
    path = run.root / name
    what = _("{file} is missing: fetching it from {server}", file=name, server=http.server(url))
    print(what, file=sys.stderr, flush=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(lock)):  # two commands do not fetch it at once
            try:
                if not os.path.lexists(path):
                    _download(data, url, path)
            finally:
                lock.unlink(missing_ok=True)
    except RecipeError:
        raise
    except Exception as error:  # requests and urllib3 raise many types
        raise _explain(error, data, url)


def _download(data: Data, url: str, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    with transfer_progress() as show:
        resumable_download.complete(
            part, path.name, None, [url], {}, threading.Event(),
            lambda size: show(resumable_download.size_of(part), size),
        )  # fmt: skip
    found, wanted = digest(part), data.sha256.strip().lower()
    if found != wanted:
        part.unlink()
        raise HostLacks(
            _(
                "{file} is not what the recipe names: the file from {server} has the sha256 {found}…, not {wanted}…. "
                "It was deleted. Type the same command again; if that repeats, {remedy}",
                file=data.files[0], server=http.server(url), found=found[:12], wanted=wanted[:12],
                remedy=_other_ways(data),
            )
        )  # fmt: skip
    try:
        os.link(str(part), str(path))  # unlike a rename, it never replaces a file that came meanwhile
    except OSError:  # there is one, or the file system has no hard links
        if not os.path.lexists(path):
            os.rename(str(part), str(path))
            return
    part.unlink()


def _explain(error: Exception, data: Data, url: str) -> HostLacks:
    host = http.server(url)
    known = http.explain_disk(error, data.files[0]) or http.explain_connection(error, host)
    if known:
        return known
    why = http.reason(error)
    if http.is_unresolved(error):
        why = _("its name cannot be resolved: no network here, or no DNS")
    return HostLacks(
        _(
            "{file} could not be fetched from {server}: {reason}. Type the same command again where there is a "
            "network. If it keeps failing, {remedy}",
            file=data.files[0], server=host, reason=why, remedy=_other_ways(data),
        )
    )  # fmt: skip


def _other_ways(data: Data) -> str:
    """What to do when fetching fails; completes a sentence."""
    elsewhere = _("fetch the file elsewhere and put it there:")
    if data.url.startswith(RAW):
        elsewhere = _(
            "name a mirror of {server} ({variable}=https://…), or fetch the file elsewhere and put it there:",
            server=http.server(RAW), variable=MIRROR,
        )  # fmt: skip
    command = f"curl -fL -o {shlex.quote(data.files[0])} {shlex.quote(data.url)}"
    own = _("Your own file instead: {settings}", settings="data.files=data/mine.xlsx data.sha256=")
    return f"{elsewhere}\n{command}\n{own}"
