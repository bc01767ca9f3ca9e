"""Texts that a program damaged before they came here: lost characters, mojibake, characters that nobody sees.

`damage` says why a text is refused, `oddities` what is only reported. Written here because ftfy repairs what it can and
reports nothing of the rest, and knows neither GBK nor Big5, which most damaged Chinese texts went through.
"""

import re
from typing import List, Tuple

from recipe.core.translation import _, mark

# UTF-8's bytes for one character beyond ASCII.
SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
SEQUENCE_OF_THREE = re.compile(rb"[\xe2-\xef][\x80-\xbf]{2}")
# What Windows-1252 has where Latin-1 has control characters, as Latin-1.
LATIN = {ord(bytes([byte]).decode("cp1252")): byte for byte in range(0x80, 0xA0) if byte not in b"\x81\x8d\x8f\x90\x9d"}
GBK_OF_UTF8 = "".join(
    sorted({bytes(pair).decode("gbk") for pair in ((a, b) for a in range(0xE2, 0xF0) for b in range(0x80, 0xC0))})
)
SHARE = 0.6  # of the bytes beyond ASCII that must read as UTF-8; some are usually lost

# Spaces of no width, marks of direction and of order.
INVISIBLE = "\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"
PRIVATE = "\ue000-\uf8ff"
# A text without any of these characters, and without "??", is not looked at.
TRIGGERS = (
    "\\\\&\x80-\x9f\u00ad\u00c2-\u00f4\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufff9-\ufffc\ufeff"
    f"{PRIVATE}锟縺繧繝嚗銝{GBK_OF_UTF8}"
)

ASIAN = "0-9A-Za-z\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef"
ODDITIES: Tuple[Tuple[str, "re.Pattern[str]"], ...] = (
    (mark("characters that nobody sees (zero width, direction marks, U+FEFF)"),
     re.compile(f"[{INVISIBLE}]|(?<=[{ASIAN}])[\u200c\u200d]+(?=[{ASIAN}])")),
    (mark("places of lost pictures or objects (U+FFFC)"), re.compile("\ufffc")),
    (mark("private-use characters, which only the font of their author shows"), re.compile(f"[{PRIVATE}]")),
    (mark(r"\n as two characters in place of a line break"),
     re.compile(r"[^\x00-\x7f]\\r?\\?n|\\n(?=[^\x00-\x7f]|\d|[-*•]|\\n)|[.!?;]\s?\\n")),
    (mark("question marks inside a word, as lost characters leave them"), re.compile(r"[^\W_]\?{2,}(?=[^\W_])")),
    (mark("characters as HTML writes them (&nbsp;)"),
     re.compile(r"&(?:nbsp|lt|gt|amp|quot|apos|#\d{2,6}|#x[0-9a-fA-F]+);")),
)  # fmt: skip


def damage(text: str) -> str:
    """Why a text was lost in an earlier conversion; "" if it was not."""
    if "???" in text and _is_lost(text):
        return _("question marks in place of lost characters")
    if "锟斤拷" in text:
        return _("characters lost in an earlier conversion (锟斤拷)")
    for encoding in ("gb18030", "big5", "cp932"):
        raw = text.encode(encoding, "replace")
        if _reads_as_utf8(raw, SEQUENCE_OF_THREE):
            return _("UTF-8 that was read as {encoding}", encoding="GBK" if encoding == "gb18030" else encoding)
    raw = text.translate(LATIN).encode("latin-1", "replace")
    found = SEQUENCE.findall(raw)
    single = len(found) == 1 and found[0][:1] in b"\xc2\xc3" and _high(raw) == 2
    if single or raw.find(b"\xe2\x80") >= 0 or _reads_as_utf8(raw, SEQUENCE):
        return _("{encoding} that was read as Latin-1", encoding="UTF-8")
    run = re.search("[\u00a1-\u00ff]{6,}", text)
    if run and len(set(re.findall("[\u00c0-\u00ff]", run.group()))) > 3:
        return _("{encoding} that was read as Latin-1", encoding="GBK")
    return ""


def oddities(text: str) -> List[Tuple[str, str]]:
    """(what, in English; the text around it) of what is only reported of a text."""
    found = []
    for what, pattern in ODDITIES:
        match = pattern.search(text)
        if match:
            found.append((what, text[max(0, match.start() - 8) : match.end() + 8]))
    return found


def _is_lost(text: str) -> bool:
    """Whether question marks are what is left of letters: nothing else, or many of them, in front of ASCII letters.

    A conversion that loses some letters beyond ASCII loses them all: 啊???这是什么 is what somebody typed.
    """
    letters = "".join(filter(str.isalpha, text))
    if not letters:
        return True
    return letters.isascii() and text.count("?") >= 0.3 * len(text) and bool(re.search(r"\?{2,}[^\W_]", text))


def _reads_as_utf8(raw: bytes, sequence: "re.Pattern[bytes]") -> bool:
    found = sequence.findall(raw)
    return len(found) > 1 and sum(map(len, found)) >= SHARE * _high(raw)


def _high(raw: bytes) -> int:
    """The number of bytes beyond ASCII."""
    return len(raw) - len(raw.translate(None, bytes(range(128, 256))))
