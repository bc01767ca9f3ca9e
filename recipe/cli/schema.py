"""Checks a recipe's values against the JSON schemas in grammar.json: Python's standard library alone."""

import re
from typing import Any, Dict, List, Sequence, Tuple

from recipe.core import other_names
from recipe.core.suggestions import closest

TYPES: Dict[str, Tuple[Any, str]] = {
    "string": (str, "a text"), "integer": (int, "a whole number"), "number": ((int, float), "a number"),
    "boolean": (bool, "true or false"), "array": (list, "a list"),
}  # fmt: skip
LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "greater than",
    "exclusiveMaximum": "less than",
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
            found += [(key, f"{error} (found {value!r})")] if error else []
        elif key in tables and isinstance(value, dict):
            waiting += [(f"{key}.{name}", one) for name, one in value.items()]
        elif key in tables:
            found.append((key, f"is a table, not a value (found {value!r})"))
        else:
            known = list(schemas) if "." in key else [*tables, *schemas]
            other = other_names.hint(key, list(schemas))
            guess = f"; {other}" if other else _hint(key, known, 0.5)
            found.append((key, f"unknown key{guess or '; known are ' + ', '.join(known)}"))
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
        return "" if "" in errors else " or ".join(dict.fromkeys(errors))
    if "enum" in schema:
        known = list(map(str, schema["enum"]))
        return "" if value in schema["enum"] else f"should be one of {', '.join(known)}{_hint(str(value), known)}"
    kind = schema.get("type", "")
    if kind in TYPES:
        python, name = TYPES[kind]
        if not isinstance(value, python) or (isinstance(value, bool) and kind != "boolean"):
            return f"should be {name}"
    if kind == "array":
        if len(value) < schema.get("minItems", 0):
            return f"should have at least {schema['minItems']} entry"
        return next(filter(None, (find_error(one, schema["items"]) for one in value)), "")
    if kind == "string":
        pattern = schema.get("pattern")
        return "" if not pattern or re.search(pattern, value) else f"should look like {pattern}"
    for name, words in LIMITS.items():
        if name in schema and not _holds(value, name, schema[name]):
            return f"should be {words} {schema[name]:g}"
    return ""


def _holds(value: Any, limit: str, bound: Any) -> bool:
    if limit.startswith("exclusive"):
        return bool(value > bound if limit == "exclusiveMinimum" else value < bound)
    return bool(value >= bound if limit == "minimum" else value <= bound)


def _hint(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    close = closest(word, known, cutoff)
    return f"; did you mean {close}" if close else ""
