"""Text in columns of a terminal, where a Chinese character is two wide. Python's standard library alone."""

import unicodedata
from typing import Any, List

from recipe.core.translation import language

INVISIBLE = ("Mn", "Me", "Cf")  # categories: accents, marks of direction
CLOSING = "。，、；：！？）》」』”’…,.;:!?)]}%"
OPENING = "（《「『“‘([{"


def width(text: str) -> int:
    """Columns that `text` takes in a terminal."""
    return sum(
        0 if unicodedata.category(one) in INVISIBLE else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


def ljust(text: str, columns: int) -> str:
    """`text` with blanks after it, `columns` wide."""
    return text + " " * (columns - width(text))


def rjust(text: str, columns: int) -> str:
    """`text` with blanks before it, `columns` wide."""
    return " " * (columns - width(text)) + text


def wrap(text: str, columns: int) -> List[str]:
    """Lines of at most `columns`: broken at blanks, and between Chinese characters but not before 。 or after （."""
    lines = [""]
    for word in _breakable(text):
        if width(lines[-1] + word.rstrip()) > columns and lines[-1]:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += word
    return [*lines[:-1], lines[-1].rstrip()]


def fold(table: Any) -> None:
    """Where words have no blanks between them, break lines of a rich table anywhere: rich would cut them, also by the
    width of a blank at their end.
    """
    if language() != "en":
        for column in table.columns:
            column.overflow = "fold"


def _breakable(text: str) -> List[str]:
    """The pieces between which a line may end; blanks stay at a piece's end."""
    pieces: List[str] = []
    previous = " "
    for one in " ".join(text.split()):
        is_wide = unicodedata.east_asian_width(one) in "WF" and one not in CLOSING
        was_wide = unicodedata.east_asian_width(previous) in "WF"
        may_break = one not in CLOSING and previous not in OPENING and (is_wide or was_wide)
        if previous == " " or (one != " " and may_break):
            pieces.append(one)
        else:
            pieces[-1] += one
        previous = one
    return pieces
