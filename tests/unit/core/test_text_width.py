"""Columns of a terminal with Chinese text."""

import pytest
from rich.console import Console
from rich.table import Table

from recipe.core import text_width, translation
from recipe.core.text_width import fold, ljust, rjust, width, wrap


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", 0),
        ("base", 4),
        ("底座模型", 8),
        ("显存 24 GB", 10),
        ("，。：；（）", 12),
        ("→ … · × é", 9),  # one column each, as in UTF-8 terminals
        ("e\u0301", 1),  # an accent of its own
        ("a\u200bb\ufe0f", 2),  # a zero-width blank and a variation selector
        ("ＡＢ", 4),
    ],
)
def test_width(text, columns):
    assert width(text) == columns


def test_columns_are_filled_and_never_cut():
    assert ljust("磁盘", 10) == "磁盘      "
    assert rjust("磁盘", 10) == "      磁盘"
    assert ljust("磁盘", 3) == rjust("磁盘", 3) == "磁盘"
    assert ljust("disk", 10) == f"{'disk':10}"
    assert rjust("disk", 10) == f"{'disk':>10}"


def test_english_breaks_at_blanks_alone():
    assert wrap("the question (row 3) is empty, fill it in", 14) == [
        "the question",
        "(row 3) is",
        "empty, fill it",
        "in",
    ]
    assert wrap("a/path/that/is/longer and more", 10) == ["a/path/that/is/longer", "and more"]
    assert wrap("  many \n blanks  ", 40) == ["many blanks"]
    assert wrap("", 10) == [""]


def test_chinese_breaks_between_characters():
    assert wrap("补上问题或删除这一行", 8) == ["补上问题", "或删除这", "一行"]


@pytest.mark.parametrize("columns", range(6, 40))
def test_lines_are_full_and_begin_and_end_as_chinese_does(columns):
    text = "运行 just plan（只算计划，不训练），再看“显存”一栏：24 GB 够用；不够时，用 LoRA（4 位）。还不行？换卡！"
    lines = wrap(text, columns)
    assert all(width(line) <= columns or " " not in line for line in lines)
    assert not any(line[0] in text_width.CLOSING or line[-1] in text_width.OPENING for line in lines)
    assert not any(line != line.strip() for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    words = ("just", "plan", "24", "GB", "LoRA")
    assert all(any(word in line for line in lines) for word in words)


def test_a_mark_stays_with_what_it_closes():
    assert wrap("一二三。四", 6) == ["一二", "三。四"]
    assert wrap("一二（三）", 6) == ["一二", "（三）"]
    assert wrap("用 LoRA，四位", 6) == ["用", "LoRA，", "四位"]
    assert wrap("这是(a)的", 6) == ["这是", "(a)的"]


@pytest.mark.parametrize(
    "text", ["RunPod 0.20 到 0.43 USD；Vast.ai 0.40 到 0.51 USD", "没有空格的一行中文也要在窄列里全部显示出来"]
)
@pytest.mark.parametrize("columns", range(8, 40))
def test_tables_lose_no_chinese(text, columns, capsys):
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row(text)
    with translation.use("zh"):
        fold(table)
    Console(width=columns).print(table)
    assert "".join(capsys.readouterr().out.split()) == "".join(text.split())
