"""What the readers of all kinds of files give: cells as text, or what is wrong with them."""

from typing import Optional

# What Excel shows where a formula failed, also in what was exported from it.
EXCEL_ERRORS = ("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#CALC!")


class UnreadableFile(Exception):
    """A file that cannot be read as what it should be; the text says what it is instead."""


class FormattedCell(str):
    """A cell that was no text (a number, a date, TRUE), as a person sees it."""


class InvalidCell(str):
    """A cell that cannot be taken as text; `why` says what it is."""

    reason: str

    def __new__(cls, text: str, reason: str) -> "InvalidCell":
        made = super().__new__(cls, text)
        made.reason = reason
        return made

    def __bool__(self) -> bool:
        return True  # it is there, whatever its text


Cell = Optional[str]
