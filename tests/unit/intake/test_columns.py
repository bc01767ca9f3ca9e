"""Headers, and which column means what."""

import openpyxl
import pytest

from recipe.core.settings import Columns
from recipe.intake import columns
from support.command import recipe
from support.intake import intake, pairs


def test_headers_of_two_rows_and_headers_further_down(tmp_path, workbook):
    book = openpyxl.Workbook()
    for row in [["q", "a", "备注"], [None, None, "作者"], ["甲", "一", "x"]]:
        book.active.append(row)
    book.active.merge_cells("A1:A2")
    book.active.merge_cells("B1:B2")
    book.save(str(tmp_path / "x.xlsx"))
    assert pairs(tmp_path / "x.xlsx") == [("甲", "一")]
    got = intake(workbook(s=[["q", "a"], ["甲", "一"], ["答案", "问题"], ["二", "乙"], ["q", "a"]]))
    assert "row 3: another header (答案, 问题)" in got
    assert "row 5: another header (q, a)" in got


def test_columns_without_a_name_are_said(workbook, tmp_path):
    path = workbook(s=[["q", "a", None], ["甲", "一", "还有"], ["乙", "二", None, "更多"]])
    done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", tmp_path)
    assert "not read: column C (without a name), column D (without a name)" in done.stdout


def test_header_below_a_title_hidden_sheets_and_sheets_by_name(tmp_path):
    book = openpyxl.Workbook()
    for row in [["常见问题"], [], ["编号", "提问（必填）", "回答:"], [1, "甲", "一"]]:
        book.active.append(row)
    hidden = book.create_sheet("旧")
    hidden.append(["问题", "答案"])
    hidden.append(["乙", "二"])
    hidden.sheet_state = "hidden"
    book.create_sheet("说明").append(["note"])
    path = tmp_path / "x.xlsx"
    book.save(str(path))
    assert pairs(path) == [("甲", "一")]
    assert pairs(path, sheet="旧") == [("乙", "二")]
    assert "there is no sheet 新 (data.sheet). It has: Sheet, 旧, 说明" in intake(path, sheet="新")


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        (["q", "a"], {"question": 0, "answer": 1}), (["Q ", " Ａ"], {"question": 0, "answer": 1}),
        (["答案", "问题"], {"answer": 0, "question": 1}), (["序号", "提 问", "回复"], {"question": 1, "answer": 2}),
        (["Question", "Response", "System Prompt"], {"question": 0, "answer": 1, "system": 2}),
        (["instruction", "input", "output"], {"question": 0, "more": 1, "answer": 2}),
        (["会话ID", "轮次", "用户提问", "助手回答"], {"conversation": 0, "turn": 1, "question": 2, "answer": 3}),
        (["题目", "A", "B", "C", "正确答案"], {"question": 0, "answer": 4}), (["题目", "A", "B"], {"question": 0}),
        (["系统", "问题", "答案"], {"question": 1, "answer": 2}),
        (["用户", "咨询内容", "回复"], {"question": 1, "answer": 2}),
        (["instruction", "context", "response"], {"question": 0, "more": 1, "answer": 2}),
        (["prompt_text", "reply_text"], {}),
    ],
)  # fmt: skip
def test_columns_are_found_by_the_names_people_give_them(header, roles):
    assert columns.find_columns(header, {}).roles == roles


def test_doubtful_columns_are_settled_by_the_recipe(workbook):
    path = workbook(s=[["问题", "q", "标准话术"], ["甲", "乙", "丙"]])
    assert "no sheet with a row that names" in intake(path)
    chosen = Columns(question="问题", answer="标准话术")
    assert pairs(path, columns=chosen) == [("甲", "丙")]
    path = workbook(s=[["问题", "提问", "a"], ["甲", "乙", "丙"]])
    assert "问题 and 提问 could both be the question. Say which: data.columns.question=问题" in intake(path)
    assert "the column q appears twice" in intake(workbook(s=[["q", "q", "a"], ["甲", "乙", "丙"]]))


def test_columns_of_alpaca_are_one_question(workbook):
    rows = [["instruction", "input", "output"], ["译成英文", "你好", "Hello"], ["问好", None, "你好"]]
    assert pairs(workbook(s=rows)) == [("译成英文\n你好", "Hello"), ("问好", "你好")]
