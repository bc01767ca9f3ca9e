"""Names files that are something else than their suffix says, by their first bytes."""

import re
import zipfile
from pathlib import Path

from recipe.core.files import lfs_pointer
from recipe.core.translation import _, listed, mark, sentences
from recipe.intake.cells import OtherFormat

ZIP = b"PK\x03\x04"
OLE = b"\xd0\xcf\x11\xe0"
AS_XLSX = mark("Save it as .xlsx in Excel, WPS or LibreOffice")
COPY, UNPACK, TYPE = mark("Copy its table into a workbook"), mark("Unpack it"), mark("Type its text into a workbook")
# How a file begins, what it is, what to do.
STARTS = (
    (b"%PDF", mark("a PDF document"), COPY),
    (b"{\\rtf", mark("an RTF document"), COPY),
    (b"\x1f\x8b", mark("packed by gzip"), UNPACK), (b"7z\xbc\xaf", mark("packed by 7-Zip"), UNPACK),
    (b"Rar!", mark("packed by RAR"), UNPACK), (b"\xfd7zXZ", mark("packed by xz"), UNPACK),
    (b"(\xb5/\xfd", mark("packed by zstd"), UNPACK), (b"BZh", mark("packed by bzip2"), UNPACK),
    (b"SQLite format 3", mark("a SQLite database"), mark("Export its table as UTF-8 .csv")),
    (b"\x89PNG", mark("an image"), TYPE), (b"\xff\xd8\xff", mark("an image"), TYPE),
    (b"ARROW1", mark("an Arrow file"), mark("Save it as .parquet")),
)  # fmt: skip
PARTS = (
    ("xl/workbook.bin", mark("a binary workbook (.xlsb)"), AS_XLSX),
    ("word/document.xml", mark("a Word document (.docx)"), COPY),
    ("ppt/presentation.xml", mark("a PowerPoint file (.pptx)"), COPY),
    ("index/document.iwa", mark("a Numbers or Pages file"), mark("Export it as .xlsx")),
)
HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body|table|meta|div)\b", re.I | re.S
)
SPREADSHEET_XML = re.compile(rb"\s*<\?xml.{0,400}(?:urn:schemas-microsoft-com:office:spreadsheet|progid=.Excel)", re.S)


def check(path: Path) -> None:
    """Raises OtherFormat for a file that is none of the supported formats, or another one than its suffix says.

    Every text names a remedy.
    """
    with path.open("rb") as stream:
        head = stream.read(2048)
    pointer = lfs_pointer(path)
    if pointer:
        raise OtherFormat(pointer)
    bare = head[3:] if head.startswith(b"\xef\xbb\xbf") else head
    if HTML.match(bare):
        raise OtherFormat(
            _(
                "it is a web page (HTML), often an export or a login page. Open it and save it as .xlsx in Excel, "
                "WPS or LibreOffice"
            )
        )
    if SPREADSHEET_XML.match(bare):
        raise OtherFormat(sentences(_("it is an XML spreadsheet of 2003."), _(AS_XLSX)))
    for start, what, remedy in STARTS:
        if head.startswith(start):
            raise OtherFormat(_is(what, remedy))
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") and suffix != ".parquet":
        raise OtherFormat(_("it is a Parquet file. Rename it to .parquet"))
    if head.startswith(ZIP):
        _check_archive(path, suffix)
    elif head.startswith(OLE) and suffix not in (".xlsx", ".xlsm"):
        raise OtherFormat(sentences(_("it is an old .xls or .doc file."), _(AS_XLSX)))


def _is(what: str, remedy: str) -> str:
    return sentences(_("it is {what}.", what=_(what)), _(remedy))


def _check_archive(path: Path, suffix: str) -> None:
    """Raises OtherFormat for a ZIP archive that is no workbook, or not named as one."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            names = {name.lower().replace("\\", "/") for name in archive.namelist()}
            kind = archive.read("mimetype")[:100] if "mimetype" in names else b""
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError, NotImplementedError):
        names, kind = set(), b""
    if b"opendocument" in kind:
        raise OtherFormat(sentences(_("it is an OpenDocument file (.ods)."), _(AS_XLSX)))
    for part, what, remedy in PARTS:
        if part in names:
            raise OtherFormat(_is(what, remedy))
    if "xl/workbook.xml" in names and suffix not in (".xlsx", ".xlsm"):
        raise OtherFormat(_("it is a workbook. Rename it to .xlsx"))
    inner = sorted(name for name in names if name.endswith((".xlsx", ".csv", ".json", ".jsonl", ".parquet", ".txt")))
    if inner and "[content_types].xml" not in names:
        raise OtherFormat(_("it is a ZIP archive that holds {files}. Unpack it", files=listed(inner[:3])))
    if suffix not in (".xlsx", ".xlsm"):
        raise OtherFormat(
            _("it is not a text file, but a ZIP archive. Unpack it, or give it the suffix of its format (.xlsx?)")
        )
