"""JSON, JSON Lines and Parquet records as conversations: XTuner's own form, Alpaca, ShareGPT, OpenAI messages, columns.

    XTuner    {"conversation": [{"system"?, "input", "output"}, …]}
    ShareGPT  {"conversations": [{"from": "human" | "gpt" | "system", "value"}, …], "system"?}
    OpenAI    {"messages": [{"role": "user" | "assistant" | "system", "content"}, …]}
    Alpaca    {"instruction", "input"?, "output", "system"?, "history"?: [[question, answer], …]}
    columns   {"q", "a"} or any other names that a workbook's header may have

Sources: XTuner 0.1.14 docs (dataset_format), stanford_alpaca, FastChat and OpenAI's fine-tuning format.
"""

import json
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from recipe.core.translation import _, listed, mark
from recipe.intake import columns, record_keys

USER = ("human", "user", "question", "prompter")
ASSISTANT = ("gpt", "assistant", "chatgpt", "bot", "model", "answer", "bing", "bard")
EXPECTED = mark(
    "conversation (XTuner), conversations (ShareGPT), messages (OpenAI), instruction and output (Alpaca), or q and a"
)
ROLES = (columns.QUESTION, columns.ANSWER)

Record = Dict[str, Any]


class Turn(NamedTuple):
    """One turn; `system` and `image` only where the file gives one."""

    question: str
    answer: str
    system: str = ""
    image: str = ""


class InvalidRecord(Exception):
    """What is wrong with one record."""


def parse_turns(
    record: Any,
    find_roles: Callable[[List[str]], Optional[Dict[str, str]]],
    chosen: bool = False,
    left: Optional[Dict[str, int]] = None,
) -> List[Turn]:
    """The turns of one record; blank texts are not checked here.

    `find_roles(keys)` gives role → key if the keys name a question and an answer. `chosen` says that the recipe names
    them, which takes precedence over Alpaca's names. `left` counts the keys that are left alone. Raises InvalidRecord.
    """
    if isinstance(record, InvalidRecord):
        raise record
    if isinstance(record, list) and record and all(isinstance(i, dict) and {"role", "from"} & set(i) for i in record):
        record = {"messages": record}
    if not isinstance(record, dict):
        raise InvalidRecord(_expected_object(record))
    left = {} if left is None else left
    turns, read = _turns(record, find_roles, chosen, left)
    check_rest(record, read, left)
    return turns


def _turns(
    record: Record, find_roles: Callable[[List[str]], Optional[Dict[str, str]]], chosen: bool, left: Dict[str, int]
) -> Tuple[List[Turn], Set[str]]:
    """The turns of a record, and the keys that were read."""
    if isinstance(record.get("conversation"), list):
        turns = [_xtuner_turn(turn, at, left) for at, turn in enumerate(_list(record, "conversation"), start=1)]
        system, keys = _system(record)
        if system and not any(turn.system for turn in turns):
            turns[0] = turns[0]._replace(system=system)
        return turns, {"conversation", *keys}
    for key, role, text in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in record:
            return _chat_turns(record, key, role, text, left), {key, *_system(record)[1]}
    if {"instruction", "output"} <= set(record) and not chosen:
        question = _join(_text(record, "instruction"), _optional(record, "input"))
        turns, read = [Turn(question, _text(record, "output"))], {"instruction", "input", "output"}
    else:
        turns, read = _pair(record, find_roles)
    system, keys = _system(record)
    history = [key for key in record if key not in read and record_keys.is_history(key)]
    for key in history:
        turns = [*parse_history(record[key], key), *turns]
    if system:
        turns = [turns[0]._replace(system=system), *turns[1:]]
    return turns, {*read, *history, *keys}


def _pair(record: Record, find_roles: Callable[[List[str]], Optional[Dict[str, str]]]) -> Tuple[List[Turn], Set[str]]:
    """A question and an answer under the names of columns, and the keys that were read."""
    roles = find_roles(list(record))
    if roles is None:
        if "conversation" in record:
            _list(record, "conversation")
        raise InvalidRecord(_("found {keys}; wanted: {wanted}", keys=_keys(record), wanted=_(EXPECTED)))
    grouping = [roles[role] for role in ("conversation", "turn") if role in roles]
    if grouping:
        raise InvalidRecord(
            _(
                "{keys}: turns of a conversation in records of their own are only supported in tables (.xlsx, .csv, "
                ".parquet); in JSON a conversation is one record: conversation or messages",
                keys=listed(grouping),
            )
        )
    more, system = (_optional(record, roles.get(role)) for role in ("more", "system"))
    question = _join(_text(record, roles["question"]), more)
    return [Turn(question, _text(record, roles["answer"]), system)], set(roles.values())


def _system(record: Record) -> Tuple[str, List[str]]:
    """A record's own system prompt, and the keys that may hold one."""
    keys = [key for key in record if columns.ROLES.get(columns.normalize(key)) == columns.SYSTEM]
    return next(filter(None, (_optional(record, key) for key in keys)), ""), keys


def check_rest(holder: Record, read: Iterable[str], left: Dict[str, int]) -> None:
    """Refuse keys that decide what is trained; count the others in `left`. Raises InvalidRecord."""
    for key, value in holder.items():
        if key in read:
            continue
        why = record_keys.refusal(key, value)
        if not why and not record_keys.is_empty(value) and record_keys.is_history(key):
            why = _("{key}: this record has its turns elsewhere. Put the earlier turns in front of them", key=key)
        if why:
            raise InvalidRecord(why)
        if value is not True and not record_keys.is_empty(value):
            left[key] = left.get(key, 0) + 1


def parse_history(value: Any, key: str) -> List[Turn]:
    """Earlier turns in any notation: pairs, messages, objects of question and answer, or these as JSON text.

    Raises InvalidRecord.
    """
    if record_keys.is_empty(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRecord(
                _("{key}: expected [[question, answer], …], found other text: {text!r}", key=key, text=value[:20])
            )
        return parse_history(value, key) if not isinstance(value, str) else _bad_history(key, value)
    if not isinstance(value, list):
        return _bad_history(key, value)
    if all(
        isinstance(one, dict) and ({"role", "content"} <= set(one) or {"from", "value"} <= set(one)) for one in value
    ):
        return _chat_turns({key: value}, key, "role", "content", {})
    if all(isinstance(one, str) for one in value) and len(value) % 2 == 0:
        value = list(zip(value[::2], value[1::2]))
    turns = []
    for at, pair in enumerate(value, start=1):
        if isinstance(pair, dict):
            roles = columns.find_columns(list(pair), {}).roles if columns.is_header(list(pair), {}) else {}
            names = [list(pair)[index] for index in (roles.get(role) for role in ROLES) if index is not None]
            pair = [pair[name] for name in names] if len(names) == len(pair) == 2 else pair
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            return _bad_history(f"{key} {at}", pair)
        turns.append(Turn(*pair))
    return turns


def _bad_history(key: str, found: Any) -> List[Turn]:
    raise InvalidRecord(_("{key}: expected [question, answer], found {found}", key=key, found=_kind(found)))


def _join(question: str, more: str) -> str:
    return f"{question}\n{more}" if question.strip() and more.strip() else question


def _xtuner_turn(turn: Any, number: int, left: Dict[str, int]) -> Turn:
    try:
        if not isinstance(turn, dict):
            raise InvalidRecord(_expected_object(turn))
        # XTuner 0.1.14 takes missing keys of all other turns for false, too, once a file has output_with_loss.
        check_rest(turn, ("input", "output", "system"), left)
        return Turn(_text(turn, "input"), _text(turn, "output"), _optional(turn, "system"))
    except InvalidRecord as error:
        raise InvalidRecord(_("turn {number}: {problem}", number=number, problem=error)) from None


def _chat_turns(record: Record, key: str, role: str, text: str, left: Dict[str, int]) -> List[Turn]:
    """Turns from messages: an optional system message, then questions and answers alternating."""
    system = _system(record)[0]
    question: Optional[str] = None
    turns: List[Turn] = []
    messages, at = _list(record, key), 0
    try:
        for at, message in enumerate(messages, start=1):
            role, text = _check_message(message, key, role, text)
            check_rest(message, (role, text), left)
            who = message[role]
            if who == "system" and message[text] is None:
                continue
            content = _text(message, text)
            if who == "system":
                if at > 1:
                    raise InvalidRecord(_("a system prompt after the first message"))
                if system and content != system:
                    raise InvalidRecord(_("a second system prompt, beside the record's own"))
                system = content
            elif who in USER:
                if question is not None:
                    raise InvalidRecord(_("a second question before an answer"))
                question = content
            elif who in ASSISTANT:
                if question is None:
                    raise InvalidRecord(_("an answer without a question before it"))
                turns.append(Turn(question, content, "" if turns else system))
                question = None
            else:
                known = listed(("system", *USER[:2], *ASSISTANT[:2]))
                raise InvalidRecord(
                    _("{key} {role!r} is not known; known are {roles}", key=role, role=who, roles=known)
                )
    except InvalidRecord as error:
        raise InvalidRecord(_("message {number}: {problem}", number=at, problem=error)) from None
    if question is not None:
        raise InvalidRecord(_("the last question has no answer"))
    return turns


def _check_message(message: Any, key: str, role: str, text: str) -> Tuple[str, str]:
    """The keys of a message's role and text: those expected, or those of the other form. Raises InvalidRecord."""
    if not isinstance(message, dict):
        raise InvalidRecord(_expected_object(message))
    if not {role, text} <= set(message):
        other = ("from", "value") if role == "role" else ("role", "content")
        if not set(other) <= set(message):
            found, wanted = _keys(message), listed((role, text))
            what = _("found {keys} in {key}; wanted: {wanted}", keys=found, key=key, wanted=wanted)
            if "input" in message:
                what = _(
                    "found {keys} in {key}; wanted: {wanted}; conversation is the key for turns of input and output",
                    keys=found, key=key, wanted=wanted,
                )  # fmt: skip
            raise InvalidRecord(what)
        role, text = other
    return role, text


def _list(record: Record, key: str) -> Sequence[Any]:
    value = record[key]
    if not isinstance(value, list):
        raise InvalidRecord(_("{key}: expected a list of turns, found {found}", key=key, found=_kind(value)))
    if not value:
        raise InvalidRecord(_("{key}: there are no turns in it", key=key))
    return value


def _text(record: Record, key: str) -> str:
    """The text of a key. Numbers are refused: a workbook shows them as text, in JSON they are a mistake."""
    if key not in record:
        raise InvalidRecord(_("found {keys}; {key} is missing", keys=_keys(record), key=key))
    value = record[key]
    if isinstance(value, list) and value and all(isinstance(p, dict) and p.get("type") == "text" for p in value):
        value = "".join(str(part.get("text", "")) for part in value)  # OpenAI's parts of one message
    elif isinstance(value, list) and value and all(isinstance(p, dict) and "type" in p for p in value):
        other = next(part["type"] for part in value if part["type"] != "text")
        raise InvalidRecord(_("{key}: a part of type {type}. Only texts are trained here", key=key, type=other))
    if not isinstance(value, str):
        raise InvalidRecord(_("{key}: expected text, found {found}", key=key, found=_kind(value)))
    return value


def _optional(record: Record, key: Optional[str]) -> str:
    """The text of a key; "" if there is no such key or it is null."""
    return _text(record, key) if key is not None and record.get(key) is not None else ""


def _keys(record: Record) -> str:
    return listed(record) or _("no keys")


def _expected_object(found: Any) -> str:
    return _("expected an object, found {found}", found=_kind(found))


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = {dict: _("an object"), list: _("a list"), str: _("text"), int: _("a number"), float: _("a number")}
    return kinds.get(type(value), type(value).__name__)
