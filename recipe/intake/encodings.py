"""Detects the encoding of a text file: UTF-8, UTF-16 or GB18030 (GBK), as Excel, WPS and databases export it.

Written here because charset detectors guess: they take Big5, EUC-KR or damaged UTF-8 for GBK, and the garbage would be
trained. This accepts GB18030 only for text that reads like Chinese.
"""

import codecs
import re
from pathlib import Path
from typing import List, Tuple

from recipe.core.translation import _, mark
from recipe.intake.cells import UnreadableFile

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# The most frequent characters of Chinese, with their traditional forms.
FREQUENT = frozenset(
    "的一是不了在有我他这中大来上个国和地到时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都"
    "同现当没动面起看定天分还进好小部其些主样理心本前开但因只从想日者意无力与长把机明情问三民两它公高体最新相手间实加又关使点业外"
    "重什每月全或目先更很再见工给做感谢請说怎吗吧呢哪谁为何"
    "這來個國時會對於著過發後裡種經麼學現當沒動還進樣開從無與長機問兩體間實關點業見給謝說嗎為"
)
READABLE = re.compile("[\t\r\n -~\u00a0-\u00ff\u2010-\u2027\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")
NAMES = {"utf-8": "UTF-8", "utf-8-sig": mark("UTF-8 with a mark"), "gb18030": "GB18030 (GBK)"}


def display_name(encoding: str) -> str:
    """The encoding's name, in English as it is stored."""
    return NAMES.get(encoding, encoding.upper())


def detect(path: Path) -> str:
    """The encoding of a text file, as Python names it. Raises UnreadableFile if it is not one of ours for certain."""
    with path.open("rb") as stream:
        head = stream.read(1 << 16)
    for start, name in BYTE_ORDER_MARKS:
        if head.startswith(start):
            return name
    if 0 in head:
        # In UTF-16 half of the bytes of ASCII are zero; text in any other encoding has none.
        zeros = [head[start::2].count(0) for start in (0, 1)]
        if max(zeros) > len(head) // 16 and len(head) % 2 == 0:
            return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
        name = _utf16(head)
        if name:
            return name
        raise UnreadableFile(_("it holds NUL bytes: save it as UTF-8"))
    reasons: List[str] = []
    name = next((name for name in ("utf-8", "gb18030") if _decodes(path, name, reasons)), "")
    if name == "utf-8":
        return name
    non_ascii = sum(byte > 127 for byte in head)
    if 3 * len(re.findall(b"[\xe1-\xef][\x80-\xbf][\x80-\xbf]", head)) > non_ascii // 3:
        raise UnreadableFile(_("it is damaged UTF-8 ({reason}): save it as UTF-8 again", reason=reasons[0]))
    if not name:
        raise UnreadableFile(
            _(
                "its encoding is not UTF-8, UTF-16 or GB18030 ({reasons}): save it as UTF-8",
                reasons=_("; ").join(reasons),
            )
        )
    if not _reads_like_chinese(codecs.getincrementaldecoder(name)(decode_errors(name)).decode(head)):
        raise UnreadableFile(
            _("its encoding is not UTF-8, and as GB18030 (GBK) it does not read like Chinese: save it as UTF-8")
        )
    return name


def _utf16(head: bytes) -> str:
    """UTF-16 without a mark in a text of few ASCII characters: the order of bytes in which it reads; "" for neither."""
    shares = {}
    if len(head.translate(None, bytes(range(128)))) < len(head) // 20:
        return ""  # ASCII with some NUL bytes: two letters look like one Chinese character
    for name in ("utf-16-le", "utf-16-be"):
        text = head[: len(head) // 2 * 2].decode(name, "replace")
        shares[name] = sum(bool(READABLE.match(character)) for character in text) / max(1, len(text))
        if not set(text) & set("\n\t,"):
            shares[name] = 0.0
    best = max(shares, key=lambda name: shares[name])
    return best if len(head) % 2 == 0 and shares[best] > 0.98 and min(shares.values()) < shares[best] else ""


def _decodes(path: Path, name: str, reasons: List[str]) -> bool:
    """Whether the whole file decodes; if not, `reasons` gets the position of the first invalid byte."""
    decoder = codecs.getincrementaldecoder(name)(decode_errors(name))
    position = 0
    try:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                decoder.decode(block)
                position += len(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        reasons.append(_("byte {n:,} is not {encoding}", n=position + error.start + 1, encoding=NAMES[name]))
        return False
    return True


def _reads_like_chinese(text: str) -> bool:
    """Whether a text is likely Chinese.

    Other encodings read as GB18030 give private-use characters (Big5), characters inside words (Western encodings),
    characters outside the 3,755 common ones of GB2312, or common characters that are rarely frequent ones (Korean).
    """
    han = [character for character in text if ord(character) > 127 and character.isalpha()]
    leads = [character.encode("gb2312", "replace")[:1] for character in han]
    common = sum(b"\xb0" <= lead <= b"\xd7" for lead in leads)
    frequent = sum(character in FREQUENT for character in han)
    kana = sum("\u3040" <= character <= "\u30ff" for character in han)
    # Korean lies in the first third of what Chinese uses, whose most frequent characters are mostly beyond it.
    korean = len(han) >= 8 and all(b"\xb0" <= lead <= b"\xc8" for lead in leads) and frequent < len(han) * 0.2
    if korean or kana > len(han) * 0.2:
        return False
    inside = len(re.findall(r"(?<=[a-z])[^\x00-\x7f](?=[a-z])", text))
    return (
        not re.search("[\ue000-\uf8ff]", text)
        and inside <= len(han) // 4
        and common >= len(han) * 0.45
        and (len(han) < 30 or frequent >= len(han) * 0.2)
    )


def decode_errors(encoding: str) -> str:
    """Python's error handler for decoding a file of this encoding."""
    return "gbk-euro" if encoding == "gb18030" else "strict"


def _decode_euro(error: UnicodeError) -> Tuple[str, int]:
    """Chinese Windows writes the euro sign as the byte 0x80, which GB18030 does not have."""
    if isinstance(error, UnicodeDecodeError) and error.object[error.start] == 0x80:
        return "€", error.start + 1
    raise error


codecs.register_error("gbk-euro", _decode_euro)
