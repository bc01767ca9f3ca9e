"""Files that are something else than their name says, and names that are no UTF-8."""

import gzip
import io
import os
import zipfile

import pytest

from support.command import recipe, refused
from support.intake import intake, pairs

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a21' * 10}abcd\nsize 12345\n"


def archive(**parts):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in parts.items():
            packed.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".xlsx", ".xlsm", ".csv", ".tsv", ".txt"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text(POINTER, encoding="utf-8")
    got = intake(path)
    assert "a Git LFS pointer" in got
    assert "`git lfs pull`" in got
    assert "Save it again" not in got


ODS = archive(mimetype="application/vnd.oasis.opendocument.spreadsheet", **{"content.xml": "<x/>"})


@pytest.mark.parametrize(
    ("suffixes", "content", "words"),
    [
        ([".xlsx", ".csv"], archive(**{"xl__workbook.bin": "x", "[Content_Types].xml": "<x/>"}), ".xlsb"),
        ([".xlsx", ".txt"], ODS, "OpenDocument file (.ods)"),
        ([".xlsx", ".csv"], archive(**{"word__document.xml": "<x/>", "[Content_Types].xml": "<x/>"}), "Word document"),
        ([".xlsx"], archive(**{"ppt__presentation.xml": "<x/>"}), "PowerPoint"),
        ([".xlsx", ".json"], archive(**{"a.xlsx": "x"}), "a ZIP archive that holds a.xlsx. Unpack it"),
        ([".csv", ".xlsx", ".json", ".txt"], b"<!DOCTYPE html>\n<html><body><table>", "a web page (HTML)"),
        ([".xlsx", ".csv"], b"\xef\xbb\xbf<html xmlns:x='urn:schemas-microsoft-com:office:excel'>",
        "a web page (HTML)"),
        ([".csv", ".xlsx"], b"\r\n<table border=1><tr><td>q</td></tr></table>", "a web page (HTML)"),
        ([".xlsx", ".csv"], b"<?xml version='1.0'?><Workbook xmlns='urn:schemas-microsoft-com:office:spreadsheet'>",
        "2003"),
        ([".csv", ".xlsx"], b"%PDF-1.7\n", "a PDF document"), ([".csv", ".txt"], b"{\\rtf1\\ansi", "an RTF document"),
        ([".csv", ".jsonl"], gzip.compress(b"q,a\n"), "packed by gzip"), ([".csv"], b"SQLite format 3\0", "SQLite"),
        ([".csv", ".xlsx"], b"\x89PNG\r\n\x1a\n", "an image"), ([".csv"], b"PAR1" + bytes(90), "Rename it to .parquet"),
        ([".csv", ".json"], b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(90), "an old .xls"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # an archive's bytes hold the time
)  # fmt: skip
def test_files_are_named_for_what_they_are(tmp_path, suffixes, content, words):
    for suffix in suffixes:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        got = intake(path)
        assert words in got
        assert "Save it again" not in got


def test_a_workbook_under_another_suffix(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["甲？", "一"]])
    for suffix in (".csv", ".txt", ".json"):
        (tmp_path / f"y{suffix}").write_bytes(path.read_bytes())
        assert "it is a workbook. Rename it to .xlsx" in intake(tmp_path / f"y{suffix}")


@pytest.mark.parametrize("text", ["<b>怎么办</b>,<div>好</div>\n", "<问>,<答>\n", "PK,说明\n", "version,1\n"])
def test_texts_that_begin_like_others_are_read(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(f"q,a\n{text}", encoding="utf-8")
    assert len(pairs(path)) == 1


def test_parts_with_backslashes_are_found(workbook, tmp_path):
    """As some writers on Windows pack them; Excel opens these."""
    source = workbook(s=[["q", "a"], ["甲？", "一"]], t=[["q", "a"], ["乙？", "二"]])
    path = tmp_path / "y.xlsx"
    with zipfile.ZipFile(str(source)) as old, zipfile.ZipFile(str(path), "w") as new:
        for name in old.namelist():
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = name.replace("/", "\\")
            new.writestr(entry, old.read(name))
    assert b"xl\\workbook.xml" in path.read_bytes()
    assert pairs(path) == [("甲？", "一"), ("乙？", "二")]


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis"])
def test_names_that_are_no_utf8_are_read(tmp_path, encoding):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("客服.csv", "日本.md"):
        with open(os.path.join(os.fsencode(str(folder)), name.encode(encoding, "replace")), "wb") as stream:
            stream.write("q,a\n甲？,一\n".encode())
    done = recipe("data", "tiny", f'data.files=["{folder}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 row," in done.stdout
    with open(os.path.join(os.fsencode(str(folder)), "坏.csv".encode(encoding, "replace")), "wb") as stream:
        stream.write("q,a\n甲？,\n".encode())
    done = recipe("data", "tiny", f'data.files=["{folder}"]', "--output", tmp_path)
    refused(done, 2, "row 2, column a: blank")


@pytest.mark.parametrize(
    ("name", "words"), [("x.docx", "document"), ("x.ods", "Save it as .xlsx"), ("x.xlsb", "(.xlsb)")]
)
def test_formats_that_are_not_read_are_named(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"x")
    refused(recipe("data", "tiny", f'data.files=["{tmp_path / name}"]', "--output", tmp_path), 2, name, words)
