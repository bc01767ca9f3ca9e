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
from typing import Any, Dict, Iterable, Iterator, List, Tuple

FOLDER = Path(__file__).resolve().parent.parent / "locale"
DOMAIN = "recipe"
LANGUAGES = ("en", "zh_CN")
FULL_STOPS = "。！？；：\n"
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
    text = _catalogue(language()).gettext(message)
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
    """The translation of a finished English text, such as one of run.json, by the message that it was made of."""
    name = language()
    if name == "en" or not text:
        return text
    catalogue = _catalogue(name)
    found = catalogue.gettext(text)
    if found != text:
        return found
    for pattern, message in _templates(name):
        match = pattern.fullmatch(text)
        if match:
            values = {field: stored(value) for field, value in match.groupdict().items()}
            return _plain(catalogue.gettext(message)).format(**values)
    return text


@functools.lru_cache(maxsize=None)
def _templates(name: str) -> List[Tuple[re.Pattern, str]]:
    """Every message with values, as a pattern of the texts it can become; those with most words of their own first."""
    found: List[Tuple[int, re.Pattern, str]] = []
    entries: Dict[Any, str] = getattr(_catalogue(name), "_catalog", {})
    for message in entries:
        if not isinstance(message, str) or "{" not in message:
            continue
        pattern, weight, fields = "", 0, set()
        for literal, field, _spec, _conversion in string.Formatter().parse(message):
            pattern += re.escape(literal)
            weight += len(literal)
            if field is not None:
                pattern += f"(?P={field})" if field in fields else f"(?P<{field}>.*?)"
                fields.add(field)
        if weight > 3:
            found.append((weight, re.compile(pattern, re.DOTALL), message))
    return [(pattern, message) for _weight, pattern, message in sorted(found, key=lambda one: -one[0])]


def _plain(message: str) -> str:
    """The message with its {values} as they come: the parts of a finished text are texts already."""
    parts = string.Formatter().parse(message)
    return "".join(
        literal.replace("{", "{{").replace("}", "}}") + (f"{{{field}}}" if field is not None else "")
        for literal, field, _spec, _conversion in parts
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
