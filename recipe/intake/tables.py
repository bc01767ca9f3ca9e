"""Files of rows and columns as text: workbooks (xlsx.py), delimited text (.csv, .tsv, .txt) and Parquet.

Delimited text may be UTF-8 (with or without a mark), UTF-16 or GB18030 (GBK), as Excel, WPS and databases export
it; which one it is comes from the bytes, and the separator from the header. All are read as streams.
"""

import codecs
import contextlib
import csv
import datetime
import decimal
import io
import itertools
import re
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Sequence, Tuple

from recipe.intake import xlsx
from recipe.intake.cells import Cell, FormattedCell, InvalidCell, UnreadableFile
from recipe.intake.formats import iso

LONGEST = 1 << 20  # characters of a field; more means that a quote was never closed
SEPARATORS = ",\t;|"
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# The most frequent characters of Chinese, with their traditional forms.
FREQUENT = frozenset(
    "的一是不了在有我他这中大来上个国和地到时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都"
    "同现当没动面起看定天分还进好小部其些主样理心本前开但因只从想日者意无力与长把机明情问三民两它公高体最新相手间实加又关使点业外"
    "重什每月全或目先更很再见工给做感谢請说怎吗吧呢哪谁为何"
    "這來個國時會對於著過發後裡種經麼學現當沒動還進樣開從無與長機問兩體間實關點業見給謝說嗎為"
)
NAMES = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a mark", "gb18030": "GB18030 (GBK)"}


class Table(NamedTuple):
    """One sheet or file. `rows()` gives (mark, cells) of every row that holds anything; `place(mark)` is "row 5"."""

    sheet: str  # "" where there are no sheets
    hidden: bool
    rows: Callable[[], Iterator[Tuple[Any, List[Cell]]]]
    place: Callable[[Any], str]
    position: Callable[[], float]  # share that was read, 0 to 1
    note: str = ""  # what was found out on opening: the encoding
    strict: bool = False  # whether cells behind the header's last are a fault


def tables(path: Path, is_header: Callable[[Sequence[Cell]], bool]) -> Iterator[Table]:
    """The tables of the file `path`, by its ending. Raises UnreadableFile, also while rows are read."""
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xlsm"):
        yield from map(_sheet, xlsx.sheets(path))
    elif suffix == ".parquet":
        yield _parquet(path)
    else:
        yield _delimited(path, is_header)


def _sheet(sheet: xlsx.Sheet) -> Table:
    return Table(sheet.name, sheet.hidden, sheet.rows, "row {}".format, sheet.position)


def encoding(path: Path) -> str:
    """The encoding of a text file, as Python names it, from its mark or from what all of its bytes can be.

    Raises UnreadableFile for bytes that are none of UTF-8, UTF-16 and GB18030, and for those that could be GB18030 but do not
    read like it: other encodings' bytes mostly make rare characters there.
    """
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    if head[:4] in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0") or head.startswith(b"%PDF"):
        raise UnreadableFile("it is no text: rename it to what it is (.xlsx?)")
    if 0 in head:
        # Half of the bytes of ASCII in UTF-16 are zero; text in any other encoding has none.
        zeros = [head[start::2].count(0) for start in (0, 1)]
        if max(zeros) > len(head) // 16:
            return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        raise UnreadableFile("it holds NUL bytes: save it as UTF-8")
    reasons = []
    for name in ("utf-8", "gb18030"):
        decoder = codecs.getincrementaldecoder(name)(errors(name))
        at = 0
        try:
            with path.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    decoder.decode(block)
                    at += len(block)
                decoder.decode(b"", final=True)
            break
        except UnicodeDecodeError as error:
            reasons.append(f"byte {at + error.start + 1:,} is not {NAMES[name]}")
    else:
        name = ""
    if name == "utf-8":
        return name
    high = sum(byte > 127 for byte in head)
    if 3 * len(re.findall(b"[\xe1-\xef][\x80-\xbf][\x80-\xbf]", head)) > high // 3:
        raise UnreadableFile(f"it is UTF-8 with damage in it ({reasons[0]}): save it as UTF-8 again")
    if not name:
        raise UnreadableFile(f"its encoding is none of UTF-8, UTF-16, GB18030 ({'; '.join(reasons)}): save it as UTF-8")
    if not _reads_like_chinese(codecs.getincrementaldecoder(name)(errors(name)).decode(head)):
        raise UnreadableFile(
            "its encoding is not UTF-8, and as GB18030 (GBK) it does not read like Chinese: save it as UTF-8"
        )
    return name


def _reads_like_chinese(text: str) -> bool:
    """Whether a text is likely Chinese: no signs for private use (Big5 makes them), few characters inside words
    (Western encodings), most characters among the 3,755 common ones of GB2312, and of many a fifth among the most
    frequent (Korean makes common, but not frequent ones).
    """
    han = [character for character in text if ord(character) > 127 and character.isalpha()]
    common = sum(b"\xb0" <= character.encode("gb2312", "replace")[:1] <= b"\xd7" for character in han)
    frequent = sum(character in FREQUENT for character in han)
    inside = len(re.findall(r"(?<=[a-z])[^\x00-\x7f](?=[a-z])", text))
    return (
        not re.search("[\ue000-\uf8ff]", text)
        and inside <= len(han) // 4
        and common >= len(han) * 0.45
        and (len(han) < 30 or frequent >= len(han) * 0.2)
    )


def errors(name: str) -> str:
    """How Python shall treat bytes that are not of encoding `name`."""
    return "euro" if name == "gb18030" else "strict"


def _euro(error: UnicodeError) -> Tuple[str, int]:
    """Chinese Windows writes the euro sign as the one byte 0x80, which GB18030 does not have."""
    if isinstance(error, UnicodeDecodeError) and error.object[error.start] == 0x80:
        return "€", error.start + 1
    raise error


codecs.register_error("euro", _euro)


def _delimited(path: Path, is_header: Callable[[Sequence[Cell]], bool]) -> Table:
    name = encoding(path)
    csv.field_size_limit(LONGEST)
    size = max(1, path.stat().st_size)
    done = [0]

    def place(mark: Tuple[int, int]) -> str:
        number, line = mark
        return f"row {number}" if number == line else f"row {number} (line {line})"

    def records(separator: str) -> Iterator[Tuple[Tuple[int, int], List[Cell]]]:
        with path.open("rb") as raw:
            reader = csv.reader(_text(raw, name), delimiter=separator, strict=True)
            number = 0
            while True:
                number += 1
                mark = (number, reader.line_num + 1)
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    raise UnreadableFile(f"{place(mark)}: {_explained(str(error))}") from None
                except UnicodeDecodeError as error:
                    raise UnreadableFile(
                        f"{place(mark)}: it is not {NAMES.get(name, name)} here ({error.reason})"
                    ) from None
                if number & 1023 == 0:
                    done[0] = raw.tell()
                if any(fields):
                    yield mark, fields  # type: ignore[misc]

    separator = SEPARATORS[0]
    widest = 0
    for candidate in SEPARATORS:
        head: List[List[Cell]] = []
        with contextlib.suppress(UnreadableFile):  # told when the rows are read
            for _, fields in itertools.islice(records(candidate), 20):
                head.append(fields)
        if any(map(is_header, head)):
            separator = candidate
            break
        if max(map(len, head), default=0) > widest:
            separator, widest = candidate, max(map(len, head))
    return Table(
        "", False, lambda: records(separator), place, lambda: done[0] / size, NAMES.get(name, name.upper()), True
    )


def _text(raw: Any, name: str) -> io.TextIOBase:
    return io.TextIOWrapper(raw, encoding=name, errors=errors(name), newline="")


def _explained(what: str) -> str:
    """Python's csv errors, said for whoever made the file."""
    if "field larger" in what:
        return f"a cell that begins here has more than {csv.field_size_limit():,} characters; or its quote never ends"
    if "unexpected end" in what:
        return 'a quoted cell that begins here never ends: close it with ", or write "" for a quote inside'
    if "expected after" in what:
        return 'text stands behind the closing quote of a cell: write "" for a quote inside'
    if "NUL" in what:
        return "a NUL byte: this is no text"
    return what


def _parquet(path: Path) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(str(path))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UnreadableFile(f"it is no Parquet file ({first_line(error)})") from None
    total = max(1, file.metadata.num_rows)
    digits = [7 if kind in (pyarrow.float32(), pyarrow.float16()) else 15 for kind in file.schema_arrow.types]
    done = [0]

    def rows() -> Iterator[Tuple[int, List[Cell]]]:
        yield 0, list(file.schema_arrow.names)
        number = 0
        try:
            for batch in file.iter_batches(batch_size=1024):
                for values in zip(*(column.to_pylist() for column in batch.columns)):
                    number += 1
                    yield number, [_cell(value, kept) for value, kept in zip(values, digits)]
                done[0] = number
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise UnreadableFile(f"it is damaged behind row {number} ({first_line(error)})") from None

    return Table("", False, rows, "row {}".format, lambda: done[0] / total)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _cell(value: Any, digits: int) -> Cell:
    """A typed value as Excel would show it, floats with the digits that their width keeps."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return FormattedCell(str(value).upper())
    if isinstance(value, float):
        if value != value:
            return None  # pandas writes its missing numbers so
        return FormattedCell(int(value) if value.is_integer() and abs(value) < 1e21 else format(value, f".{digits}g"))
    if isinstance(value, (int, decimal.Decimal)):
        return FormattedCell(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return FormattedCell(iso(value))
    return InvalidCell(str(value), f"a {type(value).__name__}, not a text")
