"""What all checks use: result lines, files of the system, versions, explanations of error messages."""

import os
import re
import sys
from pathlib import Path
from typing import Iterable, NamedTuple, Tuple

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT))
from recipe.core.hardware import ask  # noqa: E402,F401
from recipe.core.translation import _, mark  # noqa: E402

CACHE = Path(os.environ.get("RECIPE_CACHE") or ROOT / ".cache")
JUST = os.environ.get("RECIPE_COMMAND", "just")
STATUSES = (mark("ok"), mark("warning"), mark("stop"))
# The checks' names; `docker gpu` and its like are put together.
NAMES = (
    mark("system"), mark("platform"), mark("runtime"), mark("gpu"), mark("gpu memory"), mark("memory"), mark("shm"),
    mark("rights"), mark("environment"), mark("tools"), mark("libraries"), mark("proxy"), mark("certificate"),
    mark("disk"), mark("recipe"), mark("compiler"), mark("kernels"), mark("selftest"),
)  # fmt: skip
REMOVE = mark("remove the environment's folder: the next command makes it again")


def name_shown(name: str) -> str:
    """A check's name in the user's language: "docker gpu" → "docker 显卡"."""
    engine, _blank, what = name.partition(" ")
    return _(name) if name in NAMES or what != "gpu" else f"{engine} {_(what)}"


class Line(NamedTuple):
    """A check's result."""

    name: str
    status: str  # of STATUSES
    found: str
    remedy: str


def ok(name: str, found: str) -> Line:
    return Line(name, "ok", found, "")


def warning(name: str, found: str, remedy: str) -> Line:
    return Line(name, "warning", found, remedy)


def stop(name: str, found: str, remedy: str) -> Line:
    return Line(name, "stop", found, remedy)


def system(path: str) -> Path:
    """The system's file or folder; in tests it lies below DOCTOR_ROOT."""
    return Path(os.environ.get("DOCTOR_ROOT", "") + path)


def read(path: str) -> str:
    """Text of the system's file; "" if it does not exist or cannot be read."""
    try:
        return system(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def numbers(version: str) -> Tuple[int, ...]:
    """A version as numbers: "450.80.02" → (450, 80, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def dotted(pair: Iterable[int]) -> str:
    """(8, 6) → "8.6"."""
    return ".".join(map(str, pair))


def explain(table: Iterable[Tuple[str, str, str]], text: str, **words: str) -> Tuple[str, str]:
    """(meaning, remedy) of an error message, by a table of (pattern, meaning, remedy); else (its last line, "").

    The table's texts are messages: they are translated here, and the remedy's {words} filled in.
    """
    for pattern, meaning, remedy in table:
        if re.search(pattern, text):
            return _(meaning), _(remedy, **words)
    lines = [line.strip() for line in text.splitlines() if line.strip() and "--help'" not in line]
    return lines[-1][:300] if lines else _("no message"), ""


def existing(path: Path) -> Path:
    """`path` or its nearest parent that exists."""
    # Path.exists() raises below a folder that cannot be entered.
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path
