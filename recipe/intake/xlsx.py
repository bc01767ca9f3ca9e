"""Excel workbooks (.xlsx, .xlsm) as text, cell by cell as a person sees them, read as a stream.

Many times as fast as openpyxl, which is kept as the reference in the tests: expat walks through the sheet, texts
that the cells share wait in a file, so memory does not grow with rows. Nothing in a workbook is ever run or
followed: formulas count by the value that was stored with them, links and macros are not looked at, XML that
declares entities is refused, and so is an archive that unpacks to more than LIMIT.

Source of the format: ECMA-376, part 1 (SpreadsheetML), 18.3 (sheets), 18.4 (shared strings).
"""

import contextlib
import datetime
import itertools
import os
import posixpath
import re
import struct
import tempfile
import zipfile
import zlib
from array import array
from bisect import bisect
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
from xml.parsers import expat

from recipe.intake.cells import ERRORS, Cell, Damaged, Odd, Shown
from recipe.intake.formats import Formats, iso

LIMIT = 2 << 30  # bytes an archive may unpack to
LONGEST = 1 << 20  # characters of one cell; Excel itself stops at 32,767
CHUNK = 1 << 17
KEPT = 1 << 25  # characters of shared texts in memory
BLANK_ROWS = re.compile(rb'<row [^<>]*?\br="\d+"[^<>]*?(?:/>|>(?:<c [^<>]*/>)*</row>)')
LESS = "\x7f"  # in place of a tag's < where texts and tags were decoded at one go, see _found


def _pair(pattern: str) -> Tuple[Any, Any]:
    return re.compile(pattern), re.compile(pattern.replace("<", LESS))


# What nearly all programs write. A block of it needs no XML parser, or only its decoding: see _found.
PLAIN_ROWS = _pair(
    r'<row [^<>]*?\br="(\d+)"[^<>]*>|</row>|<c r="([A-Z]+)\d+"(?: s="(\d+)")?(?: t="(s|n|b|str|inlineStr)")?'
    r'(?:(/)>|>(?:<v>([^<]*)</v>|<is><t(?: xml:space="preserve")?>([^<]*)</t></is>)</c>)'
)
PLAIN_TEXTS = _pair(r'<si><t(?: xml:space="preserve")?>([^<]*)</t>(?:(<)phoneticPr [^<>]*/>)?</si>')
MERGED = re.compile(rb'mergeCell [^<>]*?ref="([A-Z]+)(\d+):[A-Z]+(\d+)"')
ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
WRONG = (
    zipfile.BadZipFile, zipfile.LargeZipFile, expat.ExpatError, EOFError, KeyError, IndexError, ValueError,
    OverflowError, NotImplementedError, RuntimeError, OSError, zlib.error, struct.error,
)  # fmt: skip


class Sheet(NamedTuple):
    """One sheet. `rows()` gives (row number from 1, cells from column A) of every row that holds anything."""

    name: str
    hidden: bool
    rows: Callable[[], Iterator[Tuple[int, List[Cell]]]]
    position: Callable[[], float]  # share of the sheet that was read, 0 to 1


def sheets(path: Path) -> Iterator[Sheet]:
    """The sheets of the workbook `path`, in order; charts and dialogs are none.

    Raises Damaged, here or while rows are read, for whatever is no workbook: the text says what it is.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        raise Damaged("it is an old .xls file or protected by a password")
    if not head.startswith(b"PK"):
        raise Damaged("it is no .xlsx file, whatever its name says" if head else "it is empty (0 bytes)")
    with _told(), zipfile.ZipFile(str(path)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > LIMIT:
            raise Damaged(f"it unpacks to {size / 1e9:.1f} GB, more than {LIMIT / 1e9:.1f} GB")
        yield from _Workbook(archive).sheets()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Whatever zipfile, zlib, expat or a number that is none raise, as Damaged."""
    try:
        yield
    except KeyError as error:
        raise Damaged(f"a part of it is missing: {error.args[0]}") from None
    except WRONG as error:
        raise Damaged(f"it is damaged or cut off: {type(error).__name__}: {error}") from None


class _Workbook:
    """What the sheets of one archive share: relations, formats, texts."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.names = {name.lower(): name for name in archive.namelist()}
        office = [part for kind, part in self._relations("").values() if kind == "officeDocument"]
        if not office:
            raise Damaged("it is a ZIP archive, but no workbook")
        self.main = office[0]
        self.listed: List[Dict[str, str]] = []
        self.epoch = datetime.datetime(1899, 12, 30)
        self._walk(self.main, self._workbook)
        self.parts = self._relations(self.main)
        kinds = {kind: part for kind, part in self.parts.values()}
        self.render = Formats(self.epoch)
        if "styles" in kinds:
            self._styles(kinds["styles"])
        self.texts = kinds.get("sharedStrings")
        self.strings: Optional[_Strings] = None

    def sheets(self) -> Iterator[Sheet]:
        if not self.listed:
            raise Damaged("it lists no sheets")
        for attributes in self.listed:
            identity = next((v for k, v in attributes.items() if k.rpartition(":")[2] == "id"), "")
            kind, part = self.parts.get(identity, ("", ""))
            if kind == "worksheet":
                rows = _Rows(self, part)
                hidden = attributes.get("state", "visible") != "visible"
                yield Sheet(attributes.get("name", "?"), hidden, rows.read, rows.position)

    def open(self, part: str) -> IO[bytes]:
        return self.archive.open(self.names[part.lower()])

    def size(self, part: str) -> int:
        return self.archive.getinfo(self.names[part.lower()]).file_size

    def shared(self) -> "_Strings":
        if self.strings is None:
            self.strings = _Strings()
            if self.texts and self.texts.lower() in self.names:
                with self.open(self.texts) as stream:
                    self.strings.fill(stream)
        return self.strings

    def _walk(self, part: str, start: Callable[[str, Dict[str, str]], None]) -> None:
        with self.open(part) as stream:
            _parse(stream, start)

    def _relations(self, part: str) -> Dict[str, Tuple[str, str]]:
        """Relation id → (kind, part's name) of `part`; "" is the archive itself."""
        folder, name = posixpath.split(part)
        found: Dict[str, Tuple[str, str]] = {}

        def start(tag: str, attributes: Dict[str, str]) -> None:
            if tag == "Relationship" and attributes.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, attributes["Target"])).lstrip("/")
                found[attributes["Id"]] = (attributes["Type"].rpartition("/")[2], target)

        relations = posixpath.join(folder, "_rels", f"{name}.rels")
        if relations.lower() in self.names:
            self._walk(relations, start)
        return found

    def _workbook(self, tag: str, attributes: Dict[str, str]) -> None:
        if tag == "sheet":
            self.listed.append(attributes)
        elif tag == "workbookPr" and attributes.get("date1904") in ("1", "true"):
            self.epoch = datetime.datetime(1904, 1, 1)

    def _styles(self, part: str) -> None:
        inside = [False, False]

        def start(tag: str, attributes: Dict[str, str]) -> None:
            if tag == "numFmts":
                inside[1] = True
            elif tag == "numFmt" and inside[1]:  # formats of conditions (dxfs) have numbers of their own
                self.render.codes[int(attributes["numFmtId"])] = attributes.get("formatCode", "General")
            elif tag in ("cellXfs", "cellStyleXfs", "cellStyles", "dxfs"):
                inside[0], inside[1] = tag == "cellXfs", False
            elif tag == "xf" and inside[0]:
                self.render.styles.append(int(attributes.get("numFmtId", 0)))

        self._walk(part, start)


def _parser() -> Any:
    def refuse(*_: Any) -> None:
        raise Damaged("its XML declares entities, which no workbook needs")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.buffer_size = 1 << 16
    parser.StartDoctypeDeclHandler = refuse
    return parser


class _Local(Dict[str, str]):
    """Tag → tag without its prefix (some programs write x:row for row)."""

    def __missing__(self, tag: str) -> str:
        self[tag] = tag.rpartition(":")[2]
        return self[tag]


def _parse(stream: IO[bytes], start: Callable[[str, Dict[str, str]], None]) -> None:
    local = _Local()
    parser = _parser()
    parser.StartElementHandler = lambda tag, attributes: start(local[tag], attributes)
    for block in iter(lambda: stream.read(CHUNK), b""):
        parser.Parse(block, False)
    parser.Parse(b"", True)


class _Strings:
    """The texts that cells share by number. Of what goes beyond KEPT, all but 8 bytes each lies in a file."""

    def __init__(self) -> None:
        self.kept: List[Cell] = []
        self.room = KEPT
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the workbook
        self.ends = array("Q", [0])
        self.window = b""
        self.low = self.high = 0

    def fill(self, stream: IO[bytes]) -> None:
        """Read a sharedStrings part: the text of runs joined, without the phonetic guides."""
        local = _Local()
        waiting: List[str] = []
        parts: List[str] = []
        state = [False, False]  # inside t, inside rPh

        def start(tag: str, attributes: Dict[str, str]) -> None:
            tag = local[tag]
            if tag == "t":
                state[0] = not state[1]
            elif tag == "si":
                parts.clear()
            elif tag == "rPh":
                state[1] = True

        def stop(tag: str) -> None:
            tag = local[tag]
            if tag == "t":
                state[0] = False
            elif tag == "si":
                waiting.append("".join(parts))
            elif tag == "rPh":
                state[1] = False

        def text(data: str) -> None:
            if state[0]:
                parts.append(data)
                if len(parts) > 1000:  # of up to 65,536 characters
                    _text("".join(parts))

        parser = _parser()
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, stop, text
        for block, plain in _blocks(stream, b"<si>", PLAIN_TEXTS, _signs_of_texts):
            if plain is None:
                parser.Parse(block, False)
            else:
                waiting += [found[0] for found in plain]
            self._add(waiting)
            waiting.clear()
        parser.Parse(b"", True)
        self._add(waiting)
        self.file.flush()

    def _add(self, texts: List[str]) -> None:
        if self.room > 0:
            self.kept += [
                _text(text) if "_x" in text or text[:1] == "#" or len(text) > LONGEST else text for text in texts
            ]
            self.room -= sum(map(len, texts))
            return
        end = self.ends[-1]
        for text in texts:
            data = text.encode("utf-8")
            end += len(data)
            self.ends.append(end)
            self.file.write(data)

    def __getitem__(self, index: int) -> Cell:
        if 0 <= index < len(self.kept):
            return self.kept[index]
        index -= len(self.kept)
        if not 0 <= index < len(self.ends) - 1:
            raise Damaged("a cell names a shared text that is not there")
        low, high = self.ends[index], self.ends[index + 1]
        if not self.low <= low <= high <= self.high:
            if not self.high <= low < self.high + CHUNK:
                return _text(os.pread(self.file.fileno(), high - low, low).decode("utf-8"))
            # Read on: cells mostly come in the order of their texts.
            self.window = os.pread(self.file.fileno(), max(CHUNK, high - low), low)
            self.low, self.high = low, low + len(self.window)
        return _text(self.window[low - self.low : high - self.low].decode("utf-8"))


def _text(text: str) -> Cell:
    """A stored text as the cell's: escapes undone, an error told as one."""
    if len(text) > LONGEST:
        raise Damaged(f"a cell holds more than {LONGEST:,} characters")
    if "_x" in text:
        text = ESCAPED.sub(lambda found: chr(int(found.group(1), 16)), text)
    return Odd(text, f"the error {text}") if text in ERRORS else text


class _Rows:
    """The rows of one sheet."""

    def __init__(self, book: _Workbook, part: str) -> None:
        self.book, self.part = book, part
        self.done = 0

    def position(self) -> float:
        return self.done / max(1, self.book.size(self.part))

    def merges(self) -> Dict[int, List[Tuple[int, int]]]:
        """Cells joined downwards: column from 0 → (first row, last row) of each, in order."""
        found: Dict[int, Dict[Tuple[int, int], None]] = {}
        with self.book.open(self.part) as stream:
            before = b""
            for block in iter(lambda: stream.read(CHUNK), b""):
                for match in MERGED.finditer(before + block):
                    left, top, bottom = (part.decode() for part in match.groups())
                    if top != bottom:  # over several columns: the value stands in the first
                        found.setdefault(_column(left), {})[int(top), int(bottom)] = None
                before = block[-200:]
        return {column: sorted(ranges) for column, ranges in found.items()}

    def read(self) -> Iterator[Tuple[int, List[Cell]]]:
        """The rows; where cells are joined downwards, every row has the value, as a person sees it.

        What is joined is told behind the rows. It is looked up, by unpacking the sheet once more, when a row has a
        gap: rows without any cannot be part of it.
        """
        merges: Optional[Dict[int, List[Tuple[int, int]]]] = None
        before: List[Cell] = []
        last = 0
        with _told():
            for number, cells in itertools.chain.from_iterable(self._read()):
                if None in cells or len(cells) < len(before):
                    merges = self.merges() if merges is None else merges
                    for column, ranges in merges.items():
                        top, bottom = ranges[max(0, bisect(ranges, (number, 0)) - 1)]
                        if top <= last < number <= bottom and column < len(before):
                            cells.extend([None] * (column + 1 - len(cells)))
                            if cells[column] is None:
                                cells[column] = before[column]
                yield number, cells
                before, last = cells, number

    def _value(self, kind: Optional[str], style: str, text: str, formula: bool = False) -> Cell:
        """A cell's text, from its type, its style and what is stored."""
        if kind == "s":
            return self.book.shared()[int(text)] if text else None
        if kind == "inlineStr" or kind == "str":
            return _text(text)
        if not text:
            return Odd("", "a formula without a stored value: open the file in Excel and save it") if formula else None
        try:
            if kind is None or kind == "n":
                return self.book.render[int(style or 0)](text)
            if kind == "b":
                return Shown("TRUE" if text.strip() in ("1", "true") else "FALSE")
            if kind == "d":
                when = text.strip().rstrip("Z")
                return Shown(
                    iso(datetime.datetime.fromisoformat(when) if "-" in when else datetime.time.fromisoformat(when))
                )
        except ValueError:
            return Odd(text, f"{text[:20]!r} is stored as a number or date and is none: type it again")
        return Odd(text, f"the error {text}")

    def _read(self) -> Iterator[List[Tuple[int, List[Cell]]]]:
        columns, value_of, shared = _Columns(), self._value, self.book.shared()
        ready: List[Tuple[int, List[Cell]]] = []
        cells: List[Cell] = []
        parts: List[str] = []
        attributes: Dict[str, str] = {}
        number = 0
        collecting = phonetic = formula = False

        def put(column: int, value: Cell) -> None:
            if column > len(cells):
                cells.extend([None] * (column - len(cells)))
            elif column < len(cells):
                cells[column] = value
                return
            cells.append(value)

        def start(tag: str, given: Dict[str, str]) -> None:
            nonlocal cells, attributes, number, collecting, phonetic, formula
            if tag == "c":
                attributes = given
                formula = False
                parts.clear()
            elif tag == "v" or tag == "t":
                collecting = not phonetic
            elif tag == "row":
                cells = []
                number = int(given.get("r", number + 1))
            elif tag == "f":
                formula = True
            elif tag == "rPh":
                phonetic = True
            elif ":" in tag:
                start(tag.rpartition(":")[2], given)

        def stop(tag: str) -> None:
            nonlocal collecting, phonetic
            if tag == "v" or tag == "t":
                collecting = False
            elif tag == "c":
                place = attributes.get("r")
                column = columns[place.rstrip("0123456789")] if place else len(cells)
                put(column, value_of(attributes.get("t"), attributes.get("s", ""), "".join(parts), formula))
            elif tag == "row":
                if any(cells):
                    ready.append((number, cells))
            elif tag == "rPh":
                phonetic = False
            elif ":" in tag:
                stop(tag.rpartition(":")[2])

        def characters(data: str) -> None:
            if collecting:
                parts.append(data)
                if len(parts) > 1000:  # of up to 65,536 characters
                    _text("".join(parts))

        parser = _parser()
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, stop, characters
        with self.book.open(self.part) as stream:
            for block, plain in _blocks(stream, b"<row ", PLAIN_ROWS, _signs_of_rows, BLANK_ROWS):
                self.done += len(block)
                if plain is None:
                    parser.Parse(block, False)
                else:
                    for row, letters, style, kind, _, stored, inline in plain:
                        if letters:
                            if inline and inline[0] != "#" and "_x" not in inline and len(inline) < LONGEST:
                                value = inline  # nothing that _text would change
                            elif kind == "s" and stored:
                                value = shared[int(stored)]
                            else:
                                value = value_of(kind or None, style, inline or stored)
                            column = columns[letters]
                            if column == len(cells):
                                cells.append(value)
                            else:
                                put(column, value)
                        elif row:
                            cells, number = [], int(row)
                        elif any(cells):
                            ready.append((number, cells))
                yield ready
                ready.clear()
            parser.Parse(b"", True)
            yield ready


def _blocks(
    stream: IO[bytes], mark: bytes, plain: Any, signs: Callable[[Any], int], blank: Any = None
) -> Iterator[Tuple[bytes, Any]]:
    """(bytes, what `plain` found in them), cut before `mark`; None as the second where it did not find all of them.

    `signs` tells how many signs < the matches hold: if there are no others, the matches are all.

    The first block is what stands before the first mark. `blank` matches what can be left out: a sheet may hold a
    million rows that were formatted and never used. Comments and CDATA sections may hold anything, marks too:
    behind one all goes to the parser.
    """
    rest = b""
    head = True
    simple = False
    for data in iter(lambda: stream.read(CHUNK), b""):
        data = rest + data
        if head and mark in data:
            head = False
            before, data = data[: data.index(mark)], data[data.index(mark) :]
            simple = _is_utf8(before)
            yield before, None
        cut = data.rfind(mark)
        if cut <= 0:
            rest = data
            if len(rest) > 8 * LONGEST:
                head = simple = False
                yield rest, None
                rest = b""
            continue
        block, rest = data[:cut], data[cut:]
        if simple and blank and b"/>" in block and b"<!" not in block:
            block = blank.sub(b"", block)
        found = _found(block, plain, signs) if simple else None
        if found is None:
            simple = simple and b"<!" not in block
        yield block, found
    if simple and blank and b"<!" not in rest:
        rest = blank.sub(b"", rest)
    yield rest, None


def _is_utf8(head: bytes) -> bool:
    declared = re.match(
        rb"""(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*?(?:encoding=["']([\w-]+)["'][^>]*)?\?>)?\s*<[^?!]""", head
    )
    return bool(declared) and (declared.group(1) or b"utf-8").lower() == b"utf-8" and b"<!" not in head


def _signs_of_rows(found: Any) -> int:
    return sum([1 if not cell[1] or cell[4] else 6 if cell[3] == "inlineStr" else 4 for cell in found])


def _signs_of_texts(found: Any) -> int:
    return sum([4 + len(text[1]) for text in found])


def _found(block: bytes, plain: Tuple[Any, Any], signs: Callable[[Any], int]) -> Any:
    """All matches of `plain`, texts decoded, if they hold all signs < of the block; else None.

    A block with &amp; and the like is decoded by the XML parser at one go, as if it were a single text: its tags'
    own signs < are replaced meanwhile, by one that texts do not hold: if one does, the count tells.
    """
    if b"\r" in block:  # XML makes a line feed of it
        return None
    if b"&" not in block:
        try:
            found = plain[0].findall(block.decode("utf-8"))
        except UnicodeDecodeError:
            return None
        return found if found and signs(found) == block.count(b"<") else None
    parts: List[str] = []
    parser = _parser()
    parser.CharacterDataHandler = parts.append
    try:
        parser.Parse(b"<x>" + block.replace(b"<", LESS.encode()) + b"</x>", True)
    except expat.ExpatError:
        return None
    text = "".join(parts)
    found = plain[1].findall(text)
    return found if found and signs(found) == text.count(LESS) else None


class _Columns(Dict[str, int]):
    """Letters of a column → its number from 0. More than Excel's 16,384 columns are refused."""

    def __missing__(self, letters: str) -> int:
        self[letters] = number = _column(letters)
        return number


def _column(letters: str) -> int:
    number = 0
    for letter in letters.upper():
        if not "A" <= letter <= "Z":
            raise Damaged(f"a cell's place is {letters!r}")
        number = number * 26 + ord(letter) - 64
    if not 1 <= number <= 16384:
        raise Damaged(f"a cell's column is {letters!r}")
    return number - 1
