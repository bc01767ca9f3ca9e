"""Plain texts for continued pre-training: text and Markdown files, `text` of JSON, one column of a table."""

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

from recipe.core.translation import _
from recipe.intake import columns, encodings, record_files, tables
from recipe.intake.cells import Cell, UnreadableFile
from recipe.intake.records import InvalidRecord

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
COLUMN_NAMES = {"text", "content", "document", "passage", "article", "正文", "内容", "文本", "文章", "段落", "原文"}
# Where a long text is split, best first: after paragraphs, lines, sentences, words.
SPLIT_AFTER = ("\n\n", "\n", r"(?<=[。！？!?…])|(?<=[.;；]\s)", r"(?<=[，,、\s])")


class Document(NamedTuple):
    """A text, not yet checked, and its place within the file: "" for all of it."""

    place: str
    text: Cell


def read_documents(path: Path, column: str, details: Dict[str, Any]) -> Iterator[Document]:
    """The texts of one file; `details` gets its encoding. Raises UnreadableFile."""
    if path.suffix.lower() in TEXT_SUFFIXES:
        encoding = encodings.detect(path)
        details["encoding"] = encodings.display_name(encoding)
        text = path.read_text(encoding=encoding, errors=encodings.decode_errors(encoding))
        yield Document("", text.lstrip("\ufeff"))
    elif path.suffix.lower() in (".json", ".jsonl"):
        found = record_files.read(path)
        assert found
        details["encoding"], values = found
        for place, value in values:
            yield Document(place, _record_text(value, column or "text"))
    else:
        yield from _table_texts(path, column, details)


def _record_text(value: Any, key: str) -> str:
    if isinstance(value, InvalidRecord):
        raise UnreadableFile(str(value))
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise UnreadableFile(_("a record has no text under {key!r}; data.columns.text names another key", key=key))
    return value[key]


def _table_texts(path: Path, column: str, details: Dict[str, Any]) -> Iterator[Document]:
    names = {columns.normalize(column)} if column else COLUMN_NAMES

    def find(cells: Sequence[Cell]) -> List[int]:
        return [index for index, cell in enumerate(cells) if columns.normalize(cell) in names]

    headers, any_table = [], False
    for table in tables.tables(path, lambda cells: bool(find(cells))):
        if table.hidden:
            continue
        rows = table.rows()
        header, first = tables.find_header(rows, lambda cells: bool(find(cells)))
        details["encoding"] = table.encoding
        if header is None:
            headers += [columns.show_header(first)] if first else []
            continue
        any_table = True
        index, *others = find(header)
        if others:
            raise UnreadableFile(
                _("{n} columns could hold the texts: name one, data.columns.text=…", n=1 + len(others))
            )
        for mark, cells in rows:
            if index < len(cells) and cells[index] is not None:
                place = f"sheet {table.sheet}, {table.place(mark)}" if table.sheet else table.place(mark)
                yield Document(place, cells[index])
    if not any_table:
        raise UnreadableFile(
            _(
                "no column of texts. Found: {headers}. Name the header text, or say what it is called: "
                "data.columns.text=…",
                headers=_("; ").join(headers) or _("nothing"),
            )
        )


def split_text(text: str, max_chars: int) -> List[str]:
    """Splits a text into pieces of at most `max_chars` characters. The pieces joined are the text."""
    parts = [text]
    for boundary in SPLIT_AFTER:
        if all(len(part) <= max_chars for part in parts):
            break
        parts = [
            piece for part in parts for piece in (_split_after(part, boundary) if len(part) > max_chars else [part])
        ]
    parts = [part[at : at + max_chars] for part in parts for at in range(0, max(1, len(part)), max_chars)]
    joined: List[str] = []
    for part in parts:
        if joined and len(joined[-1]) + len(part) <= max_chars:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _split_after(text: str, boundary: str) -> List[str]:
    if boundary in ("\n\n", "\n"):
        *complete, last = text.split(boundary)
        return [part + boundary for part in complete] + [last]
    return [part for part in re.split(boundary, text) if part]
