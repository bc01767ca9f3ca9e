"""Checks of one text (blank, control tokens, lost characters), and the list of errors found."""

import re
import unicodedata
from typing import Dict, List, Match, Optional, Tuple

from recipe.core.errors import InputWrong
from recipe.core.translation import _
from recipe.intake import damage
from recipe.intake.cells import EXCEL_ERROR
from recipe.intake.places import in_words

MAX_LISTED = 20  # further errors are only counted
MAX_PLACES = 3  # listed for each kind of note

# What the tokenizer, or that of another chat model, reads as a control token.
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<unk>|<pad>|\[UNUSED_TOKEN_\d+\]|<\|(?=im_)")

# Control characters, surrogates, and U+FFFD, which replaces a character lost in an earlier conversion.
INVALID_CHARACTER = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufffd\ufffe\uffff\ud800-\udfff]")

LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c]")

# A text without any of these characters needs no further check.
NEEDS_CHECK = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ufffd-\uffff\ud800-\udfff<\\[\u115f\u1160\u3164\uffa0"
    f"\uff21-\uff3a\uff41-\uff5a{damage.TRIGGERS}]"
)

# Displayed as nothing, though Unicode counts them as letters or symbols.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))


def needs_check(text: str) -> bool:
    """Whether a text holds anything that has to be looked at."""
    return bool(NEEDS_CHECK.search(text)) or "??" in text


class Notes:
    """What is reported of the input, though it is read: how often, and where first. Stored, so in English."""

    def __init__(self) -> None:
        self.found: Dict[str, Tuple[int, List[str]]] = {}

    def add(self, what: str, place: str) -> None:
        count, places = self.found.get(what, (0, []))
        self.found[what] = (count + 1, [*places, place] if len(places) < MAX_PLACES else places)


class InputErrors:
    """What is wrong with the input, by place. Keeps the first MAX_LISTED errors and counts the rest."""

    def __init__(self) -> None:
        self.first: List[str] = []
        self.count = 0
        self.blanks = 0

    def add(self, place: str, message: str) -> None:
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(_("{place}: {problem}", place=in_words(place), problem=message))

    def raise_if_any(self) -> None:
        """Raises InputWrong with the list."""
        if self.count:
            more = [_("… and {n} more", n=self.count - MAX_LISTED)] if self.count > MAX_LISTED else []
            remedy = _("Correct this in the file.")
            if self.blanks:
                remedy = _("Fill blank cells or delete their rows, or drop them with data.skip_blank=true.")
            raise InputWrong("\n".join([*self.first, *more, remedy]))


def is_visible(text: str) -> bool:
    """Whether a text has anything to see besides spaces, control and format characters."""
    return any(unicodedata.category(c)[0] not in "CZ" and c not in INVISIBLE for c in text)


def find_control(text: str) -> Optional[Match[str]]:
    """The first control token, or else the first invalid character."""
    return CONTROL_TOKEN.search(text) or INVALID_CHARACTER.search(text)


def error_in_text(text: str) -> str:
    """Why a text cannot be trained on; "" if it can."""
    if EXCEL_ERROR.fullmatch(text):
        return _("the error {text}", text=text)
    if text.startswith("=DISPIMG("):
        return _("an image, not text")
    found = find_control(text)
    if not found:
        lost = damage.damage(text)
        if not lost:
            return ""
        return _('{problem}: "{text}"', problem=lost, text=text[:30] + "…" * (len(text) > 30))
    excerpt = _excerpt(text, found)
    if not INVALID_CHARACTER.fullmatch(found.group()):
        return _("the chat control token {token} in {text}", token=found.group(), text=excerpt)
    if found.group() == "\ufffd":
        return _("a character lost in an earlier conversion (U+FFFD) in {text}", text=excerpt)
    return _("an invalid character ({code}) in {text}", code=f"U+{ord(found.group()):04X}", text=excerpt)


def _excerpt(text: str, found: Match[str]) -> str:
    """What surrounds a match, with unprintable characters replaced."""
    part = text[max(0, found.start() - 12) : found.end() + 12].replace("\n", " ")
    part = "".join("�" if unicodedata.category(c)[0] == "C" else c for c in part)
    return f'"{"…" if found.start() > 12 else ""}{part}{"…" if found.end() + 12 < len(text) else ""}"'
