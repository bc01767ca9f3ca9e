"""Places that are stored in English are shown in Chinese."""

import pytest

from recipe.core import translation
from recipe.intake import places


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("data/faq.xlsx", "data/faq.xlsx"),
        ("data/faq.xlsx, sheet 问答, row 5, column q", "data/faq.xlsx 工作表“问答”第 5 行“q”列"),
        ("a, b.csv, row 5 (line 7)", "a, b.csv 第 5 行（文件中第 7 行）"),
        ("x.jsonl, line 3, turn 2, answer", "x.jsonl 第 3 行第 2 轮回答"),
        ("x.json, item 12, system", "x.json 第 12 项系统提示词"),
        ("x.xlsx, sheet row 5, row 6", "x.xlsx 工作表“row 5”第 6 行"),
        ("x.xlsx, sheet old (hidden)", "x.xlsx 工作表“old”（隐藏）"),
        ("x.xlsx, sheet 说明: 版本, 日期", "x.xlsx 工作表“说明”：版本, 日期"),
        ("x.csv, row 2, column a, row 3", "x.csv 第 2 行“a, row 3”列"),
        ("x.csv, row 2, column two\nlines", "x.csv 第 2 行“two\nlines”列"),
        ("column AB (without a name)", "AB 列（没有列名）"),
    ],
)
def test_places_in_chinese(place, shown):
    assert places.in_words(place) == place
    with translation.use("zh"):
        assert places.in_words(place) == shown
