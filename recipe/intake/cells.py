"""What the readers of all tables return: cells with text, or with the reason why they have none."""

import re
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple

# What spreadsheets show where a formula failed or a column is too narrow, also in files exported from them: every
# Excel's, LibreOffice's, Google's, and those of other languages (#WERT!, #¿NOMBRE?).
EXCEL_ERROR = re.compile(
    r"#(?:(?i:n/a|name\?|ref!|value!|div/0!|num!|null!)|NV|GETTING_DATA|[¿¡]?[A-Z][A-Z0-9/_]{1,20}[!?])|#{4,}|Err:5\d\d"
)


class UnreadableFile(Exception):
    """A file that cannot be read. The text completes "cannot be opened: …"."""


class OtherFormat(UnreadableFile):
    """A file that is something else than its suffix says. The text says what to do with it."""


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


class Table(NamedTuple):
    """One sheet or file. `rows()` gives (mark, cells) of every row that is not blank; `place(mark)` is "row 5"."""

    sheet: str  # "" where there are no sheets
    hidden: bool
    rows: Callable[[], Iterator[Tuple[Any, List[Cell]]]]
    place: Callable[[Any], str]
    position: Callable[[], float]  # share of the table that was read, 0 to 1
    encoding: str = ""
    delimited: bool = False
