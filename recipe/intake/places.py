"""Places in files (data/faq.xlsx, sheet Sheet1, row 5, column q) in the user's language.

The readers write places in English, as they are stored with the figures, and only those that are shown are translated.
"""

import re
from typing import List

from recipe.core.translation import _, language, mark

PLACE = re.compile(
    r"(?P<file>.*?)"
    r"(?:, sheet (?P<sheet>.*?)(?P<hidden> \(hidden\))?(?:: (?P<header>.*))?)?"
    r"(?:, row (?P<row>\d+)(?: \(line (?P<row_line>\d+)\))?|, line (?P<line>\d+)|, item (?P<item>\d+))?"
    r"(?:, turn (?P<turn>\d+))?"
    r"(?:, (?P<text>question|answer|system|image)|, column (?P<column>.*))?",
    re.DOTALL,
)
UNNAMED = re.compile(r"column (?P<column>[A-Z]+) \(without a name\)")


def in_words(place: str) -> str:
    """A place, or what was not read (a sheet and its first row, a column without a name), as messages show it."""
    if language() == "en":
        return place
    unnamed = UNNAMED.fullmatch(place)
    if unnamed:
        return _("column {column} (without a name)", column=unnamed["column"])
    match = PLACE.fullmatch(place)
    assert match  # any text is at least a file's name
    shown, parts = match["file"], _parts(match)
    if parts:
        shown = _("{file}, {part}", file=shown, part=parts[0])
    for part in parts[1:]:
        shown = _("{place}, {part}", place=shown, part=part)
    return _("{place}: {found}", place=shown, found=match["header"]) if match["header"] else shown


def _parts(match: "re.Match[str]") -> List[str]:
    found = []
    if match["sheet"] is not None:
        message = mark("sheet {sheet} (hidden)") if match["hidden"] else mark("sheet {sheet}")
        found.append(_(message, sheet=match["sheet"]))
    if match["row_line"]:
        found.append(_("row {row} (line {line})", row=match["row"], line=match["row_line"]))
    elif match["row"]:
        found.append(_("row {row}", row=match["row"]))
    elif match["line"]:
        found.append(_("line {line}", line=match["line"]))
    elif match["item"]:
        found.append(_("item {number}", number=match["item"]))
    if match["turn"]:
        found.append(_("turn {number}", number=match["turn"]))
    if match["text"]:
        found.append(
            {"question": _("question"), "answer": _("answer"), "system": _("system prompt"), "image": _("image file")}[
                match["text"]
            ]
        )
    elif match["column"] is not None:
        found.append(_("column {column}", column=match["column"]))
    return found
