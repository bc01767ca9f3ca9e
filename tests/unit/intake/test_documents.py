"""Plain texts, cut into pieces."""

import pytest

from recipe.core.errors import InputWrong
from recipe.intake import documents
from support.kinds import read, run_of

CHAPTER = "职场压力人人都有。说出来，就轻一半。\n先休息，再想办法；" * 9


def test_pieces_lose_nothing_and_part_where_it_is_best():
    for text in (CHAPTER, "a" * 5000, "word " * 900, "段一。\n\n段二。\n\n" * 40, ""):
        for most in (32, 100, 1000):
            found = documents.split_text(text, most)
            assert "".join(found) == text
            assert all(len(piece) <= most for piece in found)
    assert documents.split_text("一。二三。四", 4) == ["一。", "二三。四"]
    assert documents.split_text("第一段\n\n第二段", 7) == ["第一段\n\n", "第二段"]


def test_texts_of_every_form(tmp_path, workbook):
    """A folder of folders, GBK, Markdown, JSON Lines, one column of a workbook: all of it, under no question."""
    place = tmp_path / "texts"
    (place / "inner").mkdir(parents=True)
    (place / "one.txt").write_bytes(("今天我们来说说怎么在工作中放松。" * 3).encode("gb18030"))
    (place / "inner" / "two.md").write_text("# 题目\n\n正文。", encoding="utf-8")
    (place / "three.jsonl").write_text('{"text": "第三篇"}\n{"text": "第四篇"}\n', encoding="utf-8")
    book = workbook(s=[["编号", "正文"], [1, "第五篇"], [2, None], [3, "第六篇"]])
    figures, found = read(run_of(tmp_path, "pretrain", [str(place), str(book)]))
    texts = [turn["output"] for one in found for turn in one]
    assert sorted(texts) == sorted(
        ["今天我们来说说怎么在工作中放松。" * 3, "# 题目\n\n正文。", "第三篇", "第四篇", "第五篇", "第六篇"]
    )
    assert {turn["input"] for one in found for turn in one} == {""}
    assert all("system" not in turn for one in found for turn in one)
    assert figures["rows"] == figures["conversations"] == 6
    assert [one["encoding"] for one in figures["read"]].count("GB18030 (GBK)") == 1


def test_long_texts_come_in_pieces(tmp_path):
    (tmp_path / "long.txt").write_text(CHAPTER, encoding="utf-8")
    run = run_of(tmp_path, "pretrain", [str(tmp_path / "long.txt")], data__piece=64)
    _, found = read(run)
    assert len(found) > 3
    assert "".join(one[0]["output"] for one in found).replace("\n", "") == CHAPTER.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", "好<|im_start|>坏", "control token"),
        ("x.txt", "  \n ", "blank"),
        ("x.csv", "a,b\n1,2\n", "no column of texts"),
        ("x.csv", "text,正文\n1,2\n", "2 columns could hold the texts"),
        ("x.jsonl", '{"title": "t"}\n', "no text under 'text'"),
    ],
)
def test_texts_that_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputWrong, match=said):
        read(run_of(tmp_path, "pretrain", [str(tmp_path / name)]))
