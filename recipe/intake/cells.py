"""What the readers of all kinds of files give: cells as text, or what is wrong with them."""

from typing import Optional

# What Excel shows where a formula failed, also in what was exported from it.
ERRORS = ("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!", "#SPILL!", "#CALC!")


class Damaged(Exception):
    """A file that cannot be read as what it should be; the text says what it is instead."""


class Shown(str):
    """A cell that was no text (a number, a date, TRUE), as a person sees it."""


class Odd(str):
    """A cell that cannot be taken as text; `why` says what it is."""

    why: str

    def __new__(cls, text: str, why: str) -> "Odd":
        made = super().__new__(cls, text)
        made.why = why
        return made

    def __bool__(self) -> bool:
        return True  # it is there, whatever its text


Cell = Optional[str]
