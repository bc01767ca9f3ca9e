"""Files and folders as one data set."""

import io
import json
import zipfile

import pytest

from support.command import recipe, refused
from support.intake import intake


def test_damaged_and_foreign_files_are_told_apart(workbook, tmp_path):
    good = workbook(s=[["q", "a"], *[[f"问{n}", f"答{n}" * 50] for n in range(300)]]).read_bytes()
    path = tmp_path / "x.xlsx"
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        middle = archive.getinfo("xl/worksheets/sheet1.xml").header_offset + 200
    for content, words in [
        (b"", "it is empty (0 bytes)"), (b"hello", "it is not an .xlsx file"),
        (good[: len(good) // 2], "damaged or cut off"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an old .xls file or protected by a password"),
        (good[:middle] + bytes(300) + good[middle + 300 :], "damaged or cut off"),
    ]:  # fmt: skip
        path.write_bytes(content)
        assert words in intake(path), words


def test_a_folder_is_one_data_set(workbook, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    workbook(s=[["q", "a"], ["甲", "一"]]).rename(folder / "b.xlsx")
    (folder / "a.csv").write_text("q,a\n乙,二\n", encoding="utf-8")
    (folder / "~$b.xlsx").write_bytes(b"lock")
    (folder / "README.md").write_text("no data", encoding="utf-8")
    done = recipe("data", "tiny", f'data.files=["{folder}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "tiny/dataset.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["conversation"][0]["input"] for line in lines] == ["乙", "甲"]
    assert "not read: " in done.stdout
    assert "README.md" in done.stdout
    (folder / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    refused(recipe("data", "tiny", f'data.files=["{folder}"]', "--output", tmp_path), 2, "old.xls", "Save it as .xlsx")
    refused(recipe("data", "tiny", f'data.files=["{folder / "~$b.xlsx"}"]', "--output", tmp_path), 2, "Name b.xlsx")


def test_duplicates_go_on_request(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["甲", "一"], ["乙", "二"], ["甲", "一"], ["甲", "三"]])
    for more, rows in (([], 4), (["data.dedupe=true"], 3)):
        done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", tmp_path, *more)
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / "tiny/dataset.jsonl").read_text(encoding="utf-8").splitlines()) == rows
    figures = json.loads((tmp_path / "tiny/run.json").read_text(encoding="utf-8"))["stages"]["data"]["figures"]
    assert (figures["conversations"], figures["duplicates"], figures["duplicates_dropped"]) == (3, 0, 1)


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path):
    peaks = []
    for rows in (10_000, 200_000):
        path = tmp_path / f"{rows}.csv"
        path.write_text("q,a\n" + "".join(f"问题{n}：怎么办？,先列清单{n}。\n" for n in range(rows)), encoding="utf-8")
        done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", tmp_path)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "tiny/run.json").read_text(encoding="utf-8"))
        figures = manifest["stages"]["data"]["figures"]
        assert figures["rows"] + figures["held_out"] == rows
        peaks.append(manifest["stages"]["data"]["peak_memory_mb"])
    # 190,000 rows more: 8 bytes each to keep, a moment's 60 to compare; the rows themselves are 9 MB, as objects 60
    assert peaks[1] - peaks[0] < 25, peaks
