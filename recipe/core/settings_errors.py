"""Explains pydantic's errors in a recipe: where the wrong value is written, and what is allowed."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import tomli
from pydantic import ValidationError

from recipe.core import other_names
from recipe.core.recipe_files import MAX_FAULTS, fault, first_faults, line_of
from recipe.core.translation import _, mark, stored

# pydantic's messages, as far as the types of core/settings.py bring them about.
MESSAGES = (
    mark("Input should be a valid integer"),
    mark("Input should be a valid integer, {problem}"),
    mark("Input should be a valid number"),
    mark("Input should be a valid boolean"),
    mark("Input should be a valid string"),
    mark("Input should be a valid list"),
    mark("Input should be a valid dictionary or instance of {table}"),
    mark("Input should be a finite number"),
    mark("Input should be greater than or equal to {limit}"),
    mark("Input should be greater than {limit}"),
    mark("Input should be less than or equal to {limit}"),
    mark("Input should be less than {limit}"),
    mark("List should have at least {least} item after validation, not {count}"),
    mark("List should have at least {least} items after validation, not {count}"),
    mark("String should match pattern '{pattern}'"),
)

Keys = Tuple[str, ...]


def explain(error: ValidationError, path: Path, text: str, given: Dict[Keys, str], known: Sequence[str]) -> str:
    """One line per wrong setting, with its line in the file `path` or the override that set it.

    `text` is the file's, `given` {keys: override as typed}, `known` every dotted key.
    """
    found: Dict[Tuple[str, int, str], List[str]] = {}
    for one in error.errors()[: 2 * MAX_FAULTS]:
        keys = tuple(part for part in one["loc"] if isinstance(part, str))
        # Behind the key, pydantic names the branch of a union ("constrained-int").
        while one["type"] != "extra_forbidden" and len(keys) > 1 and ".".join(keys) not in known:
            keys = keys[:-1]
        override = next((given[word] for word in given if keys and word[: len(keys)] == keys), "")
        line = line_of(text, keys, tomli) if keys and not override else 0
        found.setdefault((override, line, ".".join(keys)), []).append(_reason(one, keys, known))
    lines = [
        fault(path, line, override, key, _(" or ").join(reasons).rstrip("?."))
        for (override, line, key), reasons in found.items()
    ]
    return "\n".join(first_faults(lines))


def message(error: Any) -> str:
    """pydantic's message of one error."""
    if error["type"] == "literal_error":  # 'a', 'b' or 'c'
        choices = error["ctx"]["expected"].replace(", ", _(", ")).replace(" or ", _(" or "))
        return _("Input should be {choices}", choices=choices)
    return stored(error["msg"].replace("Value error, ", ""))


def _reason(error: Any, keys: Keys, known: Sequence[str]) -> str:
    value = error["input"]
    if error["type"] == "extra_forbidden":
        return other_names.unknown_key(".".join(keys), known, known)
    if error["type"] == "missing":
        return _("is missing and has no default")
    if error["type"] == "string_type" and isinstance(value, (int, float)):
        return _("should be a valid string: put it in quotes (found {value!r})", value=value)
    said = message(error)
    said = said[0].lower() + said[1:]
    return _("{error} (found {value!r})", error=said, value=value) if keys and not isinstance(value, dict) else said
