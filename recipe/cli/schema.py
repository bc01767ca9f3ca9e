"""Checks a recipe's values against the JSON schemas in grammar.json: Python's standard library alone."""

import re
from typing import Any, Dict, List, Sequence, Tuple

from recipe.core import other_names
from recipe.core.suggestions import closest
from recipe.core.translation import _, listed, mark, ngettext

TYPES: Dict[str, Tuple[Any, str]] = {
    "string": (str, mark("should be a text")),
    "integer": (int, mark("should be a whole number")),
    "number": ((int, float), mark("should be a number")),
    "boolean": (bool, mark("should be true or false")),
    "array": (list, mark("should be a list")),
}
LIMITS = {
    "minimum": mark("should be at least {limit:g}"),
    "maximum": mark("should be at most {limit:g}"),
    "exclusiveMinimum": mark("should be greater than {limit:g}"),
    "exclusiveMaximum": mark("should be less than {limit:g}"),
}


def find_errors(values: Dict[str, Any], schemas: Dict[str, Any]) -> List[Tuple[str, str]]:
    """(dotted key, what is wrong) of every wrong setting in `values`; `schemas` is {dotted key: schema}."""
    found = []
    tables = {".".join(key.split(".")[:depth]) for key in schemas for depth in range(1, key.count(".") + 1)}
    waiting = list(values.items())
    while waiting:
        key, value = waiting.pop(0)
        if key in schemas:
            error = find_error(value, schemas[key])
            found += [(key, _("{error} (found {value!r})", error=error, value=value))] if error else []
        elif key in tables and isinstance(value, dict):
            waiting += [(f"{key}.{name}", one) for name, one in value.items()]
        elif key in tables:
            found.append((key, _("is a table, not a value (found {value!r})", value=value)))
        else:
            known = list(schemas) if "." in key else [*tables, *schemas]
            found.append((key, other_names.unknown_key(key, known, list(schemas))))
    return found


def wants_text(schema: Dict[str, Any]) -> bool:
    """Whether a setting is a text, or texts: what a command line gives it is taken letter by letter."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    kinds = [one.get("items", one) for one in kinds]
    return all(one.get("type") == "string" and "enum" not in one for one in kinds)


def find_error(value: Any, schema: Dict[str, Any]) -> str:
    """What is wrong with a value, "" if nothing is. Knows as much of JSON Schema as settings.py uses."""
    if schema.get("bare") and isinstance(value, (str, int)) and not isinstance(value, bool):  # in place of a list
        value = [str(value)]
    if "anyOf" in schema:
        errors = [find_error(value, one) for one in schema["anyOf"] if one.get("type") != "null"]
        return "" if "" in errors else _(" or ").join(dict.fromkeys(errors))
    if "enum" in schema:
        return "" if value in schema["enum"] else _none_of(str(value), list(map(str, schema["enum"])))
    kind = schema.get("type", "")
    if kind in TYPES:
        python, said = TYPES[kind]
        if not isinstance(value, python) or (isinstance(value, bool) and kind != "boolean"):
            return _(said)
    if kind == "array":
        if len(value) < schema.get("minItems", 0):
            return ngettext("should have at least {n} entry", "should have at least {n} entries", schema["minItems"])
        return next(filter(None, (find_error(one, schema["items"]) for one in value)), "")
    if kind == "string":
        pattern = schema.get("pattern")
        is_right = not pattern or re.search(pattern, value)
        return "" if is_right else _("should look like {pattern}", pattern=pattern)
    for name, said in LIMITS.items():
        if name in schema and not _holds(value, name, schema[name]):
            return _(said, limit=schema[name])
    return ""


def _holds(value: Any, limit: str, bound: Any) -> bool:
    if limit.startswith("exclusive"):
        return bool(value > bound if limit == "exclusiveMinimum" else value < bound)
    return bool(value >= bound if limit == "minimum" else value <= bound)


def _none_of(word: str, known: Sequence[str]) -> str:
    close = closest(word, known)
    if close:
        return _("should be one of {choices}; did you mean {word}", choices=listed(known), word=close)
    return _("should be one of {choices}", choices=listed(known))
