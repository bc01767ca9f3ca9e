"""JSON and JSON Lines as conversations: XTuner's own form, Alpaca, ShareGPT, OpenAI messages, or named columns.

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
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from recipe.intake.cells import UnreadableFile
from recipe.intake.tables import NAMES, encoding, errors, first_line

USER = ("human", "user", "question", "prompter")
ASSISTANT = ("gpt", "assistant", "chatgpt", "bot", "model", "answer", "bing", "bard")
WANTED = (
    "conversation (XTuner), conversations (ShareGPT), messages (OpenAI), instruction and output (Alpaca), or q and a"
)
KNOWN = {"conversation", "messages", "conversations", "instruction"}


class Turn(NamedTuple):
    """One turn; `system` and `image` only where the file gives one."""

    question: str
    answer: str
    system: str = ""
    image: str = ""


class InvalidRecord(Exception):
    """What is wrong with one record."""


def records(path: Path) -> Tuple[str, Iterator[Tuple[str, Any]]]:
    """(encoding found, the file's JSON values with their places: "line 3" or "item 3").

    A value that is no JSON comes as a InvalidRecord with line and column. An array counts item by item. Raises UnreadableFile.
    """
    name = encoding(path)
    return NAMES.get(name, name.upper()), _values(path, name)


def _values(path: Path, name: str) -> Iterator[Tuple[str, Any]]:
    try:
        with path.open(encoding=name, errors=errors(name)) as stream:
            filled = list(itertools.islice((line for line in stream if line.strip()), 2))
        if not filled:
            return
        # Lines, if the first is a whole value and not the only one; else one value, perhaps over many lines.
        lines = len(filled) == 2 and (_is_value(filled[0]) or (path.suffix == ".jsonl" and filled[0][:1] == "{"))
        if not lines:
            yield from _items(path.read_text(encoding=name, errors=errors(name)))
            return
        with path.open(encoding=name, errors=errors(name)) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"line {number}", _loaded(line, number)
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"it is not {NAMES.get(name, name)} throughout ({error.reason})") from None


def _is_value(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _items(text: str) -> Iterator[Tuple[str, Any]]:
    value = _loaded(text, 0)
    if isinstance(value, dict):
        lists = [key for key in value if isinstance(value[key], list) and all(isinstance(i, dict) for i in value[key])]
        # {"conversations": […]} may be one ShareGPT record as well as a file of records.
        if not KNOWN & set(value) or (
            lists == ["conversations"] and all(KNOWN & set(i) for i in value["conversations"])
        ):
            if len(lists) > 1:
                yield "", InvalidRecord(f"several lists: {', '.join(lists)}. Keep one in a file")
                return
            value = value[lists[0]] if lists else value
    if not isinstance(value, list):
        yield "line 1" if not isinstance(value, InvalidRecord) else "", value
        return
    for number, item in enumerate(value, start=1):
        yield f"item {number}", item


def _loaded(text: str, line: int) -> Any:
    """The JSON value of `text`, or a InvalidRecord; `line` is the line's number, 0 for a whole file."""

    def once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            keys = [key for key, _ in pairs]
            raise InvalidRecord(
                f"the key {next(key for key in keys if keys.count(key) > 1)} stands twice in one object"
            )
        return dict(pairs)

    def constant(name: str) -> Any:
        raise InvalidRecord(f"{name} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except InvalidRecord as wrong:
        return wrong
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 12) : error.pos + 12].strip().replace("\n", " ")
        what = error.msg[0].lower() + error.msg[1:]
        place = f"column {error.colno}" if line else f"line {error.lineno}, column {error.colno}"
        return InvalidRecord(f"{place}: {what}, at …{near}…")
    except (RecursionError, ValueError) as error:
        return InvalidRecord(f"no JSON that can be read ({error})")


def parquet(path: Path) -> Optional[Iterator[Tuple[str, Any]]]:
    """The rows of a Parquet file as records, if it holds conversations; None if it holds plain columns."""
    from pyarrow import ArrowException, types
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(str(path))
    except (ArrowException, OSError, ValueError):
        return None  # tables.py says what is wrong with it
    lists = {field.name for field in file.schema_arrow if types.is_list(field.type) or types.is_large_list(field.type)}
    if not {"conversation", "conversations", "messages", "history"} & lists:
        return None

    def rows() -> Iterator[Tuple[str, Any]]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    # a key that a row does not have is None there
                    yield f"row {number}", _without_none(row)
        except (ArrowException, OSError, ValueError) as error:
            raise UnreadableFile(f"it is damaged behind row {number} ({first_line(error)})") from None

    return rows()


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def turns(record: Any, columns: Any, chosen: bool = False) -> List[Turn]:
    """The turns of one record. `columns(names)` gives role → key of named columns, if there are question and answer;
    `chosen` says that the recipe names them, which goes before Alpaca's names.

    Raises InvalidRecord, which says what is wrong. Blank texts are not looked for here.
    """
    if isinstance(record, InvalidRecord):
        raise record
    if isinstance(record, list) and record and all(isinstance(i, dict) and {"role", "from"} & set(i) for i in record):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise InvalidRecord(f"an object is wanted, found {_kind(record)}")
    if record.get("tools"):
        raise InvalidRecord("tools are not supported: leave the record out, or take tools and tool calls out of it")
    if isinstance(record.get("conversation"), list):
        return [_xtuner(turn, at) for at, turn in enumerate(_list(record, "conversation"), start=1)]
    for key, role, text in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in record:
            return _chat(record, key, role, text)
    if {"instruction", "output"} <= set(record) and not chosen:
        return _alpaca(record)
    roles = columns(list(record))
    if roles is None:
        if "conversation" in record:
            _list(record, "conversation")
        raise InvalidRecord(f"found {', '.join(map(str, record)) or 'no keys'}; wanted: {WANTED}")
    apart = [roles[role] for role in ("conversation", "turn") if role in roles]
    if apart:
        raise InvalidRecord(
            f"{', '.join(apart)}: turns of a conversation in records of their own are read from tables (.xlsx, .csv, "
            f".parquet); in JSON a conversation is one record: conversation or messages"
        )
    question = _text(record, roles["question"])
    more, system = (_optional(record, roles.get(role)) for role in ("more", "system"))
    return [Turn(_joined(question, more), _text(record, roles["answer"]), system)]


def _joined(question: str, more: str) -> str:
    return f"{question}\n{more}" if question.strip() and more.strip() else question


def _xtuner(turn: Any, at: int) -> Turn:
    if not isinstance(turn, dict):
        raise InvalidRecord(f"turn {at}: an object is wanted, found {_kind(turn)}")
    if turn.get("output_with_loss", True) is not True:
        # XTuner 0.1.14 takes the missing keys of all other turns for false, too, once a file has one.
        raise InvalidRecord(f"turn {at}: output_with_loss is not supported. Leave the key out")
    system = _optional(turn, "system", f"turn {at}: ")
    return Turn(_text(turn, "input", f"turn {at}: "), _text(turn, "output", f"turn {at}: "), system)


def _alpaca(record: Dict[str, Any]) -> List[Turn]:
    made = []
    for at, pair in enumerate(record.get("history") or [], start=1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InvalidRecord(f"history {at}: [question, answer] is wanted, found {_kind(pair)}")
        made.append(Turn(*pair))
    question = _text(record, "instruction")
    more = _optional(record, "input")
    made.append(Turn(_joined(question, more), _text(record, "output")))
    if record.get("system") is not None:
        made[0] = made[0]._replace(system=_text(record, "system"))
    return made


def _chat(record: Dict[str, Any], key: str, role: str, text: str) -> List[Turn]:
    """Messages of changing roles: a system message first or none, then question and answer by turns."""
    system = _optional(record, "system")
    question: Optional[str] = None
    made: List[Turn] = []
    for at, message in enumerate(_list(record, key), start=1):
        where = f"message {at}: "
        if not isinstance(message, dict):
            raise InvalidRecord(f"{where}an object is wanted, found {_kind(message)}")
        if not {role, text} <= set(message):
            other = ("from", "value") if role == "role" else ("role", "content")
            if set(other) <= set(message):
                role, text = other
            else:
                hint = "; conversation is the key for turns of input and output" if "input" in message else ""
                raise InvalidRecord(
                    f"{where}found {', '.join(message) or 'no keys'} in {key}; wanted: {role}, {text}{hint}"
                )
        if message.get("weight", 1) != 1:
            raise InvalidRecord(f"{where}weight is not supported: every answer is trained. Leave the key out")
        if message.get("tool_calls") or message.get("function_call"):
            raise InvalidRecord(f"{where}tool calls are not supported. Leave the record out")
        who = message[role]
        if who == "system" and message[text] is None:
            continue
        said = _text(message, text, where)
        if who == "system":
            if at > 1:
                raise InvalidRecord(f"{where}a system prompt behind the first message")
            if system and said != system:
                raise InvalidRecord(f"{where}a second system prompt, beside the record's own")
            system = said
        elif who in USER:
            if question is not None:
                raise InvalidRecord(f"{where}a second question before an answer")
            question = said
        elif who in ASSISTANT:
            if question is None:
                raise InvalidRecord(f"{where}an answer without a question before it")
            made.append(Turn(question, said, "" if made else system))
            question = None
        else:
            raise InvalidRecord(f"{where}{role} {who!r} is not known; known are system, {USER[0]}, {USER[1]}, {ASSISTANT[0]}, "
                        f"{ASSISTANT[1]}")  # fmt: skip
    if question is not None:
        raise InvalidRecord("the last question has no answer")
    return made


def _list(record: Dict[str, Any], key: str) -> Sequence[Any]:
    value = record[key]
    if not isinstance(value, list):
        raise InvalidRecord(f"{key}: a list of turns is wanted, found {_kind(value)}")
    if not value:
        raise InvalidRecord(f"{key}: there are no turns in it")
    return value


def _text(record: Dict[str, Any], key: str, where: str = "") -> str:
    """The text of a key. A number is none here: a workbook shows one as text, JSON says that it is not."""
    if key not in record:
        raise InvalidRecord(f"{where}found {', '.join(map(str, record)) or 'no keys'}; {key} is missing")
    value = record[key]
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(part.get("text", "")) for part in value)  # OpenAI's parts of one message
    if not isinstance(value, str):
        raise InvalidRecord(f"{where}{key}: a text is wanted, found {_kind(value)}")
    return value


def _optional(record: Dict[str, Any], key: Optional[str], where: str = "") -> str:
    """The same for a key (or none) that may be missing or null: "" then."""
    return _text(record, key, where) if key is not None and record.get(key) is not None else ""


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return kinds.get(type(value), type(value).__name__)
