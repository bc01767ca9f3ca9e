"""JSON, JSON Lines and Parquet records as conversations: XTuner's own form, Alpaca, ShareGPT, OpenAI messages, columns.

    XTuner    {"conversation": [{"system"?, "input", "output"}, …]}
    ShareGPT  {"conversations": [{"from": "human" | "gpt" | "system", "value"}, …], "system"?}
    OpenAI    {"messages": [{"role": "user" | "assistant" | "system", "content"}, …]}
    Alpaca    {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], …]}
    columns   {"q", "a"} or any other names that a workbook's header may have

Sources: XTuner 0.1.14 docs (dataset_format), stanford_alpaca, FastChat and OpenAI's fine-tuning format.
"""

import itertools
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from recipe.intake import encodings, parquet
from recipe.intake.cells import UnreadableFile

USER = ("human", "user", "question", "prompter")
ASSISTANT = ("gpt", "assistant", "chatgpt", "bot", "model", "answer", "bing", "bard")
EXPECTED = (
    "conversation (XTuner), conversations (ShareGPT), messages (OpenAI), instruction and output (Alpaca), or q and a"
)
CONVERSATION_KEYS = {"conversation", "messages", "conversations", "instruction"}
LIST_COLUMNS = {"conversation", "conversations", "messages", "history"}

Record = Dict[str, Any]


class Turn(NamedTuple):
    """One turn; `system` and `image` only where the file gives one."""

    question: str
    answer: str
    system: str = ""
    image: str = ""


class InvalidRecord(Exception):
    """What is wrong with one record."""


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
        if len(first) < 2 or not (_is_json(first[0]) or (path.suffix == ".jsonl" and first[0][:1] == "{")):
            yield from _items(path.read_text(encoding=encoding, errors=errors))
            return
        with path.open(encoding=encoding, errors=errors) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}", _parse_json(line, one_line=True)
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"it is not {encodings.display_name(encoding)} throughout ({error.reason})") from None


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
        # {"conversations": […]} may be one ShareGPT record or a file of records.
        holds_records = lists == ["conversations"] and all(CONVERSATION_KEYS & set(i) for i in value["conversations"])
        if holds_records or not CONVERSATION_KEYS & set(value):
            if len(lists) > 1:
                yield "", InvalidRecord(f"several lists: {', '.join(lists)}. Keep one per file")
                return
            value = value[lists[0]] if lists else value
    if not isinstance(value, list):
        yield "line 1" if not isinstance(value, InvalidRecord) else "", value
        return
    for number, item in enumerate(value, start=1):
        yield f"item {number}", item


def _parse_json(text: str, one_line: bool) -> Any:
    """The JSON value of a line or a whole file; what is wrong with it as an InvalidRecord."""

    def unique(pairs: List[Tuple[str, Any]]) -> Record:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            double = next(key for key in keys if keys.count(key) > 1)
            raise InvalidRecord(f"the key {double} appears twice in one object")
        return dict(pairs)

    def refuse_constant(name: str) -> Any:
        raise InvalidRecord(f"{name} is not valid JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse_constant)
    except InvalidRecord as error:
        return error
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 12) : error.pos + 12].strip().replace("\n", " ")
        place = f"column {error.colno}" if one_line else f"line {error.lineno}, column {error.colno}"
        return InvalidRecord(f"{place}: {error.msg[0].lower()}{error.msg[1:]}, at …{near}…")
    except (RecursionError, ValueError) as error:
        return InvalidRecord(f"it is not JSON that can be read ({error})")


def _read_parquet(path: Path) -> Optional[Iterator[Tuple[str, Any]]]:
    """The rows of a Parquet file as records if it holds conversations; None if it holds plain columns."""
    from pyarrow import types

    file = parquet.open_parquet(path)
    lists = {field.name for field in file.schema_arrow if types.is_list(field.type) or types.is_large_list(field.type)}
    if not LIST_COLUMNS & lists:
        return None
    return (
        (f"row {number}", _without_none(row))  # a key that a row does not have is None
        for before, batch in parquet.batches(file)
        for number, row in enumerate(batch.to_pylist(), start=before + 1)
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def parse_turns(
    record: Any, find_roles: Callable[[List[str]], Optional[Dict[str, str]]], chosen: bool = False
) -> List[Turn]:
    """The turns of one record; blank texts are not checked here.

    `find_roles(keys)` gives role → key if the keys name a question and an answer. `chosen` says that the recipe names
    them, which takes precedence over Alpaca's names. Raises InvalidRecord.
    """
    if isinstance(record, InvalidRecord):
        raise record
    if isinstance(record, list) and record and all(isinstance(i, dict) and {"role", "from"} & set(i) for i in record):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise InvalidRecord(f"expected an object, found {_kind(record)}")
    if record.get("tools"):
        raise InvalidRecord("tools are not supported: leave the record out, or remove tools and tool calls from it")
    if isinstance(record.get("conversation"), list):
        return [_xtuner_turn(turn, f"turn {at}: ") for at, turn in enumerate(_list(record, "conversation"), start=1)]
    for key, role, text in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in record:
            return _chat_turns(record, key, role, text)
    if {"instruction", "output"} <= set(record) and not chosen:
        return _alpaca_turns(record)
    roles = find_roles(list(record))
    if roles is None:
        if "conversation" in record:
            _list(record, "conversation")
        raise InvalidRecord(f"found {_keys(record)}; wanted: {EXPECTED}")
    grouping = [roles[role] for role in ("conversation", "turn") if role in roles]
    if grouping:
        raise InvalidRecord(
            f"{', '.join(grouping)}: turns of a conversation in records of their own are only supported in tables "
            f"(.xlsx, .csv, .parquet); in JSON a conversation is one record: conversation or messages"
        )
    more, system = (_optional(record, roles.get(role)) for role in ("more", "system"))
    return [Turn(_join(_text(record, roles["question"]), more), _text(record, roles["answer"]), system)]


def _join(question: str, more: str) -> str:
    return f"{question}\n{more}" if question.strip() and more.strip() else question


def _xtuner_turn(turn: Any, where: str) -> Turn:
    if not isinstance(turn, dict):
        raise InvalidRecord(f"{where}expected an object, found {_kind(turn)}")
    if turn.get("output_with_loss", True) is not True:
        # XTuner 0.1.14 takes missing keys of all other turns for false, too, once a file has one.
        raise InvalidRecord(f"{where}output_with_loss is not supported. Leave the key out")
    return Turn(_text(turn, "input", where), _text(turn, "output", where), _optional(turn, "system", where))


def _alpaca_turns(record: Record) -> List[Turn]:
    turns = []
    for at, pair in enumerate(record.get("history") or [], start=1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InvalidRecord(f"history {at}: expected [question, answer], found {_kind(pair)}")
        turns.append(Turn(*pair))
    question = _join(_text(record, "instruction"), _optional(record, "input"))
    turns.append(Turn(question, _text(record, "output")))
    if record.get("system") is not None:
        turns[0] = turns[0]._replace(system=_text(record, "system"))
    return turns


def _chat_turns(record: Record, key: str, role: str, text: str) -> List[Turn]:
    """Turns from messages: an optional system message, then questions and answers alternating."""
    system = _optional(record, "system")
    question: Optional[str] = None
    turns: List[Turn] = []
    for at, message in enumerate(_list(record, key), start=1):
        where = f"message {at}: "
        role, text = _check_message(message, key, role, text, where)
        who = message[role]
        if who == "system" and message[text] is None:
            continue
        content = _text(message, text, where)
        if who == "system":
            if at > 1:
                raise InvalidRecord(f"{where}a system prompt after the first message")
            if system and content != system:
                raise InvalidRecord(f"{where}a second system prompt, beside the record's own")
            system = content
        elif who in USER:
            if question is not None:
                raise InvalidRecord(f"{where}a second question before an answer")
            question = content
        elif who in ASSISTANT:
            if question is None:
                raise InvalidRecord(f"{where}an answer without a question before it")
            turns.append(Turn(question, content, "" if turns else system))
            question = None
        else:
            known = ", ".join(("system", *USER[:2], *ASSISTANT[:2]))
            raise InvalidRecord(f"{where}{role} {who!r} is not known; known are {known}")
    if question is not None:
        raise InvalidRecord("the last question has no answer")
    return turns


def _check_message(message: Any, key: str, role: str, text: str, where: str) -> Tuple[str, str]:
    """The keys of a message's role and text: those expected, or those of the other form. Raises InvalidRecord."""
    if not isinstance(message, dict):
        raise InvalidRecord(f"{where}expected an object, found {_kind(message)}")
    if not {role, text} <= set(message):
        other = ("from", "value") if role == "role" else ("role", "content")
        if not set(other) <= set(message):
            hint = "; conversation is the key for turns of input and output" if "input" in message else ""
            raise InvalidRecord(f"{where}found {_keys(message)} in {key}; wanted: {role}, {text}{hint}")
        role, text = other
    if message.get("weight", 1) != 1:
        raise InvalidRecord(f"{where}weight is not supported: every answer is trained. Leave the key out")
    if message.get("tool_calls") or message.get("function_call"):
        raise InvalidRecord(f"{where}tool calls are not supported. Leave the record out")
    return role, text


def _list(record: Record, key: str) -> Sequence[Any]:
    value = record[key]
    if not isinstance(value, list):
        raise InvalidRecord(f"{key}: expected a list of turns, found {_kind(value)}")
    if not value:
        raise InvalidRecord(f"{key}: there are no turns in it")
    return value


def _text(record: Record, key: str, where: str = "") -> str:
    """The text of a key. Numbers are refused: a workbook shows them as text, in JSON they are a mistake."""
    if key not in record:
        raise InvalidRecord(f"{where}found {_keys(record)}; {key} is missing")
    value = record[key]
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(part.get("text", "")) for part in value)  # OpenAI's parts of one message
    if not isinstance(value, str):
        raise InvalidRecord(f"{where}{key}: expected text, found {_kind(value)}")
    return value


def _optional(record: Record, key: Optional[str], where: str = "") -> str:
    """The text of a key; "" if there is no such key or it is null."""
    return _text(record, key, where) if key is not None and record.get(key) is not None else ""


def _keys(record: Record) -> str:
    return ", ".join(map(str, record)) or "no keys"


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)
