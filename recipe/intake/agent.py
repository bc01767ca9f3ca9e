"""Conversations with tools, in the form of ModelScope's MSAgent-Bench, by XTuner's own map.

    {"conversations": [{"from": "system" | "user" | "assistant", "value"}, …]}

`value` of an assistant may hold <|startofthink|>{"api_name", "parameters"}<|endofthink|> and <|startofexec|> with what
the tool returned. The map evaluates the text it is given as Python; it gets nothing but what was read as data before.
"""

import ast
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any, Dict, List

from recipe.intake.records import InvalidRecord

ROLES = ("system", "user", "assistant")


@functools.lru_cache(maxsize=1)
def _map() -> Any:
    """XTuner's msagent_react_map_fn, from its file: importing XTuner would take ten seconds."""
    package = importlib.util.find_spec("xtuner")
    assert package
    assert package.submodule_search_locations
    place = Path(next(iter(package.submodule_search_locations)), "dataset", "map_fns", "dataset_map_fns")
    spec = importlib.util.spec_from_file_location("msagent_map_fn", str(place / "msagent_map_fn.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.msagent_react_map_fn


def conversation(record: Any) -> List[Dict[str, str]]:
    """A record's turns, as XTuner trains on them; a later turn's `system` is what a tool returned. Raises InvalidRecord."""
    if isinstance(record, InvalidRecord):
        raise record
    said = record.get("conversations") if isinstance(record, dict) else None
    if isinstance(said, str):  # MSAgent-Bench holds a list as text
        said = _read(said)
    if not isinstance(said, list) or not said:
        raise InvalidRecord("conversations must be a list of {from, value}, as MSAgent-Bench has it")
    for at, one in enumerate(said, start=1):
        fits = isinstance(one, dict) and one.get("from") in ROLES and isinstance(one.get("value"), str)
        if not fits:
            raise InvalidRecord(f"message {at}: from must be one of {', '.join(ROLES)} and value a text")
    plain = [{"from": one["from"], "value": one["value"]} for one in said]
    try:
        turns = _map()({"conversations": repr(plain)})["conversation"]
    except Exception as error:  # whatever the map stumbles over
        raise InvalidRecord(f"XTuner's Agent map fails on it: {type(error).__name__}: {error}")
    if not turns:
        raise InvalidRecord(
            "XTuner's Agent map finds no call that can be read: is what stands in <|startofthink|> JSON?"
        )
    return [{key: turn.get(key) or "" for key in ("system", "input", "output")} for turn in turns]


def _read(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise InvalidRecord("conversations is a text that is no list")
