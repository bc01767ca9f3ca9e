"""Plain texts for continued pre-training: text and Markdown files, `text` of JSON, one column of a table."""

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence

from recipe.intake import columns, records, tables
from recipe.intake.cells import Cell, UnreadableFile

PROSE = (".txt", ".md", ".markdown")
NAMES = {"text", "content", "document", "passage", "article", "正文", "内容", "文本", "文章", "段落", "原文"}
HEADER_WITHIN = 20  # rows that hold anything, from the top
# Where a text that is too long may be parted, best first: paragraphs, lines, sentences, words.
SPLIT_POINTS = ("\n\n", "\n", r"(?<=[。！？!?…])|(?<=[.;；]\s)", r"(?<=[，,、\s])")


class Document(NamedTuple):
    """`text` as a cell, so that what is wrong with it can be told; `place` within the file, "" for all of it."""

    place: str
    text: Cell


def documents(path: Path, column: str, found: Dict[str, Any]) -> Iterator[Document]:
    """The texts of one file; what was found out on opening it (encoding, column) goes into `found`. Raises UnreadableFile."""
    suffix = path.suffix.lower()
    if suffix in PROSE:
        name = tables.encoding(path)
        found["encoding"] = tables.NAMES.get(name, name.upper())
        yield Document("", path.read_text(encoding=name, errors=tables.errors(name)).lstrip("\ufeff"))
    elif suffix in (".json", ".jsonl"):
        found["encoding"], values = records.records(path)
        for place, value in values:
            yield Document(place, _text_of(value, column))
    else:
        yield from _cells(path, column, found)


def _text_of(value: Any, column: str) -> str:
    if isinstance(value, records.InvalidRecord):
        raise UnreadableFile(str(value))
    if isinstance(value, str):
        return value
    key = column or "text"
    if not isinstance(value, dict) or not isinstance(value.get(key), str):
        raise UnreadableFile(f"a record has no text under {key!r}; data.columns.text names another key")
    return value[key]


def _cells(path: Path, column: str, found: Dict[str, Any]) -> Iterator[Document]:
    wanted = {columns.normalize(column)} if column else NAMES

    def at(cells: Sequence[Cell]) -> List[int]:
        return [index for index, cell in enumerate(cells) if columns.normalize(cell) in wanted]

    headers, any_table = [], False
    for table in tables.tables(path, lambda cells: bool(at(cells))):
        if table.hidden:
            continue
        index, first = None, None
        for number, (mark, cells) in enumerate(table.rows()):
            if index is None:
                first = first or cells
                if len(at(cells)) > 1:
                    raise UnreadableFile(
                        f"{len(at(cells))} columns could hold the texts: name one, data.columns.text=…"
                    )
                index = at(cells)[0] if at(cells) else None
                if index is None and number >= HEADER_WITHIN:
                    break
                continue
            if index < len(cells) and cells[index] is not None:
                place = f"sheet {table.sheet}, {table.place(mark)}" if table.sheet else table.place(mark)
                yield Document(place, cells[index])
        found["encoding"] = table.note
        any_table = any_table or index is not None
        if index is None and first:
            headers.append(", ".join(str(cell).strip()[:20] for cell in first if cell))
    if not any_table:
        raise UnreadableFile(
            f"no column of texts. Found: {'; '.join(headers) or 'nothing'}. Call its header text, or say what it is "
            f"called: data.columns.text=…"
        )


def split_text(text: str, most: int) -> List[str]:
    """`text` in pieces of at most `most` characters, parted where it is best; the pieces joined are the text."""
    parts = [text]
    for sign in SPLIT_POINTS:
        if all(len(part) <= most for part in parts):
            break
        parts = [one for part in parts for one in (_parted(part, sign) if len(part) > most else [part])]
    parts = [part[at : at + most] for part in parts for at in range(0, max(1, len(part)), most)]
    joined: List[str] = []
    for part in parts:
        if joined and len(joined[-1]) + len(part) <= most:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _parted(text: str, sign: str) -> List[str]:
    """`text` parted behind every `sign`, nothing left out."""
    if sign in ("\n\n", "\n"):
        found = text.split(sign)
        return [part + sign for part in found[:-1]] + [found[-1]]
    return [part for part in re.split(sign, text) if part]
