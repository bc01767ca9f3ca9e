"""Text in columns of a terminal, where a Chinese character is two wide. Python's standard library alone."""

import unicodedata
from typing import List


def width(text: str) -> int:
    """Columns that `text` takes in a terminal."""
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text
    )


def ljust(text: str, columns: int) -> str:
    """`text` with blanks after it, `columns` wide."""
    return text + " " * (columns - width(text))


def rjust(text: str, columns: int) -> str:
    """`text` with blanks before it, `columns` wide."""
    return " " * (columns - width(text)) + text


def wrap(text: str, columns: int) -> List[str]:
    """Lines of at most `columns`: broken at blanks, and between Chinese characters but not in front of 。，、."""
    lines = [""]
    for word in _breakable(text):
        if width(lines[-1] + word.rstrip()) > columns and lines[-1]:
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += word
    return [*lines[:-1], lines[-1].rstrip()]


CLOSING = "。，、；：！？）》」』”’…"


def _breakable(text: str) -> List[str]:
    """The pieces between which a line may end; blanks stay at a piece's end."""
    pieces: List[str] = []
    previous = " "
    for one in " ".join(text.split()):
        is_wide = unicodedata.east_asian_width(one) in "WF" and one not in CLOSING
        was_wide = unicodedata.east_asian_width(previous) in "WF"
        if previous == " " or (one != " " and one not in CLOSING and (is_wide or was_wide)):
            pieces.append(one)
        else:
            pieces[-1] += one
        previous = one
    return pieces
