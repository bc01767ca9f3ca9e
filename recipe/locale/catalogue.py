"""Collects the messages of the code into recipe.po and compiles it: python -m recipe.locale.catalogue [--check].

Messages stand in `_(…)`, `ngettext(…)` and `mark(…)` in Python and Jinja templates, in `message '…'` in shell scripts,
and in the help texts of grammar.json. A translation is kept as long as the code has its message. --check writes
nothing and lists what is missing or out of step (exit code 1).
"""

import ast
import io
import json
import re
import string
import sys
from pathlib import Path
from typing import Any, BinaryIO, Iterator, List, Set, Tuple

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from recipe.core.translation import FOLDER

ROOT = FOLDER.parent.parent
PO = FOLDER / "zh_CN" / "LC_MESSAGES" / "recipe.po"
MO = PO.with_suffix(".mo")
KEYWORDS = {"_": None, "mark": None, "ngettext": (1, 2), "message": None}
PYTHON_NAMES = ("_", "mark", "ngettext")
# name of a file → how Babel reads it; the first that matches
SHELL = ("justw", "docker/image", "docker/runtime/*")
PYTHON = ("recipe/**/*.py", "docker/doctor/*.py")
TEMPLATES = ("recipe/reporting/templates/*",)
SHELL_MESSAGE = re.compile(r"""\bmessage (?:'([^']*)'|"([^"]*)")""")


def shell(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[Tuple[int, str, str, List[str]]]:
    """Babel's extraction for shell scripts: message 'TEXT' [VALUE …]."""
    for number, line in enumerate(io.TextIOWrapper(file, "utf-8"), 1):
        if not line.lstrip().startswith("#"):
            for quoted, double in SHELL_MESSAGE.findall(line):
                yield number, "message", quoted or double, []


def python(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[Tuple[int, str, Any, List[str]]]:
    """Babel's extraction for Python, by the syntax tree: it reads f-strings of every Python."""
    for node in ast.walk(ast.parse(file.read())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name not in PYTHON_NAMES:
            continue
        texts = [one.value for one in node.args[: 2 if name == "ngettext" else 1] if isinstance(one, ast.Constant)]
        if texts and all(isinstance(one, str) for one in texts):
            yield node.lineno, name, tuple(texts) if name == "ngettext" else texts[0], []


def grammar(file: BinaryIO, _keywords: Any, _tags: Any, options: Any) -> Iterator[Tuple[int, str, str, List[str]]]:
    """Babel's extraction for the help texts of grammar.json."""
    for command in json.load(file)["commands"].values():
        texts = [command["group"], command["summary"]]
        if isinstance(command["help"], dict):
            texts += [*command["help"]["text"], *(text for _left, text in command["help"]["options"])]
        for text in texts:
            if text:
                yield 1, "_", text, []


def sources() -> Iterator[Tuple[Path, Any]]:
    """(file, extraction method) of every file with messages."""
    for patterns, method in ((SHELL, shell), (PYTHON, python), (TEMPLATES, "jinja2.ext:babel_extract")):
        for pattern in patterns:
            for path in sorted(ROOT.glob(pattern)):
                if path.is_file() and path.suffix != ".css":
                    yield path, method
    yield ROOT / "recipe" / "cli" / "grammar.json", grammar


def collect() -> Catalog:
    """All messages of the code."""
    found = Catalog(project="recipe", charset="utf-8")
    for path, method in sources():
        with path.open("rb") as file:
            for _line, text, _comments, _context in extract(method, file, KEYWORDS):
                # Without line numbers: they would change with every edit of the code.
                found.add(text, locations=[(str(path.relative_to(ROOT)), 0)])
    return found


def merged(old: Catalog) -> Catalog:
    """All messages of the code, in order, with the translations that `old` has."""
    made = Catalog(locale="zh_CN", project="recipe", fuzzy=False, header_comment="# Simplified Chinese messages.")
    messages = [one for one in collect() if one.id]
    for one in sorted(messages, key=lambda one: (one.locations[0][0], _first(one))):
        known = old.get(one.id)
        text: Any = known.string if known else ""
        if one.pluralizable and not isinstance(text, tuple):
            text = (text,)
        places = sorted({(place, 0) for place, _line in one.locations})
        made.add(one.id, text if one.pluralizable or isinstance(text, str) else text[0], locations=places)
    return made


def _first(one: Message) -> str:
    return str(one.id[0] if isinstance(one.id, (tuple, list)) else one.id)


def load() -> Catalog:
    with PO.open("rb") as file:
        return read_po(file, locale="zh_CN")


def po(catalog: Catalog) -> bytes:
    """The catalogue's text."""
    made = io.BytesIO()
    write_po(made, catalog, width=110, omit_header=False, include_lineno=False)
    # Dates and versions of tools would change it without a change.
    lines = made.getvalue().decode().splitlines(keepends=True)
    return "".join(
        line for line in lines if not re.match(r'"(POT?-|Generated-By|Last-Translator|Language-Team|Report-M)', line)
    ).encode()


class _Compiled(Catalog):
    """With a header that holds no date and no version, so that equal translations are equal bytes."""

    @property
    def mime_headers(self) -> List[Tuple[str, str]]:  # type: ignore[override]
        return [("Content-Type", "text/plain; charset=utf-8"), ("Plural-Forms", self.plural_forms)]


def mo(catalog: Catalog) -> bytes:
    """The compiled catalogue, without what is not translated. Plurals stand there also by themselves: the compiled
    form drops the texts that translation.stored looks for.
    """
    made, whole = io.BytesIO(), _Compiled(locale="zh_CN")
    for one in read_po(io.BytesIO(po(catalog)), locale="zh_CN"):
        if one.id:
            whole.add(one.id, one.string)
    for one in list(whole):
        if one.pluralizable and not whole.get(one.id[1]):
            whole.add(one.id[1], one.string[0])
    write_mo(made, whole)
    return made.getvalue()


def fields(text: str) -> Set[str]:
    """The values that a message names: {name}, or %s of a shell script's, by number."""
    try:
        found = {field for _literal, field, _spec, _conversion in string.Formatter().parse(text) if field is not None}
    except ValueError:  # no format: a lone brace
        found = set()
    return found | {f"%{number}" for number, _ in enumerate(re.findall(r"%s", text))}


def faults(catalog: Catalog) -> List[str]:
    """Messages without a translation, and those whose values differ from their translation's."""
    found = []
    for one in catalog:
        if not one.id:
            continue
        ids = one.id if isinstance(one.id, (tuple, list)) else (one.id,)
        texts = one.string if isinstance(one.string, (tuple, list)) else (one.string,)
        place = one.locations[0][0] if one.locations else ""
        if not all(texts):
            found.append(f"{place}: no translation: {ids[-1]!r}")
        elif any(fields(text) != fields(ids[-1]) for text in texts):
            found.append(f"{place}: other values: {ids[-1]!r} → {texts[0]!r}")
    return found


def check() -> List[str]:
    """What is wrong with the catalogue, as lines."""
    old = load()
    new = merged(old)
    found = faults(new)
    if po(new) != PO.read_bytes():
        found.append(f"{PO.relative_to(ROOT)} is not what the code has: python -m recipe.locale.catalogue")
    if mo(new) != MO.read_bytes():
        found.append(f"{MO.relative_to(ROOT)} is not compiled from it: python -m recipe.locale.catalogue")
    return found


def main(words: List[str]) -> int:
    if words == ["--check"]:
        found = check()
    else:
        old = load() if PO.exists() else Catalog(locale="zh_CN")
        new = merged(old)
        PO.write_bytes(po(new))
        MO.write_bytes(mo(new))
        found = faults(new)
    print("\n".join(found) or "The catalogue is complete.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
