"""Reads a table into conversations: finds the header, then one question and answer per row."""

import re
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from recipe.core.translation import _, sentences
from recipe.intake import columns, images, labels, record_keys
from recipe.intake.cells import Cell, FormattedCell, Table
from recipe.intake.checks import NEEDS_CHECK
from recipe.intake.collector import MAX_DIGITS, SAME_TWICE, Collector
from recipe.intake.columns import ANSWER, CONVERSATION, MORE, QUESTION, SYSTEM, TURN
from recipe.intake.grouping import HALF_WIDTH, GroupedRows
from recipe.intake.records import InvalidRecord, Turn, parse_history

SCIENTIFIC = re.compile(r"\d(?:\.\d+)?[Ee]\+\d+")

Rows = Iterator[Tuple[Any, List[Cell]]]


class TableReader:
    """Reads one table. `chosen`: role → column name from the recipe."""

    def __init__(self, collector: Collector, table: Table, place: str, chosen: Dict[str, str]) -> None:
        self.collector, self.table, self.place, self.chosen = collector, table, place, chosen
        self.roles: Dict[str, int] = {}
        self.image_at: Optional[int] = None
        self.grouped: Optional[GroupedRows] = None
        self.unnamed_used: Set[int] = set()  # columns that hold something, but have no name
        self.long_ids: List[bool] = []  # whether each has digits that Excel would have cut
        self.left: Dict[int, int] = {}  # columns without a role → cells that hold something

    def read(self, header: List[Cell], rows: Rows) -> Optional[Dict[str, Any]]:
        """Reads the rows below the header. Returns the figures of the table; None if its columns are ambiguous."""
        try:
            self._set_columns(header)
        except columns.AmbiguousColumn as error:
            self.collector.errors.add(self.place, f"{error}.")
            return None
        before = self.collector.writer.turns
        self._read_rows(rows)
        if self.grouped is not None:
            self._check_long_ids()
            for turns, where in self.grouped.conversations(self.collector.errors, self.place):
                self.collector.write(turns, where)
        named = {**self.roles, **({} if self.image_at is None else {"image": self.image_at})}
        used = {role: columns.label(header[index]) for role, index in named.items()}
        unused = {columns.label(header[index]): count for index, count in self.left.items()}
        unused.update(
            {f"column {_letters(index)} (without a name)": 0 for index in sorted(self.unnamed_used)}
        )  # stored
        return {
            "sheet": self.table.sheet, "encoding": self.table.encoding, "rows": self.collector.writer.turns - before,
            "columns": used, "unused": unused, "beside": self._second_table(),
        }  # fmt: skip

    def _set_columns(self, header: List[Cell]) -> None:
        """Sets the columns of all roles. Raises AmbiguousColumn."""
        found = columns.find_columns(header, self.chosen)
        if self.collector.images:
            self.image_at = images.find_column(header, self.collector.data.columns.image)
        self.header, self.roles = header, found.roles
        self.labels = {role: columns.label(header[index]) for role, index in self.roles.items()}
        self.question_at, self.answer_at = self.roles[QUESTION], self.roles[ANSWER]
        self.unnamed = [index for index, cell in enumerate(header) if not columns.normalize(cell)]
        if TURN in self.roles and CONVERSATION not in self.roles:
            raise columns.AmbiguousColumn(
                _(
                    "the column {column} numbers turns, but no column names the conversation. Add one, or rename the "
                    "turn column",
                    column=self.labels[TURN],
                )
            )
        if CONVERSATION in self.roles:
            self.grouped = GroupedRows()
        taken = {*self.roles.values(), self.image_at, *self.unnamed}
        names = {index: columns.label(cell) for index, cell in enumerate(header) if index not in taken}
        self.history = [index for index in names if record_keys.is_history(names[index])]
        self.left = {index: 0 for index in names if index not in self.history}
        self.flags = {index: name for index, name in names.items() if record_keys.matters(name)}

    def _second_table(self) -> List[str]:
        """The names of columns that stand beside the table, behind one without a name, and hold as many rows."""
        rows = self.rows_read
        gaps = [index for index in self.unnamed if index > min(self.roles.values())]
        beside = [index for index, count in self.left.items() if gaps and index > gaps[0] and count > rows // 4]
        return [columns.label(self.header[index]) for index in beside] if len(beside) > 1 else []

    def _read_rows(self, rows: Rows) -> None:
        question_at, answer_at, width = self.question_at, self.answer_at, len(self.header)
        write_pair, needs_check = self.collector.writer.write_pair, NEEDS_CHECK.search
        pairs_only = self.image_at is None and len(self.roles) == 2 and not self.history
        first, longest, is_suspect = labels.FIRST, labels.LONGEST_BESIDE, labels.is_suspect
        header_names = {self.header[question_at], self.header[answer_at]}
        number = -1
        for number, (mark, cells) in enumerate(rows):
            if number & 1023 == 1023:
                self.collector.progress.step(self.place, self.table.position())
            if len(cells) != width or self.unnamed:
                if not self._has_width(mark, cells):
                    continue
                cells = [*cells, *[None] * (width - len(cells))]
            if self.left:
                self._see_others(mark, cells)
            question, answer = cells[question_at], cells[answer_at]
            if (  # nearly every row
                pairs_only
                and number >= first
                and type(question) is str
                and type(answer) is str
                and not needs_check(question)
                and not needs_check(answer)
                and ("?" not in question or "??" not in question)
                and ("?" not in answer or "??" not in answer)
                and question[:1].isalnum()
                and answer[:1].isalnum()
                and (len(answer) > longest or not is_suspect(question, answer))
                and question not in header_names
                and question != answer
            ):
                write_pair(question, answer)
            else:
                self._read_row(number, mark, cells)
        self.rows_read = number + 1

    def _has_width(self, mark: Any, cells: List[Cell]) -> bool:
        """Whether a row has no more cells than the header, where that is an error. Notes columns without a name."""
        width = len(self.header)
        if self.table.delimited and any(cells[width:]):
            extra = "".join(str(cell) for cell in cells[width:] if cell)
            message = _(
                "more cells than the header has: {text!r}. Quote a cell that holds a separator", text=extra[:40]
            )
            self.collector.errors.add(f"{self.place}, {self.table.place(mark)}", message)
            return False
        unnamed = [*(index for index in self.unnamed if index < len(cells)), *range(width, len(cells))]
        used = [index for index in unnamed if cells[index]]
        # A separator at the end of a header gives a column without a name, which then hides the rest of a cut cell.
        cut = [index for index in used if index > min(self.roles.values()) and str(cells[index]).strip()]
        if self.table.delimited and cut:
            message = _(
                "{text!r} stands in a column without a name. Quote a cell that holds a separator",
                text=str(cells[cut[0]])[:40],
            )
            self.collector.errors.add(f"{self.place}, {self.table.place(mark)}", message)
            return False
        self.unnamed_used.update(used)
        return True

    def _see_others(self, mark: Any, cells: List[Cell]) -> None:
        """Counts the columns without a role, and refuses what decides whether a row is trained."""
        for index in self.left:
            if cells[index]:
                self.left[index] += 1
        for index, name in self.flags.items():
            why = record_keys.refusal(name, cells[index])
            if why:
                self.collector.errors.add(f"{self.place}, {self.table.place(mark)}", _("column {problem}", problem=why))

    def _earlier(self, cells: List[Cell], where: str) -> List[Optional[Turn]]:
        """The turns in a column of earlier turns, checked; None for one with a blank."""
        found: List[Optional[Turn]] = []
        for index in self.history:
            name = columns.label(self.header[index])
            try:
                turns = parse_history(cells[index], name)
            except InvalidRecord as error:
                self.collector.errors.add(where, _("column {problem}", problem=error))
                continue
            if turns and self.grouped is not None:
                what = _("column {column}: earlier turns are rows here. Leave the column out", column=name)
                self.collector.errors.add(where, what)
            for turn in turns:
                question, answer = (self.collector.text(text, f"{where}, column {name}") for text in turn[:2])
                found.append(None if question is None or answer is None else Turn(question, answer))
        return found

    def _read_row(self, number: int, mark: Any, cells: List[Cell]) -> None:
        """A row that needs checks, or has more columns than a question and an answer. `number` from 0."""
        collector, row = self.collector, self.table.place(mark)
        where = f"{self.place}, {row}"
        if self._is_no_row(number, cells, where):
            return
        if self.table.delimited:
            cells = [_unwrap(cell) for cell in cells]
            for index in (self.question_at, self.answer_at):
                if re.match(r'\s+"[^"]*$', cells[index] or ""):
                    message = _(
                        "a quote after a space does not quote: {text!r}. Delete the space",
                        text=(cells[index] or "")[:20],
                    )
                    collector.errors.add(where, message)
        if cells[self.question_at] and cells[self.question_at] == cells[self.answer_at]:
            collector.notes.add(SAME_TWICE, where)
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
        earlier = self._earlier(cells, where)
        if self.grouped is None:
            collector.write([*earlier, turn], where)
            return
        group = self._optional(cells, CONVERSATION, where)
        self._check_identity(group, cells[self.roles[CONVERSATION]], where)
        turn_number = self._turn_number(cells, where)
        if turn_number is not None and turn_number != 1 and not group:
            message = _("blank, but this is turn {turn:g}: name its conversation", turn=turn_number)
            collector.errors.add(self._column(where, CONVERSATION), message)
        self.grouped.add(group, turn_number, row, turn)

    def _is_no_row(self, number: int, cells: List[Cell], where: str) -> bool:
        """Whether a row is a further header, a hint, a total or the like: reported, if it is more than a translation of
        the header right below it.
        """
        header = [self.header[self.question_at], self.header[self.answer_at]]
        pair = [cells[self.question_at], cells[self.answer_at]]
        again = labels.is_header(header, pair)
        if again or (number == 0 and labels.is_half_header(header, pair)):
            in_order = all(labels.same_role(name, cell) for name, cell in zip(header, pair))
            unnamed = [index for index in self.unnamed if index > min(self.roles.values())]
            more = any(cells[index] for index in [*unnamed, *range(len(self.header), len(cells))])
            if number or not again or not in_order or more:
                names = columns.show_header(pair)
                what = _("another header ({names}). Delete it, or move the rows below to another file", names=names)
                if number == 0 and (more or not again):
                    what = _(
                        "a header of two rows ({names}). Keep one row of names, with one question and one answer",
                        names=names,
                    )
                self.collector.errors.add(where, what)
            return True
        why = labels.reason(number, *(cell or "" for cell in pair))
        if why:
            what = _("{what} ({cells}), not a question. Delete the row", what=why, cells=columns.show_header(pair))
            self.collector.errors.add(where, what)
        return bool(why)

    def _check_identity(self, group: str, cell: Cell, where: str) -> None:
        """Refuses a conversation's id that Excel cut: then several conversations have the same."""
        place = self._column(where, CONVERSATION)
        digits = group.strip()
        if SCIENTIFIC.fullmatch(digits):
            what = _("{id} is an id cut to scientific notation.", id=digits)
            self.collector.errors.add(place, sentences(what, _export_again()))
        elif len(digits) > MAX_DIGITS and digits.isdigit():
            if isinstance(cell, FormattedCell):
                what = _("{id} is an id of which Excel keeps {n} digits.", id=digits, n=MAX_DIGITS)
                self.collector.errors.add(place, sentences(what, _export_again()))
            self.long_ids.append(bool(digits[MAX_DIGITS:].strip("0")))

    def _check_long_ids(self) -> None:
        """Refuses a text file's long ids if each ends in zeros: Excel wrote them, and cut them."""
        if self.table.delimited and len(self.long_ids) > 1 and not any(self.long_ids):
            what = _("every id ends in zeros after {n} digits, as Excel cuts them.", n=MAX_DIGITS)
            self.collector.errors.add(self._column(self.place, CONVERSATION), sentences(what, _export_again()))

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
            what = _("expected a number, found {text!r}", text=text[:20])
            self.collector.errors.add(self._column(where, TURN), what)
        return float(digits[0]) if len(digits) == 1 else None


def _export_again() -> str:
    return _("Export the ids again, their column formatted as text")


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
