"""Checks texts and conversations, and passes valid ones to the writer."""

from pathlib import Path
from typing import List, Optional, Sequence

from recipe.core.settings import Data
from recipe.core.translation import _, mark
from recipe.intake.cells import EXCEL_ERROR, Cell, FormattedCell, InvalidCell
from recipe.intake.checks import (
    INVALID_CHARACTER,
    LINE_BREAKS,
    InputErrors,
    Notes,
    error_in_text,
    is_visible,
    needs_check,
)
from recipe.intake.damage import oddities
from recipe.intake.grouping import move_system_first
from recipe.intake.images import Images
from recipe.intake.progress import Progress
from recipe.intake.records import InvalidRecord, Turn
from recipe.intake.writer import Writer

MAX_DIGITS = 15  # of a number in Excel
LONG_NUMBER = mark("numbers of more than 15 digits, of which Excel keeps 15")
SAME_TWICE = mark("an answer that is the question again")


class Collector:
    """What all files of a dataset have in common: the writer, the errors found, and counts of what was changed.

    `images` is given if every conversation is about an image.
    """

    path: Path  # the file being read

    def __init__(self, data: Data, writer: Writer, images: Optional[Images] = None) -> None:
        self.data, self.writer, self.images = data, writer, images
        self.errors = InputErrors()
        self.notes = Notes()
        self.progress = Progress()
        self.blank_dropped = self.numbers_as_text = self.line_breaks_changed = 0

    def text(self, cell: Cell, place: str) -> Optional[str]:
        """The text of a cell or key; None if it is blank or invalid, which is reported unless blanks are skipped."""
        if isinstance(cell, InvalidCell):
            self.errors.add(place, cell.reason)
            return None
        if cell is None or not (is_visible(cell) or INVALID_CHARACTER.search(cell)):
            if not self.data.skip_blank:
                self.errors.blanks += 1
                self.errors.add(place, _("blank"))
            return None
        if isinstance(cell, FormattedCell):
            self.numbers_as_text += 1
            if len(cell) > MAX_DIGITS and cell.isdigit():
                self.notes.add(LONG_NUMBER, place)
            return str(cell)
        if not (needs_check(cell) or EXCEL_ERROR.fullmatch(cell)):
            return cell
        text, count = LINE_BREAKS.subn("\n", cell)
        self.line_breaks_changed += count > 0
        error = error_in_text(text)
        if error:
            self.errors.add(place, error)
            return None
        for what, _around in oddities(text):
            self.notes.add(what, place)
        return text

    def optional_text(self, cell: Cell, place: str) -> str:
        """The text of a cell that may be blank: "" then."""
        if cell is None or (not is_visible(cell) and not isinstance(cell, InvalidCell)):
            return ""
        return str(cell) if isinstance(cell, FormattedCell) else self.text(cell, place) or ""

    def check_and_write(self, turns: Sequence[Turn], where: str) -> None:
        """Checks the texts of a conversation and writes it; one with a blank is dropped."""
        checked: List[Optional[Turn]] = []
        for at, turn in enumerate(turns, start=1):
            place = f"{where}, turn {at}" if len(turns) > 1 else where
            question = self.text(turn.question, f"{place}, question")
            answer = self.text(turn.answer, f"{place}, answer")
            system = self.optional_text(turn.system, f"{place}, system")
            valid = question is not None and answer is not None
            checked.append(Turn(question or "", answer or "", system, turn.image) if valid else None)
        self.write(checked, where)

    def write(self, turns: Sequence[Optional[Turn]], where: str) -> None:
        """Writes a conversation; one with a blank turn (None) is dropped."""
        complete = [turn for turn in turns if turn is not None]
        if len(complete) < len(turns):
            self.blank_dropped += len(turns)
            return
        complete = move_system_first(complete, self.errors, where)
        if self.images is None:
            self.writer.write_turns(complete)
            return
        try:
            conversation, image, sha256 = self.images.conversation(complete, self.path, self.data.system)
        except InvalidRecord as error:
            self.errors.add(f"{where}, image", str(error))
        else:
            self.writer.write_raw(conversation, image=image, sha256=sha256)
