"""Conversations with tools, in the form of ModelScope's MSAgent-Bench, converted by XTuner's own map.

    {"conversations": [{"from": "system" | "user" | "assistant", "value"}, …]}

An assistant's `value` may hold <|startofthink|>{"api_name", "parameters"}<|endofthink|> and <|startofexec|> with what
the tool returned. The map evaluates its input as Python, so it only gets the repr of data that was parsed before.
"""

import ast
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any, Dict, List

from recipe.core.translation import _, listed
from recipe.intake.records import InvalidRecord

ROLES = ("system", "user", "assistant")


@functools.lru_cache(maxsize=1)
def _xtuner_map() -> Any:
    """XTuner's msagent_react_map_fn, loaded from its file: importing XTuner takes ten seconds."""
    package = importlib.util.find_spec("xtuner")
    assert package
    assert package.submodule_search_locations
    folder = Path(next(iter(package.submodule_search_locations)), "dataset", "map_fns", "dataset_map_fns")
    spec = importlib.util.spec_from_file_location("msagent_map_fn", str(folder / "msagent_map_fn.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.msagent_react_map_fn


def parse_conversation(record: Any) -> List[Dict[str, str]]:
    """A record's turns (system, input, output) as XTuner trains on them. Raises InvalidRecord.

    In turns after the first, `system` is what a tool returned.
    """
    if isinstance(record, InvalidRecord):
        raise record
    messages = record.get("conversations") if isinstance(record, dict) else None
    if isinstance(messages, str):  # MSAgent-Bench stores the list as text
        messages = _parse_list(messages)
    if not isinstance(messages, list) or not messages:
        raise InvalidRecord(_("conversations must be a list of {shape}, as in MSAgent-Bench", shape="{from, value}"))
    for at, message in enumerate(messages, start=1):
        valid = isinstance(message, dict) and message.get("from") in ROLES and isinstance(message.get("value"), str)
        if not valid:
            raise InvalidRecord(
                _("message {number}: from must be one of {roles} and value a text", number=at, roles=listed(ROLES))
            )
    plain = [{"from": message["from"], "value": message["value"]} for message in messages]
    try:
        turns = _xtuner_map()({"conversations": repr(plain)})["conversation"]
    except Exception as error:  # the map does not check its input
        raise InvalidRecord(_("XTuner's Agent map fails on it: {error}", error=f"{type(error).__name__}: {error}"))
    if not turns:
        raise InvalidRecord(_("XTuner's Agent map finds no readable call: is the text in <|startofthink|> JSON?"))
    return [{key: turn.get(key) or "" for key in ("system", "input", "output")} for turn in turns]


def _parse_list(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise InvalidRecord(_("conversations is text that is not a list"))
