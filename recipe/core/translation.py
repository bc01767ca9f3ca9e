"""Messages in the user's language, by GNU gettext. Python's standard library alone.

RECIPE_LANG decides (en, zh), else LC_ALL, LC_MESSAGES and LANG as in any program; an unknown language means English.
The code holds the English texts, recipe/locale the translations; catalogue.py there collects the texts.

    raise InputWrong(_("{file} has no sheet {sheet}.", file=path, sheet=name))
    ngettext("{n} row", "{n:,} rows", rows)

Texts of a module's constants are marked (`mark`) and translated where they are shown: a constant is made before the
language is known. What is written to JSON and what programs read stays English (`english`).
"""

import contextlib
import functools
import gettext as library
import os
import re
import string
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

FOLDER = Path(__file__).resolve().parent.parent / "locale"
DOMAIN = "recipe"
LANGUAGES = ("en", "zh_CN")
FULL_STOPS = "。！？；：）\n"
SENTENCE_END = re.compile(r"(?<=[.!?]) (?=\S)|\n")
NUMBER = re.compile(r"[\d,.]+")
WORD = re.compile("[A-Za-z]{2,}")
# Too few words of a message's own, and any text with a colon or an "of" would be taken for it.
COMMON = {
    "of", "to", "on", "in", "at", "by", "and", "or", "for", "from", "with", "the", "is", "are", "was", "as", "not",
}  # fmt: skip
MOST_SENTENCES = 10  # looked at one by one in a finished text
_chosen: ContextVar[str] = ContextVar("language", default="")


def language() -> str:
    """The language of messages, one of LANGUAGES: the block's (`use`), else the environment's."""
    return _chosen.get() or _by_environment(
        *(os.environ.get(name, "") for name in ("RECIPE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"))
    )


@functools.lru_cache(maxsize=None)
def _by_environment(*values: str) -> str:
    return known(next(filter(None, values), ""))


def known(name: str) -> str:
    """The language of LANGUAGES that `name` means: zh, zh-CN, zh_TW.UTF-8 are all zh_CN, and what is unknown is en."""
    return "zh_CN" if re.match(r"zh(?![a-z])", name, re.IGNORECASE) else "en"


@contextlib.contextmanager
def use(name: str) -> Iterator[None]:
    """Messages of the block, in this thread, are in this language."""
    token = _chosen.set(known(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def english() -> "contextlib.AbstractContextManager[None]":
    """Messages of the block are English: for JSON and for lines that programs read."""
    return use("en")


@functools.lru_cache(maxsize=None)
def _catalogue(name: str) -> library.NullTranslations:
    return library.translation(DOMAIN, str(FOLDER), [name], fallback=True)


def _(message: str, /, **values: Any) -> str:
    """The message in the user's language, with {values} filled in as by str.format (unless there are none)."""
    text = _catalogue(language()).gettext(message) if message else ""  # gettext's "" is the catalogue's header
    return text.format(**values) if values else text


def ngettext(one: str, many: str, n: int, /, **values: Any) -> str:
    """`one` or `many`, as the language counts `n`, which both may name as {n}."""
    return _catalogue(language()).ngettext(one, many, n).format(n=n, **values)


def mark(message: str) -> str:
    """The message itself: marks a constant for the catalogue. `_(constant)` translates it where it is shown."""
    return message


def listed(items: Iterable[Any]) -> str:
    """Items as an enumeration of this language: a, b, c."""
    return _(", ").join(map(str, items))


def sentences(*texts: str) -> str:
    """Sentences in a row; empty ones are left out. Chinese has no blank after 。"""
    made = ""
    for text in filter(None, (text.strip() for text in texts)):
        made += (" " if made and made[-1] not in FULL_STOPS else "") + text
    return made


def stored(text: str) -> str:
    """The translation of a finished English text, such as one of run.json, by the message that it was made of, or by
    those of its lines and sentences.
    """
    name = language()
    return text if name == "en" else _retold(text, name)


@functools.lru_cache(maxsize=4096)
def _retold(text: str, name: str) -> str:
    found = _catalogue(name).gettext(text) if text else text
    if found != text:
        return found
    for message, translation in _templates(name):
        values = _values(message, text)
        if values is not None:
            found = "".join(literal + _retold(values.get(field, ""), name) for literal, field in translation)
            if not any(map(SENTENCE_END.search, values.values())):
                return found
            break  # a value that holds sentences may be the message's next ones
    share, joined = _by_parts(text, name)
    return joined if share == 1 or found == text else found


def _by_parts(text: str, name: str) -> Tuple[float, str]:
    """(share of parts with a translation, the text) of a text by its lines, or by its sentences in two parts."""
    divided = [text.split("\n")]
    if "\n" not in text:
        ends = list(SENTENCE_END.finditer(text))
        divided = [[text[: end.start()], text[end.end() :]] for end in ends if len(ends) < MOST_SENTENCES]
    best = 0.0, text
    for parts in divided:
        told = [_retold(part, name) for part in parts]
        share = sum(new != old for new, old in zip(told, parts)) / len(parts)
        if share > best[0]:
            best = share, "\n".join(told) if "\n" in text else sentences(*told)
    return best


Pieces = List[Tuple[str, str]]  # what stands before a value, and the value's name ("" at the end)


def _pieces(message: str) -> Pieces:
    """Raises ValueError for a text that is no format."""
    pieces, before = [], ""
    for literal, field, _spec, _conversion in string.Formatter().parse(message):
        before += literal
        if field is not None:
            pieces.append((before, field))
            before = ""
    return [*pieces, (before, "")]


def _values(message: Pieces, text: str) -> Optional[Dict[str, str]]:
    """The values with which the message becomes this text; None if there are none. Each is as short as it can be."""
    if not text.startswith(message[0][0]) or not text.endswith(message[-1][0]):
        return None
    values: Dict[str, str] = {}
    at = len(message[0][0])
    for (_before, field), (after, next_field) in zip(message, message[1:]):
        end = text.find(after, at) if next_field else len(text) - len(after)
        if end < at or values.setdefault(field, text[at:end]) != text[at:end]:
            return None
        if field == "n" and not NUMBER.fullmatch(values[field]):
            return None
        at = end + len(after)
    return values


@functools.lru_cache(maxsize=None)
def _templates(name: str) -> List[Tuple[Pieces, Pieces]]:
    """Every message with values, and its translation; those with most words of their own first."""
    found = []
    entries: Dict[Any, str] = getattr(_catalogue(name), "_catalog", {})
    for key, translation in entries.items():
        message = key if isinstance(key, str) else key[0]
        with contextlib.suppress(ValueError):
            pieces = _pieces(message)
            if len(pieces) > 1 and all(field for _literal, field in pieces[:-1]) and _is_distinct(pieces):
                weight = sum(len(literal) for literal, _field in pieces)
                found.append((weight, pieces, _pieces(translation)))
    return [(pieces, translated) for _weight, pieces, translated in sorted(found, key=lambda one: -one[0])]


def _is_distinct(message: Pieces) -> bool:
    """Whether a text that fits the message was made of it: it has enough of its own beside the values."""
    literals = [literal for literal, _field in message]
    words = [word for literal in literals for word in WORD.findall(literal) if word not in COMMON]
    counts = [field for _literal, field in message[:-1]] == ["n"]  # only a number fits it
    return (
        len(words) > (0 if counts else 1)
        or len("".join(literals)) > 8
        or len(literals[0]) > 4
        or any(sign in literal for literal in literals for sign in ("; ", "×"))
    )


def prepare_streams() -> None:
    """Terminals that lack signs lose signs, not runs. Where the locale has no Chinese signs, Chinese is UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
            if language() != "en" and not _has_chinese(stream.encoding):
                stream.reconfigure(encoding="utf-8", errors="replace")


def _has_chinese(encoding: str) -> bool:
    try:
        return bool("中".encode(encoding))
    except (UnicodeError, LookupError):
        return False


def main() -> None:
    """Print a shell script's message in the user's language: python3 -m recipe.core.translation MESSAGE [VALUE …]."""
    prepare_streams()
    values = iter(map(os.fsencode, sys.argv[2:]))  # file names may be of another encoding
    parts = re.split(r"(%s|%%|\\n)", _(sys.argv[1]) + "\n")
    own = {"%%": "%", "\\n": "\n"}
    made = [
        next(values, b"") if one == "%s" else own.get(one, one).encode(sys.stdout.encoding, "replace") for one in parts
    ]
    sys.stdout.buffer.write(b"".join(made))


if __name__ == "__main__":
    main()
