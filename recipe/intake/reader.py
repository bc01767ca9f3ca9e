"""Reads the files of a dataset one after the other, as a stream: of a row, only two 8-byte numbers stay in memory."""

from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from recipe.core.settings import Data
from recipe.core.translation import _, english, listed, sentences
from recipe.intake import agent, columns, documents, images, record_files, records, signatures, tables
from recipe.intake.cells import OtherFormat, UnreadableFile
from recipe.intake.checks import find_control
from recipe.intake.collector import Collector
from recipe.intake.columns import ANSWER, QUESTION
from recipe.intake.records import InvalidRecord
from recipe.intake.rows import TableReader
from recipe.intake.writer import Writer


class DatasetReader(Collector):
    """Reads files into the writer; whatever is wrong with one goes to `errors`."""

    def __init__(self, data: Data, writer: Writer, pictures: Optional[images.Images] = None) -> None:
        super().__init__(data, writer, pictures)
        self.chosen = {role: name for role, name in data.columns.model_dump(exclude={"text", "image"}).items() if name}
        self.read: List[Dict[str, Any]] = []  # what was found in each file and sheet
        self.skipped: List[str] = []  # sheets that were not read

    def read_conversations(self, path: Path, name: str) -> None:
        """Reads a file of questions and answers, of any supported format."""
        self.path = path
        try:
            signatures.check(path)
            found = record_files.read(path)
            if found is None:
                self._read_tables(path, name)
            else:
                self._read_turns(name, *found)
        except UnreadableFile as error:
            what = _("cannot be opened: {error}.", error=error)
            if path.suffix.lower() in (".xlsx", ".xlsm") and not isinstance(error, OtherFormat):
                what = sentences(what, _("Save it again as .xlsx."))
            self.errors.add(name, what)

    def read_texts(self, path: Path, name: str, max_chars: int) -> None:
        """Reads a file of plain texts in pieces of at most `max_chars` characters, like XTuner's pretrain_map_fn."""
        before = self.writer.turns
        details: Dict[str, Any] = {"encoding": ""}
        try:
            signatures.check(path)
            for document in documents.read_documents(path, self.data.columns.text, details):
                text = self.text(document.text, f"{name}, {document.place}" if document.place else name)
                if text is None:
                    self.blank_dropped += 1
                    continue
                for piece in documents.split_text(text, max_chars):
                    if piece.strip():
                        self.writer.write_raw([{"input": "", "output": piece.strip()}])
        except UnreadableFile as error:
            self.errors.add(name, _("cannot be read: {error}", error=error))
        self.read.append({"file": name, "rows": self.writer.turns - before, "unused": {}, **details})

    def read_agent(self, path: Path, name: str) -> None:
        """Reads a file of conversations with tools; see agent.py."""

        def write(value: Any, where: str) -> None:
            turns = agent.parse_conversation(value)
            for control in filter(None, (find_control(text) for turn in turns for text in turn.values())):
                what = _("{token!r}, which the model reads as a control token", token=control.group())
                self.errors.add(where, what)
            turns[0]["system"] = turns[0]["system"] or self.data.system
            self.writer.write_raw(turns)

        try:
            signatures.check(path)
            encoding, values = record_files.read(path) or ("", iter(()))
            self._read_records(name, encoding, values, write)
        except UnreadableFile as error:
            self.errors.add(name, _("cannot be opened: {error}.", error=error))

    def _read_records(
        self, name: str, encoding: str, values: Iterable[Tuple[str, Any]], write: Callable[[Any, str], None]
    ) -> int:
        """Passes every record and its place to `write`, which may raise InvalidRecord. Returns their number."""
        before, count = self.writer.turns, 0
        for count, (place, value) in enumerate(values, start=1):
            if count & 1023 == 0:
                self.progress.step(name, 0.0)
            where = f"{name}, {place}" if place else name
            try:
                write(value, where)
            except InvalidRecord as error:
                self.errors.add(where, str(error))
        entry = {"file": name, "encoding": encoding, "rows": self.writer.turns - before, "unused": {}}
        self.read.append(entry)
        return count

    def _read_turns(self, name: str, encoding: str, values: Iterable[Tuple[str, Any]]) -> None:
        left: Dict[str, int] = {}

        def find_roles(keys: List[str]) -> Optional[Dict[str, str]]:
            try:
                found = columns.find_columns(keys, self.chosen)
            except columns.AmbiguousColumn:
                return None
            if not {QUESTION, ANSWER} <= set(found.roles):
                return None
            return {role: keys[index] for role, index in found.roles.items()}

        def write(value: Any, where: str) -> None:
            image = ""
            if self.images:
                image, value = images.split_record(value, self.data.columns.image)
            turns = records.parse_turns(value, find_roles, bool(self.chosen), left)
            self.check_and_write([turn._replace(image=image) for turn in turns], where)

        if not self._read_records(name, encoding, values, write):
            self.errors.add(name, _("there are no rows in it"))
        self.read[-1]["unused"] = left

    def _read_tables(self, path: Path, name: str) -> None:
        without_header: List[str] = []
        sheets: List[str] = []
        any_header = False
        first_skipped = len(self.skipped)

        def is_header(cells: Sequence[Any]) -> bool:
            return columns.is_header(cells, self.chosen)

        for table in tables.tables(path, is_header):
            sheets.append(table.sheet)
            if table.sheet and self.data.sheet and table.sheet not in self.data.sheet:
                continue
            if table.hidden and not self.data.sheet:
                self.skipped.append(f"{name}, sheet {table.sheet} (hidden)")
                without_header.append(_("sheet {sheet} (hidden)", sheet=table.sheet))
                continue
            place = f"{name}, sheet {table.sheet}" if table.sheet else name
            rows = table.rows()
            header, first = tables.find_header(rows, is_header)
            if header is not None:
                any_header = True
                figures = TableReader(self, table, place, self.chosen).read(header, rows)
                self.read += [{"file": name, **figures}] if figures else []
            elif first:
                with english():
                    self.skipped.append(f"{place}: {columns.show_header(first)}")
                found = columns.show_header(first)
                if table.sheet:
                    found = _("sheet {sheet}: {columns}", sheet=table.sheet, columns=found)
                without_header.append(found)
        missing = [sheet for sheet in self.data.sheet if sheet not in sheets] if any(sheets) else []
        if missing:
            message = _(
                "there is no sheet {missing} (data.sheet). It has: {sheets}",
                missing=listed(missing), sheets=listed(sheets),
            )  # fmt: skip
            self.errors.add(name, message)
        elif not any_header:
            del self.skipped[first_skipped:]
            self._report_no_header(name, without_header, any(sheets))

    def _report_no_header(self, name: str, found: List[str], has_sheets: bool) -> None:
        if not found:
            self.errors.add(name, _("there are no rows in it"))
            return
        what = _("no row that names the questions and the answers.")
        if has_sheets:
            what = _("no sheet with a row that names the questions and the answers.")
        remedy = _(
            "Found: {rows}. Call the header cells q and a, or say what they are called: data.columns.question=… "
            "data.columns.answer=…",
            rows=_("; ").join(found),
        )
        self.errors.add(name, sentences(what, remedy))
