"""Reads one file after the other, sheet by sheet or record by record, as a stream.

Of a row nothing but two 8-byte numbers stays in memory.
"""

import itertools
import re
import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from recipe.core.settings import Data
from recipe.intake import agent, documents, images, records, tables
from recipe.intake import columns as names
from recipe.intake.cells import EXCEL_ERRORS, Cell, FormattedCell, InvalidCell, UnreadableFile
from recipe.intake.checks import (
    CONTROL_TOKEN,
    INVALID_CHARACTER,
    LINE_BREAKS,
    NEEDS_CHECK,
    InputErrors,
    excerpt,
    is_visible,
)
from recipe.intake.columns import ANSWER, CONVERSATION, MORE, QUESTION, SYSTEM, TURN
from recipe.intake.grouping import HALF_WIDTH, GroupedRows, with_one_system
from recipe.intake.records import Turn
from recipe.intake.writer import Writer

HEADER_WITHIN = 20  # rows that hold anything, from the top

IMAGE = "<image>"  # stands where the image is, as LLaVA has it


class Progress:
    """A bar on the terminal for what takes longer than two seconds."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.bar: Any = None
        self.name = ""

    def step(self, name: str, share: float) -> None:
        if self.bar is None:
            if time.monotonic() - self.began < 2:
                return
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.bar.start()
        if name != self.name:
            self.name, self.task = name, self.bar.add_task(name, total=1.0)
        self.bar.update(self.task, completed=share)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class Intake:
    """One reading of all files: `writer` gets the conversations, `errors` what is wrong. `pictures`: where each
    conversation is about an image.
    """

    def __init__(self, data: Data, writer: Writer, pictures: Optional[images.Images] = None) -> None:
        self.data = data
        self.pictures = pictures
        self.writer = writer
        self.errors = InputErrors()
        self.progress = Progress()
        self.chosen = {role: name for role, name in data.columns.model_dump(exclude={"text", "image"}).items() if name}
        self.blank_dropped = self.as_text = self.breaks = 0
        self.read: List[Dict[str, Any]] = []  # what was found in which file and sheet
        self.skipped: List[str] = []

    def file(self, path: Path, name: str) -> None:
        """Read one file; whatever is wrong with it becomes a fault."""
        self.path = path
        try:
            if path.suffix.lower() in (".json", ".jsonl"):
                encoding, values = records.records(path)
                self._records(name, encoding, values)
            else:
                values_or_none = records.parquet(path) if path.suffix.lower() == ".parquet" else None
                if values_or_none is not None:
                    self._records(name, "", values_or_none)
                else:
                    self._tables(path, name)
        except UnreadableFile as damaged:
            remedy = " Save it again as .xlsx." if path.suffix.lower() in (".xlsx", ".xlsm") else ""
            self.errors.add(name, f"cannot be opened: {damaged}.{remedy}")

    def texts(self, path: Path, name: str, most: int) -> None:
        """Read one file of plain texts, in pieces of at most `most` characters; as XTuner's pretrain_map_fn."""
        before = self.writer.turns
        found: Dict[str, Any] = {"encoding": ""}
        try:
            for document in documents.documents(path, self.data.columns.text, found):
                text = self.text(document.text, f"{name}, {document.place}" if document.place else name)
                if text is None:
                    self.blank_dropped += 1
                    continue
                for piece in documents.split_text(text, most):
                    if piece.strip():
                        self.writer.raw([{"input": "", "output": piece.strip()}])
        except UnreadableFile as damaged:
            self.errors.add(name, f"cannot be read: {damaged}")
        self.read.append({"file": name, "rows": self.writer.turns - before, "unused": [], **found})

    def agent(self, path: Path, name: str) -> None:
        """Read one file of conversations with tools; see intake/agent.py."""
        before = self.writer.turns
        try:
            encoding, values = ("", records.parquet(path)) if path.suffix == ".parquet" else records.records(path)
            for place, value in values or ():
                where = f"{name}, {place}" if place else name
                try:
                    turns = agent.conversation(value)
                except records.InvalidRecord as wrong:
                    self.errors.add(where, str(wrong))
                    continue
                odd = [
                    CONTROL_TOKEN.search(text) or INVALID_CHARACTER.search(text)
                    for turn in turns
                    for text in turn.values()
                ]
                for one in filter(None, odd):
                    self.errors.add(where, f"the sign {one.group()!r}, which the model takes for one of its own")
                if turns[0]["system"] == "" and self.data.system:
                    turns[0]["system"] = self.data.system
                self.writer.raw(turns)
        except UnreadableFile as damaged:
            self.errors.add(name, f"cannot be opened: {damaged}.")
            return
        entry = {"file": name, "encoding": encoding, "rows": self.writer.turns - before, "unused": []}
        self.read.append(entry)

    def text(self, cell: Cell, place: str) -> Optional[str]:
        """A cell's or key's text; None, with a fault unless blanks are skipped, if it is none."""
        if cell is None or not (is_visible(cell) or INVALID_CHARACTER.search(cell)):
            if isinstance(cell, InvalidCell):
                self.errors.add(place, cell.reason)
            elif not self.data.skip_blank:
                self.errors.blanks += 1
                self.errors.add(place, "blank")
            return None
        if isinstance(cell, InvalidCell):
            self.errors.add(place, cell.reason)
            return None
        if isinstance(cell, FormattedCell):
            self.as_text += 1
            return str(cell)
        if cell in EXCEL_ERRORS or re.fullmatch("#{4,}", cell):
            self.errors.add(place, f"the error {cell}")
            return None
        if cell.startswith("=DISPIMG("):
            self.errors.add(place, "a picture, not a text")
            return None
        text, count = LINE_BREAKS.subn("\n", cell)
        self.breaks += count > 0
        control = CONTROL_TOKEN.search(text)
        if control:
            self.errors.add(place, f"the chat control token {control.group()} in {excerpt(text, control)}")
            return None
        odd = INVALID_CHARACTER.search(text)
        if odd:
            what = "a character lost in an earlier conversion (U+FFFD)" if odd.group() == "\ufffd" else (
                f"a character that is no text (U+{ord(odd.group()):04X})")  # fmt: skip
            self.errors.add(place, f"{what} in {excerpt(text, odd)}")
            return None
        return text

    def optional(self, cell: Cell, place: str) -> str:
        """The same for a cell that may be blank: "" then."""
        if cell is None or (not is_visible(cell) and not isinstance(cell, InvalidCell)):
            return ""
        return str(cell) if isinstance(cell, FormattedCell) else self.text(cell, place) or ""

    # JSON

    def _records(self, name: str, encoding: str, values: Iterable[Tuple[str, Any]]) -> None:
        before = self.writer.turns

        unused: Dict[str, None] = {}

        def columns(keys: List[str]) -> Optional[Dict[str, str]]:
            try:
                found = names.find_columns(keys, self.chosen)
            except names.AmbiguousColumn:
                return None
            if not {QUESTION, ANSWER} <= set(found.roles):
                return None
            unused.update(dict.fromkeys(found.unused))
            return {role: keys[index] for role, index in found.roles.items()}

        any_value = False
        for number, (place, value) in enumerate(values):
            any_value = True
            if number & 1023 == 1023:
                self.progress.step(name, 0.0)
            where = f"{name}, {place}" if place else name
            try:
                image, value = self._parted(value) if self.pictures else ("", value)
                turns = records.turns(value, columns, bool(self.chosen))
            except records.InvalidRecord as wrong:
                self.errors.add(where, str(wrong))
                continue
            self._conversation([turn._replace(image=image) for turn in turns] if image else turns, where)
        if not any_value:
            self.errors.add(name, "there are no rows in it")
        entry = {"file": name, "encoding": encoding, "rows": self.writer.turns - before, "unused": list(unused)}
        self.read.append(entry)

    def _conversation(self, turns: Sequence[Turn], where: str) -> None:
        """Check and write the turns of one record; a blank one drops them all."""
        checked: List[Turn] = []
        for at, turn in enumerate(turns, start=1):
            which = f"{where}, turn {at}" if len(turns) > 1 else where
            question = self.text(turn.question, f"{which}, question")
            answer = self.text(turn.answer, f"{which}, answer")
            system = self.optional(turn.system, f"{which}, system")
            if question is not None and answer is not None:
                checked.append(Turn(question, answer, system, turn.image))
        if len(checked) == len(turns):
            self._write(with_one_system(checked, self.errors, where), where)
        else:
            self.blank_dropped += len(turns)

    def _write(self, turns: List[Turn], where: str) -> None:
        """A conversation that is whole; one about an image as LLaVA's, by XTuner's own map."""
        if self.pictures is None:
            self.writer.many(turns)
            return
        from xtuner.dataset.map_fns import llava_map_fn

        named = sorted({turn.image for turn in turns if turn.image})
        if len(named) != 1:
            what = f"several images: {', '.join(named[:3])}. One to a conversation" if named else "blank"
            self.errors.add(f"{where}, image", what)
            return
        try:
            image, sha256 = self.pictures.check(named[0], self.path)
        except records.InvalidRecord as wrong:
            self.errors.add(f"{where}, image {named[0]}", str(wrong))
            return
        said = []
        for turn in turns:
            question = turn.question.replace(IMAGE, "").strip()  # LLaVA's own files have it, before or behind
            said += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answer}]
        said[0]["value"] = f"{IMAGE}\n{said[0]['value']}"
        made = llava_map_fn({"conversations": said})["conversation"]
        system = turns[0].system or self.data.system
        if system:
            made[0] = {"system": system, **made[0]}
        self.writer.raw(made, image=image, sha256=sha256)

    def _parted(self, value: Any) -> Tuple[str, Any]:
        """A record's image, and the record without it. Raises InvalidRecord."""
        if not isinstance(value, dict):
            return "", value
        try:
            key = list(value)[images.column(list(value), self.data.columns.image)]
        except names.AmbiguousColumn as doubt:
            raise records.InvalidRecord(str(doubt).replace("column", "key"))
        if not isinstance(value[key], str) or not value[key].strip():
            raise records.InvalidRecord(f"{key}: the path of an image is wanted, found {value[key]!r}")
        return value[key].strip(), {name: held for name, held in value.items() if name != key}

    # rows and columns

    def _tables(self, path: Path, name: str) -> None:
        wanted = list(self.data.sheet)
        before = len(self.skipped)
        seen: List[str] = []
        used = 0
        for table in tables.tables(path, lambda cells: names.is_header(cells, self.chosen)):
            seen.append(table.sheet)
            if table.sheet:
                if self.data.sheet and table.sheet not in wanted:
                    continue
                if table.hidden and not self.data.sheet:
                    self.skipped.append(f"{name}, sheet {table.sheet} (hidden)")
                    continue
            used += self._table(table, name)
        missing = [sheet for sheet in wanted if sheet not in seen] if any(seen) else []
        if missing:
            self.errors.add(name, f"there is no sheet {', '.join(missing)} (data.sheet). It has: {', '.join(seen)}")
        elif not used:
            mine, self.skipped = self.skipped[before:], self.skipped[:before]
            if not mine:
                self.errors.add(name, "there are no rows in it")
                return
            found = "; ".join(part[len(name) :].lstrip(":, ") for part in mine)
            what = "no sheet with a row that names" if any(seen) else "no row that names"
            self.errors.add(
                name,
                f"{what} the questions and the answers. Found: {found}. Call the header cells q and a, "
                f"or say what they are called: data.columns.question=… data.columns.answer=…",
            )

    def _table(self, table: tables.Table, name: str) -> bool:
        """Read one sheet; whether it has a header that names question and answer."""
        place = f"{name}, sheet {table.sheet}" if table.sheet else name
        rows = table.rows()
        first: Optional[List[Cell]] = None
        for _, cells in itertools.islice(rows, HEADER_WITHIN):
            first = first or cells
            if names.is_header(cells, self.chosen):
                break
        else:
            if first:  # an empty sheet is nothing to tell
                shown = ", ".join(str(cell).strip()[:20] for cell in first if cell)
                self.skipped.append(f"{place}: {shown}")
            return False
        try:
            found = names.find_columns(cells, self.chosen)
            image_at = images.column(cells, self.data.columns.image) if self.pictures else None
        except names.AmbiguousColumn as doubt:
            self.errors.add(place, f"{doubt}.")
            return True
        roles = found.roles
        if TURN in roles and CONVERSATION not in roles:
            turn_name = str(cells[roles[TURN]]).strip()
            self.errors.add(place, f"the column {turn_name} numbers turns, but no column names the conversation. Add "
                            "one, or rename it")  # fmt: skip
            return True
        before = self.writer.turns
        grouped = GroupedRows() if CONVERSATION in roles else None
        width = len(cells)
        question_at, answer_at, system_at = roles[QUESTION], roles[ANSWER], roles.get(SYSTEM)
        more_at, called = roles.get(MORE), {role: str(cells[index]).strip() for role, index in roles.items()}
        text, plainly, suspect = self.text, self.writer.plain, NEEDS_CHECK.search
        plain = image_at is None and not {SYSTEM, CONVERSATION, MORE} & set(roles)
        nameless = [index for index, cell in enumerate(cells) if not names.normalize(cell)]
        header, lost = cells, set()
        again = {*names.ROLES, header[question_at], header[answer_at]}
        for number, (mark, cells) in enumerate(rows):
            if number & 1023 == 1023:
                self.progress.step(place, table.position())
            if len(cells) != width or nameless:
                if len(cells) < width:
                    cells = [*cells, *[None] * (width - len(cells))]
                elif table.strict and any(cells[width:]):
                    extra = "".join(str(cell) for cell in cells[width:] if cell)
                    what = f"more cells than the header has: {extra[:40]!r}. Quote a cell that holds a separator"
                    self.errors.add(f"{place}, {table.place(mark)}", what)
                    continue
                lost.update(i for i in [*nameless, *range(width, len(cells))] if cells[i])
            question, answer = cells[question_at], cells[answer_at]
            if (
                plain
                and question.__class__ is answer.__class__ is str
                and not suspect(question)  # type: ignore[arg-type]
                and not suspect(answer)  # type: ignore[arg-type]
                and question[:1].isalnum()  # type: ignore[index]
                and answer[:1].isalnum()  # type: ignore[index]
                and question not in again
            ):
                plainly(question, answer)  # type: ignore[arg-type]
                continue  # nearly every row: what follows tells what is the matter with the others
            row = table.place(mark)
            at = f"{place}, {row}, column "
            if names.is_repeated_header(
                [header[question_at], header[answer_at]], [cells[question_at], cells[answer_at]]
            ):
                # Right below the header: it was two rows high, joined. Further down: another table.
                if number or [cells[question_at], cells[answer_at]] != [header[question_at], header[answer_at]]:
                    what = (
                        f"another header ({question}, {answer}). Delete it, or put what is below into a file of its own"
                    )
                    self.errors.add(f"{place}, {row}", what)
                continue
            if table.strict:
                cells = [_unwrapped(cell) for cell in cells]
                for index in (question_at, answer_at):
                    if re.match(r'\s+"[^"]*$', cells[index] or ""):
                        what = f"a quote behind a space quotes nothing: {cells[index][:20]!r}. Take the space out"
                        self.errors.add(f"{place}, {row}", what)
            question = text(cells[question_at], at + called[QUESTION])
            answer = text(cells[answer_at], at + called[ANSWER])
            whole = question is not None and answer is not None
            if more_at is not None and question is not None:
                more = self.optional(cells[more_at], at + called[MORE])
                question = f"{question}\n{more}" if more else question
            system = self.optional(cells[system_at], at + called[SYSTEM]) if system_at is not None else ""
            image = self.optional(cells[image_at], f"{place}, {row}, image") if image_at is not None else ""
            if grouped is not None:
                group = self.optional(cells[roles[CONVERSATION]], at + called[CONVERSATION])
                turn = self._turn(cells, roles, at, called)
                if turn is not None and turn != 1 and not group:
                    self.errors.add(
                        at + called[CONVERSATION], f"blank, but this is turn {turn:g}: of which conversation?"
                    )
                grouped.add(group, turn, row, Turn(question or "", answer or "", system, image) if whole else None)
            elif whole:
                self._write([Turn(question, answer, system, image.strip())], f"{place}, {row}")  # type: ignore[arg-type]
            else:
                self.blank_dropped += 1
        if grouped is not None:
            for turns, where in grouped.all(self.errors, place):
                if None in turns:
                    self.blank_dropped += len(turns)
                else:
                    self._write(with_one_system(turns, self.errors, where), where)  # type: ignore[arg-type]
        entry = {"file": name, "sheet": table.sheet, "encoding": table.note, "rows": self.writer.turns - before}
        without = [f"{_letters(index)} (without a name)" for index in sorted(lost)]
        if image_at is not None:
            roles = {**roles, "image": image_at}
            found.unused[:] = [name for name in found.unused if name != str(header[image_at]).strip()]
        used = {role: str(header[index]).strip() for role, index in roles.items()}
        self.read.append({**entry, "columns": used, "unused": found.unused + without})
        return True

    def _turn(self, cells: Sequence[Cell], roles: Dict[str, int], at: str, called: Dict[str, str]) -> Optional[float]:
        """The number of a turn, if there is a column for it."""
        if TURN not in roles:
            return None
        cell = self.optional(cells[roles[TURN]], at + called[TURN])
        digits = re.findall(r"\d+(?:\.\d+)?", cell.translate(HALF_WIDTH))
        if cell and len(digits) != 1:
            self.errors.add(at + called[TURN], f"a number is wanted, found {cell[:20]!r}")
        return float(digits[0]) if len(digits) == 1 else None


def _unwrapped(cell: Cell) -> Cell:
    """="00123" is what keeps Excel from taking a field of CSV for a number."""
    return cell[2:-1] if cell and cell.startswith('="') and cell.endswith('"') and len(cell) > 2 else cell


def _letters(index: int) -> str:
    """A column's letters in Excel, from its number from 0."""
    letters = ""
    while index >= 0:
        letters = chr(65 + index % 26) + letters
        index = index // 26 - 1
    return f"column {letters}"
