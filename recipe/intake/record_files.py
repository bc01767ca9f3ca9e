"""Reads the records of JSON, JSON Lines and Parquet files, with their places. records.py makes them conversations."""

import itertools
import json
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

from recipe.core.translation import _, listed, mark
from recipe.intake import columns, encodings, json_places, parquet, record_keys
from recipe.intake.cells import UnreadableFile
from recipe.intake.records import InvalidRecord, Record

# What Python's parser says of JSON, from a small letter on.
SYNTAX = (
    mark("expecting value"), mark("expecting ',' delimiter"), mark("expecting ':' delimiter"),
    mark("expecting property name enclosed in double quotes"), mark("unterminated string starting at"),
    mark("invalid control character at"), mark("invalid \\escape"), mark("invalid \\uXXXX escape"), mark("extra data"),
)  # fmt: skip
CONVERSATION_KEYS = {"conversation", "messages", "conversations", "instruction"}
LIST_COLUMNS = {"conversation", "conversations", "messages"}


def read(path: Path) -> Optional[Tuple[str, Iterator[Tuple[str, Any]]]]:
    """(encoding, records with their places: "line 3", "item 3", "row 3"); None for a table.

    Invalid JSON comes as an InvalidRecord in place of the record. Raises UnreadableFile.
    """
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        encoding = encodings.detect(path)
        return encodings.display_name(encoding), _read_json(path, encoding)
    rows = _read_parquet(path) if suffix == ".parquet" else None
    return None if rows is None else ("", rows)


def _read_json(path: Path, encoding: str) -> Iterator[Tuple[str, Any]]:
    errors = encodings.decode_errors(encoding)
    try:
        with path.open(encoding=encoding, errors=errors) as stream:
            first = list(itertools.islice((line for line in stream if line.strip()), 2))
        if not first:
            return
        # JSON Lines if the first of several lines is a whole value; else one value, perhaps over many lines.
        if len(first) < 2 or not (_is_json(first[0]) or (path.suffix.lower() == ".jsonl" and first[0][:1] == "{")):
            yield from _items(path.read_text(encoding=encoding, errors=errors))
            return
        with path.open(encoding=encoding, errors=errors) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}", _parse_json(line, one_line=True)
    except UnicodeDecodeError as error:
        name = _(encodings.display_name(encoding))
        what = _("it is not {encoding} throughout ({error})", encoding=name, error=error.reason)
        raise UnreadableFile(what) from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _items(text: str) -> Iterator[Tuple[str, Any]]:
    """The records of a file that is one JSON value: a list, an object that holds one, or a single record."""
    value = _parse_json(text, one_line=False)
    if isinstance(value, dict):
        lists = [key for key in value if isinstance(value[key], list) and all(isinstance(i, dict) for i in value[key])]
        lists = [key for key in lists if value[key]] or lists[:1]  # an empty one beside, such as errors
        # {"conversations": […]} may be one ShareGPT record or a file of records.
        holds_records = lists == ["conversations"] and all(CONVERSATION_KEYS & set(i) for i in value["conversations"])
        is_record = CONVERSATION_KEYS & set(value) or columns.is_header(list(value), {})
        if holds_records or not is_record:
            if len(lists) > 1:
                yield "", InvalidRecord(_("several lists: {keys}. Keep one per file", keys=listed(lists)))
                return
            value = value[lists[0]] if lists else value
    if not isinstance(value, list):
        yield "line 1" if not isinstance(value, InvalidRecord) else "", value
        return
    for number, item in enumerate(value, start=1):
        yield f"item {number}", item


class _Unplaced(Exception):
    """What is wrong with a JSON text, and the function that finds where."""


def _unique(pairs: List[Tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _value in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise _Unplaced(_("the key {key} appears twice in one object", key=double), json_places.double_key)
    return record


def _refuse_constant(name: str) -> Any:
    raise _Unplaced(_("{value} is not valid JSON", value=name), json_places.constant)


def _parse_json(text: str, one_line: bool) -> Any:
    """The JSON value of a line or a whole file; what is wrong with it as an InvalidRecord."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except _Unplaced as error:
        message, find = error.args
        where = json_places.show(text, find(text), one_line)
        return InvalidRecord(_("{place}: {problem}", place=where, problem=message))
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 12) : error.pos + 12].strip().replace("\n", " ")
        where = json_places.show(text, error.pos, one_line)
        what = f"{error.msg[0].lower()}{error.msg[1:]}"  # one of SYNTAX
        return InvalidRecord(_("{place}: {problem}, at …{text}…", place=where, problem=_(what), text=near))
    except (RecursionError, ValueError) as error:
        return InvalidRecord(_("it is not JSON that can be read ({error})", error=error))


def _read_parquet(path: Path) -> Optional[Iterator[Tuple[str, Any]]]:
    """The rows of a Parquet file as records if it holds conversations; None if it holds plain columns."""
    from pyarrow import types

    file = parquet.open_parquet(path)
    lists = {field.name for field in file.schema_arrow if types.is_list(field.type) or types.is_large_list(field.type)}
    if not any(name in LIST_COLUMNS or record_keys.is_history(name) or record_keys.matters(name) for name in lists):
        return None
    return (
        (f"row {number}", _without_none(row))  # a key that a row does not have is None
        for before, batch in parquet.batches(file)
        for number, row in enumerate(parquet.values(batch, before), start=before + 1)
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
