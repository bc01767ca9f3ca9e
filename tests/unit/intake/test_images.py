"""Images with texts: what is read and refused."""

import json

import pytest
from PIL import Image

from benchmarks import families as tiny_families
from recipe.core.errors import InputWrong
from recipe.stages import pipeline
from support.llava import FIRST, read, run_of

# ---- data


def test_tables_and_llavas_own_json_give_the_same_rows(tmp_path, workbook):
    tiny_families.pictures(tmp_path, times=1)
    book = workbook(
        s=[
            ["图片", "问题", "答案"],
            ["seen/red.png", "什么颜色？", "红色。"],
            ["seen\\blue.png", "<image>呢？", "蓝。"],
        ]
    )
    figures, found = read(run_of(tmp_path, "one", FIRST, book, "data.system=你看图。"))
    assert figures["images"] == figures["rows"] == 2
    assert found[0]["image"] == "seen/red.png"
    assert found[0]["conversation"] == [{"system": "你看图。", "input": "<image>\n什么颜色？", "output": "红色。"}]
    assert found[1]["conversation"][0]["input"] == "<image>\n呢？"
    rows = [
        {"id": 1, "image": "red.png", "conversations": [
            {"from": "human", "value": "什么颜色？\n<image>"}, {"from": "gpt", "value": "红色。"},
            {"from": "human", "value": "还有呢？"}, {"from": "gpt", "value": "没有了。"}]},
        {"image": "blue.png", "q": "呢？", "a": "蓝。"},
    ]  # fmt: skip
    (tmp_path / "own.json").write_text(json.dumps(rows), encoding="utf-8")
    asked = [f"data.images={tmp_path / 'seen'}", "data.system=你看图。"]
    _, again = read(run_of(tmp_path, "two", FIRST, tmp_path / "own.json", *asked))
    assert again[0]["conversation"][0] == found[0]["conversation"][0]
    assert again[0]["conversation"][1] == {"input": "还有呢？", "output": "没有了。"}
    assert [row["image"] for row in again] == ["red.png", "blue.png"]
    assert [row["sha256"] for row in again] == [row["sha256"] for row in found]


def test_images_that_are_refused_are_named_with_their_row(tmp_path, workbook):
    tiny_families.pictures(tmp_path, times=1)
    good = (tmp_path / "seen" / "red.png").read_bytes()
    flipped = bytearray(good)
    flipped[good.index(b"IDAT") + 6] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(bytes(flipped))
    Image.effect_noise((64, 64), 50).save(str(tmp_path / "whole.jpg"))
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    Image.new("RGB", (900, 2)).save(str(tmp_path / "line.png"))
    Image.new("1", (14000, 7000)).save(str(tmp_path / "huge.png"))
    names = ["gone.png", "flipped.png", "cut.jpg", "text.png", "line.png", "huge.png", "seen/red.png", None]
    book = workbook(甲=[["image", "q", "a"], *([name, "问", "答"] for name in names)])
    with pytest.raises(InputWrong) as caught:
        read(run_of(tmp_path, "x", FIRST, book))
    told = str(caught.value).splitlines()
    for row, said in ((2, "no such file"), (3, "cannot be read"), (4, "cannot be read"), (5, "cannot be read"),
                      (6, "900 × 2 pixels"), (7, "more than"), (9, "blank")):  # fmt: skip
        [line] = [line for line in told if f"sheet 甲, row {row}, image" in line]
        assert said in line
        assert names[row - 2] is None or names[row - 2] in line
    assert not any("row 8" in line for line in told)


@pytest.mark.parametrize(
    ("header", "said"),
    [(["bild", "q", "a"], "no column of images. Found: bild, q, a"), (["image", "图片", "a", "q"], "image and 图片")],
)
def test_the_column_of_images_must_be_told(tmp_path, workbook, header, said):
    with pytest.raises(InputWrong, match=said):
        read(run_of(tmp_path, "x", FIRST, workbook(s=[header, ["x.png"] * len(header)])))


def test_one_question_about_two_images_is_no_duplicate(tmp_path, workbook):
    tiny_families.pictures(tmp_path, times=1)
    rows = [[f"seen/{name}.png", "几个？", "一个。"] for name in ("red", "blue", "blue")]
    run = run_of(tmp_path, "one", FIRST, workbook(s=[["image", "q", "a"], *rows]))
    pipeline.run_stages(run, "plan")
    assert run.figures("data")["duplicates"] == run.figures("plan")["duplicates"] == 1
