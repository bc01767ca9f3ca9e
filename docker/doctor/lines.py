"""What every check is made of: lines, system files, questions to other programs, messages explained."""

import os
import re
import sys
from collections import namedtuple
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT))  # recipe/core/hardware.py and recipe/core/measurements.py are read here too
from recipe.core.hardware import ask  # noqa: E402,F401

CACHE = Path(os.environ.get("RECIPE_CACHE") or ROOT / ".cache")
JUST = os.environ.get("RECIPE_COMMAND", "just")
STATUSES = ("ok", "warning", "stop")

Line = namedtuple("Line", "name status found remedy")


def ok(name, found):
    return Line(name, "ok", found, "")


def warning(name, found, remedy):
    return Line(name, "warning", found, remedy)


def stop(name, found, remedy):
    return Line(name, "stop", found, remedy)


def system(path):
    """The file or folder `path` of the system; below DOCTOR_ROOT in tests."""
    return Path(os.environ.get("DOCTOR_ROOT", "") + path)


def text_of(file):
    """Text of a file; "" if it is not there or not ours to read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def read(path):
    """Text of the system's file `path`."""
    return text_of(system(path))


def numbers(version):
    """A version's numbers, to compare: "450.80.02" → (450, 80, 2)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def dotted(pair):
    """(8, 6) → "8.6"."""
    return ".".join(map(str, pair))


def explain(table, text, **words):
    """(meaning, remedy) of an error message by a table of (pattern, meaning, remedy); else (its last line, "")."""
    for pattern, meaning, remedy in table:
        if re.search(pattern, text):
            return meaning, remedy.format(**words)
    said = [line.strip() for line in text.splitlines() if line.strip() and "--help'" not in line]
    return said[-1][:300] if said else "it says nothing", ""


def existing(path):
    """`path` or its nearest parent that exists. (Path.exists() would raise below a folder that may not be entered.)"""
    while not os.path.exists(path) and path != path.parent:
        path = path.parent
    return path
