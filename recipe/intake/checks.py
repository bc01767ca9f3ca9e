"""Checks of one text: blank, control tokens, lost characters; and the list of what is wrong, by place."""

import re
import unicodedata
from typing import Any, List

from recipe.core.errors import InputWrong

MAX_LISTED = 20  # errors listed before the rest is only counted

# What the tokenizer, or that of another chat model, takes for a sign of its own instead of text.
CONTROL_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<unk>|<pad>|\[UNUSED_TOKEN_\d+\]|<\|(?=im_)")

# Control characters, halves of characters, and the sign that stands for a character lost in an earlier conversion.
INVALID_CHARACTER = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufffd\ufffe\uffff\ud800-\udfff]")

LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c]")

# One look at each text: without any of these signs there is nothing to ask.
NEEDS_CHECK = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029\ufffd-\uffff\ud800-\udfff<\\[\u115f\u1160\u3164\uffa0]"
)

# Shown as nothing, though Unicode counts them as letters or signs.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))


class InputErrors:
    """What is wrong, with its place; the first are kept, the rest is counted."""

    def __init__(self) -> None:
        self.first: List[str] = []
        self.count = 0
        self.blanks = 0

    def add(self, place: str, what: str) -> None:
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(f"{place}: {what}")

    def raise_if_any(self) -> None:
        """Raise InputWrong if there are any."""
        if self.count:
            more = [f"… and {self.count - MAX_LISTED} more"] if self.count > MAX_LISTED else []
            hint = ", or drop them with data.skip_blank=true" if self.blanks else ""
            blank = f"Fill blank cells or delete their rows{hint}." if self.blanks else "Correct this in the file."
            raise InputWrong("\n".join([*self.first, *more, blank]))


def is_visible(text: str) -> bool:
    """Whether a text holds anything to see: no space, control or format character alone does."""
    return any(unicodedata.category(c)[0] not in "CZ" and c not in INVISIBLE for c in text)


def excerpt(text: str, found: Any) -> str:
    """A fault's excerpt, shortened, with what cannot be shown replaced."""
    part = text[max(0, found.start() - 12) : found.end() + 12].replace("\n", " ")
    part = "".join("�" if unicodedata.category(c)[0] == "C" else c for c in part)
    return f'"{"…" if found.start() > 12 else ""}{part}{"…" if found.end() + 12 < len(text) else ""}"'
