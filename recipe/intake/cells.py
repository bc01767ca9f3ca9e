"""The cell types that all readers return: text, or the reason why a cell has none."""

from typing import Optional

# What Excel shows where a formula failed, also in files exported from it.
EXCEL_ERRORS = ("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#CALC!")


class UnreadableFile(Exception):
    """A file that cannot be read. The text completes "cannot be opened: …"."""


class FormattedCell(str):
    """A number, a date or TRUE, as Excel shows it."""


class InvalidCell(str):
    """A cell that has no usable text; `reason` says why."""

    reason: str

    def __new__(cls, text: str, reason: str) -> "InvalidCell":
        cell = super().__new__(cls, text)
        cell.reason = reason
        return cell

    def __bool__(self) -> bool:
        return True  # not blank, even without text


Cell = Optional[str]
