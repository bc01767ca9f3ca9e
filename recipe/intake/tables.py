"""Tables as text: the sheets of workbooks (xlsx.py), delimited text (.csv, .tsv, .txt) and Parquet, streamed."""

import contextlib
import csv
import datetime
import decimal
import io
import itertools
import re
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

from recipe.core.translation import _, ngettext
from recipe.intake import encodings, parquet, xlsx
from recipe.intake.cells import Cell, FormattedCell, InvalidCell, Table, UnreadableFile
from recipe.intake.formats import iso

LONGEST = 1 << 20  # characters of a field; more means that a quote was never closed
HEADER_WITHIN = 20  # rows that are not blank
SEPARATORS = ",\t;|"
MANY_LINES = 8  # with a comma each, as a list in an answer rarely has
MARKDOWN_RULE = re.compile(":?-*:?")


def tables(path: Path, is_header: Callable[[Sequence[Cell]], bool]) -> Iterator[Table]:
    """The tables of the file `path`, by its suffix. Raises UnreadableFile, also while rows are read."""
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xlsm"):
        yield from xlsx.sheets(path)
    elif suffix == ".parquet":
        yield _parquet(path)
    else:
        yield _Delimited(path).table(is_header)


def find_header(
    rows: Iterator[Tuple[Any, List[Cell]]], is_header: Callable[[Sequence[Cell]], bool]
) -> Tuple[Optional[List[Cell]], List[Cell]]:
    """(the header or None, the first row), searched in the first rows that are not blank."""
    first: List[Cell] = []
    for _mark, cells in itertools.islice(rows, HEADER_WITHIN):
        first = first or cells
        if is_header(cells):
            return cells, first
    return None, first


class _Delimited:
    """A text file of separated fields."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.encoding = encodings.detect(path)
        self.size = max(1, path.stat().st_size)
        self.done = 0

    def table(self, is_header: Callable[[Sequence[Cell]], bool]) -> Table:
        separator = self._separator(is_header)
        return Table(
            "", False, lambda: self._rows(separator), self._place, lambda: self.done / self.size,
            encodings.display_name(self.encoding), True,
        )  # fmt: skip

    def _separator(self, is_header: Callable[[Sequence[Cell]], bool]) -> str:
        """The separator with which a row is a header, else the one that gives the most columns."""
        best, widest = SEPARATORS[0], 0
        for candidate in SEPARATORS:
            head: List[List[Cell]] = []
            with contextlib.suppress(UnreadableFile):  # reported when the rows are read
                head.extend(fields for _mark, fields in itertools.islice(self._rows(candidate), HEADER_WITHIN))
            if any(map(is_header, head)):
                return candidate
            if max(map(len, head), default=0) > widest:
                best, widest = candidate, max(map(len, head))
        return best

    @staticmethod
    def _place(mark: Tuple[int, int]) -> str:
        row, line = mark
        return f"row {row}" if row == line else f"row {row} (line {line})"

    @staticmethod
    def _at(mark: Tuple[int, int], problem: str) -> str:
        row, line = mark
        place = _("row {row}", row=row) if row == line else _("row {row} (line {line})", row=row, line=line)
        return _("{place}: {problem}", place=place, problem=problem)

    def _rows(self, separator: str) -> Iterator[Tuple[Tuple[int, int], List[Cell]]]:
        csv.field_size_limit(LONGEST)
        with self.path.open("rb") as raw:
            errors = encodings.decode_errors(self.encoding)
            text = io.TextIOWrapper(raw, encoding=self.encoding, errors=errors, newline="")
            reader = csv.reader(text, delimiter=separator, strict=True)
            for row in itertools.count(1):
                mark = (row, reader.line_num + 1)
                try:
                    fields: List[Cell] = [*next(reader)]
                except StopIteration:
                    return
                except csv.Error as error:
                    raise UnreadableFile(self._at(mark, _explain(str(error)))) from None
                except UnicodeDecodeError as error:
                    name = _(encodings.display_name(self.encoding))
                    what = _("it is not {encoding} here ({error})", encoding=name, error=error.reason)
                    raise UnreadableFile(self._at(mark, what)) from None
                if row & 1023 == 0:
                    self.done = raw.tell()
                if reader.line_num > mark[1]:  # a quoted cell of several lines
                    fields = [_swallowing(field or "", separator, len(fields)) for field in fields]
                if separator == "|":  # Markdown pads its cells, and draws a line below the header
                    fields = [field.strip() if type(field) is str else field for field in fields]
                    if all(MARKDOWN_RULE.fullmatch(field or "") for field in fields):
                        continue
                if any(fields):
                    yield mark, fields


def _swallowing(field: str, separator: str, width: int) -> Cell:
    """A field; as an invalid cell if its quote swallowed the rows below it: if its lines are whole rows.

    Lines with a tab are rows in any case, those with a comma only if they are many, or begin with questions.
    """
    if width < 2 or "\n" not in field:
        return field
    rows = [line.rstrip("\r").split(separator) for line in field.split("\n")[1:] if line.strip()]
    if not rows or any(len(row) != width or not all(part.strip() for part in row[:2]) for row in rows):
        return field
    questions = sum(row[0].rstrip().endswith(("?", "？")) for row in rows)
    if separator == "," and len(rows) < MANY_LINES and (len(rows) < 2 or 2 * questions < len(rows)):
        return field
    what = ngettext(
        'its quote is closed {n} more row below: close it in its own row, or write "" for a quote',
        'its quote is closed {n} more rows below: close it in its own row, or write "" for a quote',
        len(rows),
    )
    return InvalidCell(field, what)


def _explain(message: str) -> str:
    """A message of Python's csv module, for the person who made the file."""
    if "field larger" in message:
        return _(
            "a cell that begins here has more than {n:,} characters; or its quote never ends", n=csv.field_size_limit()
        )
    if "unexpected end" in message:
        return _('a quoted cell that begins here never ends: close it with ", or write "" for a quote inside')
    if "expected after" in message:
        return _('text follows the closing quote of a cell: write "" for a quote inside')
    if "NUL" in message:
        return _("a NUL byte: this is not text")
    return message


def _parquet(path: Path) -> Table:
    import pyarrow

    file = parquet.open_parquet(path)
    total = max(1, file.metadata.num_rows)
    digits = [7 if kind in (pyarrow.float32(), pyarrow.float16()) else 15 for kind in file.schema_arrow.types]
    done = 0

    def rows() -> Iterator[Tuple[int, List[Cell]]]:
        nonlocal done
        yield 0, list(file.schema_arrow.names)
        for done, batch in parquet.batches(file):
            columns = [parquet.values(column, done) for column in batch.columns]
            for number, values in enumerate(zip(*columns), start=done + 1):
                yield number, [_parquet_cell(value, kept) for value, kept in zip(values, digits)]

    return Table("", False, rows, "row {}".format, lambda: done / total)


def _parquet_cell(value: Any, digits: int) -> Cell:
    """A typed value as Excel would show it; floats with the digits that their width holds."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return FormattedCell(str(value).upper())
    if isinstance(value, float):
        if value != value:
            return None  # pandas writes missing numbers as NaN
        return FormattedCell(int(value) if value.is_integer() and abs(value) < 1e21 else format(value, f".{digits}g"))
    if isinstance(value, (int, decimal.Decimal)):
        return FormattedCell(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return FormattedCell(iso(value))
    return InvalidCell(str(value), _("a {type}, not text", type=type(value).__name__))
