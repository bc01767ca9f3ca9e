"""Names files that are something else than their suffix says, by their first bytes."""

import re
import zipfile
from pathlib import Path

from recipe.core.files import lfs_pointer
from recipe.intake.cells import UnreadableFile

ZIP = b"PK\x03\x04"
OLE = b"\xd0\xcf\x11\xe0"
AS_XLSX = "Save it as .xlsx in Excel, WPS or LibreOffice"
# How a file begins, what it is, what to do.
STARTS = (
    (b"%PDF", "a PDF document", "Copy its table into a workbook"),
    (b"{\\rtf", "an RTF document", "Copy its table into a workbook"),
    (b"\x1f\x8b", "packed by gzip", "Unpack it"), (b"7z\xbc\xaf", "packed by 7-Zip", "Unpack it"),
    (b"Rar!", "packed by RAR", "Unpack it"), (b"\xfd7zXZ", "packed by xz", "Unpack it"),
    (b"(\xb5/\xfd", "packed by zstd", "Unpack it"), (b"BZh", "packed by bzip2", "Unpack it"),
    (b"SQLite format 3", "a SQLite database", "Export its table as UTF-8 .csv"),
    (b"\x89PNG", "an image", "Type its text into a workbook"), (b"\xff\xd8\xff", "an image",
    "Type its text into a workbook"),
    (b"ARROW1", "an Arrow file", "Save it as .parquet"),
)  # fmt: skip
PARTS = (
    ("xl/workbook.bin", "a binary workbook (.xlsb)", AS_XLSX), ("word/document.xml", "a Word document (.docx)",
     "Copy its table into a workbook"), ("ppt/presentation.xml", "a PowerPoint file (.pptx)",
     "Copy its table into a workbook"),
    ("index/document.iwa", "a Numbers or Pages file", "Export it as .xlsx"),
)  # fmt: skip
HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body|table|meta|div)\b", re.I | re.S
)
SPREADSHEET_XML = re.compile(rb"\s*<\?xml.{0,400}(?:urn:schemas-microsoft-com:office:spreadsheet|progid=.Excel)", re.S)


def check(path: Path) -> None:
    """Raises UnreadableFile for a file that is none of the supported formats, or another one than its suffix says."""
    with path.open("rb") as stream:
        head = stream.read(2048)
    pointer = lfs_pointer(path)
    if pointer:
        raise UnreadableFile(pointer)
    bare = head[3:] if head.startswith(b"\xef\xbb\xbf") else head
    if HTML.match(bare):
        raise UnreadableFile(
            f"it is a web page (HTML), often an export or a login page. Open it and {AS_XLSX[0].lower()}{AS_XLSX[1:]}"
        )
    if SPREADSHEET_XML.match(bare):
        raise UnreadableFile(f"it is an XML spreadsheet of 2003. {AS_XLSX}")
    for start, what, remedy in STARTS:
        if head.startswith(start):
            raise UnreadableFile(f"it is {what}. {remedy}")
    suffix = path.suffix.lower()
    if head.startswith(b"PAR1") and suffix != ".parquet":
        raise UnreadableFile("it is a Parquet file. Rename it to .parquet")
    if head.startswith(ZIP):
        _check_archive(path, suffix)
    elif head.startswith(OLE) and suffix not in (".xlsx", ".xlsm"):
        raise UnreadableFile(f"it is an old .xls or .doc file. {AS_XLSX}")


def _check_archive(path: Path, suffix: str) -> None:
    """Raises UnreadableFile for a ZIP archive that is no workbook, or not named as one."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            names = {name.lower().replace("\\", "/") for name in archive.namelist()}
            kind = archive.read("mimetype")[:100] if "mimetype" in names else b""
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError, NotImplementedError):
        names, kind = set(), b""
    if b"opendocument" in kind:
        raise UnreadableFile(f"it is an OpenDocument file (.ods). {AS_XLSX}")
    for part, what, remedy in PARTS:
        if part in names:
            raise UnreadableFile(f"it is {what}. {remedy}")
    if "xl/workbook.xml" in names and suffix not in (".xlsx", ".xlsm"):
        raise UnreadableFile("it is a workbook. Rename it to .xlsx")
    inner = sorted(name for name in names if name.endswith((".xlsx", ".csv", ".json", ".jsonl", ".parquet", ".txt")))
    if inner and "[content_types].xml" not in names:
        raise UnreadableFile(f"it is a ZIP archive that holds {', '.join(inner[:3])}. Unpack it")
    if suffix not in (".xlsx", ".xlsm"):
        raise UnreadableFile(
            "it is not a text file, but a ZIP archive. Unpack it, or give it the suffix of its format (.xlsx?)"
        )
