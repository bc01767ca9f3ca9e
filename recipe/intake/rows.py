"""Reads a table into conversations: finds the header, then one question and answer per row."""

import re
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from recipe.intake import columns, images
from recipe.intake.cells import Cell, Table
from recipe.intake.checks import NEEDS_CHECK
from recipe.intake.collector import Collector
from recipe.intake.columns import ANSWER, CONVERSATION, MORE, QUESTION, SYSTEM, TURN
from recipe.intake.grouping import HALF_WIDTH, GroupedRows
from recipe.intake.records import Turn

Rows = Iterator[Tuple[Any, List[Cell]]]


class TableReader:
    """Reads one table. `chosen`: role → column name from the recipe."""

    def __init__(self, collector: Collector, table: Table, place: str, chosen: Dict[str, str]) -> None:
        self.collector, self.table, self.place, self.chosen = collector, table, place, chosen
        self.roles: Dict[str, int] = {}
        self.image_at: Optional[int] = None
        self.grouped: Optional[GroupedRows] = None
        self.unnamed_used: Set[int] = set()  # columns that hold something, but have no name

    def read(self, header: List[Cell], rows: Rows) -> Optional[Dict[str, Any]]:
        """Reads the rows below the header. Returns the figures of the table; None if its columns are ambiguous."""
        try:
            unused = self._set_columns(header)
        except columns.AmbiguousColumn as error:
            self.collector.errors.add(self.place, f"{error}.")
            return None
        before = self.collector.writer.turns
        self._read_rows(rows)
        if self.grouped is not None:
            for turns, where in self.grouped.conversations(self.collector.errors, self.place):
                self.collector.write(turns, where)
        named = {**self.roles, **({} if self.image_at is None else {"image": self.image_at})}
        used = {role: columns.label(header[index]) for role, index in named.items()}
        unnamed = [f"column {_letters(index)} (without a name)" for index in sorted(self.unnamed_used)]
        return {
            "sheet": self.table.sheet, "encoding": self.table.encoding, "rows": self.collector.writer.turns - before,
            "columns": used, "unused": [name for name in unused if name != used.get("image")] + unnamed,
        }  # fmt: skip

    def _set_columns(self, header: List[Cell]) -> List[str]:
        """Sets the columns of all roles. Returns the names of unused columns. Raises AmbiguousColumn."""
        found = columns.find_columns(header, self.chosen)
        if self.collector.images:
            self.image_at = images.find_column(header, self.collector.data.columns.image)
        self.header, self.roles = header, found.roles
        self.labels = {role: columns.label(header[index]) for role, index in self.roles.items()}
        self.question_at, self.answer_at = self.roles[QUESTION], self.roles[ANSWER]
        self.unnamed = [index for index, cell in enumerate(header) if not columns.normalize(cell)]
        if TURN in self.roles and CONVERSATION not in self.roles:
            raise columns.AmbiguousColumn(
                f"the column {self.labels[TURN]} numbers turns, but no column names the conversation. Add one, or "
                f"rename the turn column"
            )
        if CONVERSATION in self.roles:
            self.grouped = GroupedRows()
        return found.unused

    def _read_rows(self, rows: Rows) -> None:
        question_at, answer_at, width = self.question_at, self.answer_at, len(self.header)
        write_pair, needs_check = self.collector.writer.write_pair, NEEDS_CHECK.search
        pairs_only = self.image_at is None and len(self.roles) == 2
        header_names = {*columns.ROLES, self.header[question_at], self.header[answer_at]}
        for number, (mark, cells) in enumerate(rows):
            if number & 1023 == 1023:
                self.collector.progress.step(self.place, self.table.position())
            if len(cells) != width or self.unnamed:
                if not self._has_width(mark, cells):
                    continue
                cells = [*cells, *[None] * (width - len(cells))]
            question, answer = cells[question_at], cells[answer_at]
            if (  # nearly every row
                pairs_only
                and type(question) is str
                and type(answer) is str
                and not needs_check(question)
                and not needs_check(answer)
                and question[:1].isalnum()
                and answer[:1].isalnum()
                and question not in header_names
            ):
                write_pair(question, answer)
            else:
                self._read_row(number, mark, cells)

    def _has_width(self, mark: Any, cells: List[Cell]) -> bool:
        """Whether a row has no more cells than the header, where that is an error. Notes columns without a name."""
        width = len(self.header)
        if self.table.delimited and any(cells[width:]):
            extra = "".join(str(cell) for cell in cells[width:] if cell)
            message = f"more cells than the header has: {extra[:40]!r}. Quote a cell that holds a separator"
            self.collector.errors.add(f"{self.place}, {self.table.place(mark)}", message)
            return False
        unnamed = [*(index for index in self.unnamed if index < len(cells)), *range(width, len(cells))]
        self.unnamed_used.update(index for index in unnamed if cells[index])
        return True

    def _read_row(self, number: int, mark: Any, cells: List[Cell]) -> None:
        """A row that needs checks, or has more columns than a question and an answer. `number` from 0."""
        collector, row = self.collector, self.table.place(mark)
        where = f"{self.place}, {row}"
        if self._is_header_again(number, cells, where):
            return
        if self.table.delimited:
            cells = [_unwrap(cell) for cell in cells]
            for index in (self.question_at, self.answer_at):
                if re.match(r'\s+"[^"]*$', cells[index] or ""):
                    message = f"a quote after a space does not quote: {(cells[index] or '')[:20]!r}. Delete the space"
                    collector.errors.add(where, message)
        question = collector.text(cells[self.question_at], self._column(where, QUESTION))
        answer = collector.text(cells[self.answer_at], self._column(where, ANSWER))
        if question is not None:
            more = self._optional(cells, MORE, where)
            question = f"{question}\n{more}" if more else question
        system = self._optional(cells, SYSTEM, where)
        image = ""
        if self.image_at is not None:
            image = collector.optional_text(cells[self.image_at], f"{where}, image").strip()
        turn = Turn(question, answer, system, image) if question is not None and answer is not None else None
        if self.grouped is None:
            collector.write([turn], where)
            return
        group = self._optional(cells, CONVERSATION, where)
        turn_number = self._turn_number(cells, where)
        if turn_number is not None and turn_number != 1 and not group:
            message = f"blank, but this is turn {turn_number:g}: name its conversation"
            collector.errors.add(self._column(where, CONVERSATION), message)
        self.grouped.add(group, turn_number, row, turn)

    def _is_header_again(self, number: int, cells: List[Cell], where: str) -> bool:
        header = [self.header[self.question_at], self.header[self.answer_at]]
        pair = [cells[self.question_at], cells[self.answer_at]]
        if not columns.is_repeated_header(header, pair):
            return False
        if number or pair != header:  # else a header of two merged rows
            message = f"another header ({pair[0]}, {pair[1]}). Delete it, or move the rows below to another file"
            self.collector.errors.add(where, message)
        return True

    def _column(self, where: str, role: str) -> str:
        return f"{where}, column {self.labels[role]}"

    def _optional(self, cells: List[Cell], role: str, where: str) -> str:
        if role not in self.roles:
            return ""
        return self.collector.optional_text(cells[self.roles[role]], self._column(where, role))

    def _turn_number(self, cells: List[Cell], where: str) -> Optional[float]:
        text = self._optional(cells, TURN, where)
        digits = re.findall(r"\d+(?:\.\d+)?", text.translate(HALF_WIDTH))
        if text and len(digits) != 1:
            self.collector.errors.add(self._column(where, TURN), f"expected a number, found {text[:20]!r}")
        return float(digits[0]) if len(digits) == 1 else None


def _unwrap(cell: Cell) -> Cell:
    """The text of ="00123", with which CSV keeps Excel from reading a number."""
    return cell[2:-1] if cell and cell.startswith('="') and cell.endswith('"') and len(cell) > 2 else cell


def _letters(index: int) -> str:
    """A column's letters in Excel, from its number from 0."""
    letters = ""
    while index >= 0:
        letters = chr(65 + index % 26) + letters
        index = index // 26 - 1
    return letters
