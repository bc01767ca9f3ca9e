"""Explains pydantic's errors in a recipe: where the wrong value is written, and what is allowed."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import tomli
from pydantic import ValidationError

from recipe.core import other_names
from recipe.core.recipe_files import line_of
from recipe.core.suggestions import closest

MAX_ERRORS = 20  # listed one by one; the rest is counted

Keys = Tuple[str, ...]


def explain(error: ValidationError, path: Path, text: str, given: Dict[Keys, str], known: Sequence[str]) -> str:
    """One line per wrong setting, with its line in the file `path` or the override that set it.

    `text` is the file's, `given` {keys: override as typed}, `known` every dotted key.
    """
    found: Dict[Tuple[str, str], List[str]] = {}
    for one in error.errors()[: 2 * MAX_ERRORS]:
        keys = tuple(part for part in one["loc"] if isinstance(part, str))
        # Behind the key, pydantic names the branch of a union ("constrained-int").
        while one["type"] != "extra_forbidden" and len(keys) > 1 and ".".join(keys) not in known:
            keys = keys[:-1]
        found.setdefault((_place(keys, path, text, given), ".".join(keys)), []).append(_reason(one, keys, known))
    lines = [
        f"{place}: {key + ': ' if key else ''}{' or '.join(reasons).rstrip('?.')}."
        for (place, key), reasons in found.items()
    ]
    more = len(lines) - MAX_ERRORS
    return "\n".join(lines[:MAX_ERRORS] + [f"… and {more} more."] * (more > 0))


def _place(keys: Keys, path: Path, text: str, given: Dict[Keys, str]) -> str:
    override = next((given[one] for one in given if keys and one[: len(keys)] == keys), None)
    if override:
        return f"override {override}"
    line = line_of(text, keys, tomli) if keys else 0
    return f"{path}, line {line}" if line else str(path)


def _reason(error: Any, keys: Keys, known: Sequence[str]) -> str:
    if error["type"] == "extra_forbidden":
        other = other_names.hint(".".join(keys), known)
        if other:
            return f"unknown key; {other}"
        close = closest(".".join(keys), known, cutoff=0.5)
        return f"unknown key; did you mean {close}?" if close else f"unknown key; known are {', '.join(known)}"
    if error["type"] == "missing":
        return "is missing and has no default"
    if error["type"] == "string_type" and isinstance(error["input"], (int, float)):
        return f"should be a valid string: put it in quotes (found {error['input']!r})"
    message = error["msg"].replace("Value error, ", "")
    found = f" (found {error['input']!r})" if keys and not isinstance(error["input"], dict) else ""
    return f"{message[0].lower()}{message[1:]}{found}"
