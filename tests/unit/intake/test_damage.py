"""Cells that are not what they seem: refused, or told with their place."""

import openpyxl
import pytest

from recipe.intake import damage
from recipe.reporting.data_survey import Survey
from support.command import recipe
from support.intake import intake, pairs

TEXT = "怎么申请年假？在系统里填申请，主管同意后生效。"
KOREAN, RUSSIAN = "연차는 어떻게 신청하나요", "Как взять отпуск?"


def broken(text, saved, read):
    """A text saved in one encoding and read in another."""
    return text.encode(saved).decode(read, "ignore")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("?????????", "question marks"), ("????ERP????", "question marks"), ("??????OA??????", "question marks"),
        ("???,???", "question marks"), ("2024??????", "question marks"), ("??? ??? ???", "question marks"),
        (broken(TEXT, "utf-8", "latin-1").replace("\x85", ""), "Latin-1"), (broken(TEXT, "utf-8", "cp1252"), "Latin-1"),
        (broken("Größe und café, déjà vu", "utf-8", "cp1252"), "Latin-1"), ("donâ€™t worry", "Latin-1"),
        (broken(RUSSIAN, "utf-8", "cp1252"), "Latin-1"), ("cafÃ©", "Latin-1"),
        (broken(TEXT, "utf-8", "gb18030"), "GBK"), (broken(TEXT, "utf-8", "gbk"), "GBK"),
        (broken("报销要多久？", "utf-8", "gb18030"), "GBK"), (broken(KOREAN, "utf-8", "gb18030"), "GBK"),
        (broken(TEXT, "utf-8", "cp932"), "cp932"),
        (broken(TEXT, "gbk", "latin-1"), "GBK that was read as Latin-1"),
        (broken("在系统里填申请", "gbk", "cp1252"), "GBK that was read as Latin-1"),
        ("用户锟斤拷锟斤拷填写", "锟斤拷"), ("缺\ufffd字", "U+FFFD"),
    ],
)  # fmt: skip
def test_lost_texts_are_refused_with_their_cell(workbook, text, words):
    for row in ([text, "答得很好"], ["问得很好", text]):
        got = intake(workbook(s=[["q", "a"], *[["问题几？", "回答"]] * 4, row]))
        assert "sheet s, row 6, column " + ("q" if row[0] == text else "a") in got, got
        assert words in got


@pytest.mark.parametrize(
    "text",
    [
        "What???", "真的吗？？？", "啊？?", "“café…” 很好", "«été»", "Ça va? Très bien, à bientôt!",
        "São Paulo é bonito", "ÄÖÜ äöü ß",
        "沐浴、渝水、波澜、淼淼、忐忑", "鎏金鎬头", "饕餮盛宴，魑魅魍魉都来了", "請先填寫表單，再請主管簽名",
        "휴가 신청", "休暇を取りますか", RUSSIAN,
        "······", "°C、±5、×3、÷2", "naïve “quote” — dash…", "1.5E-19", "A??", "烫烫烫！", "100%!!!",
        "https://a.b/c?d=e&f=g", "“”‘’……——",
        "Ünïcödé", "Nguyễn Văn Đức", "¿Qué tal? ¡Muy bien!", "ñandú", "q???",
    ],
)  # fmt: skip
def test_honest_texts_are_read(workbook, text):
    assert pairs(workbook(s=[["q", "a"], ["问", text]])) == [("问", text)]
    assert damage.oddities(text) == []


@pytest.mark.parametrize(
    "error",
    ["#FIELD!", "#BLOCKED!", "#CONNECT!", "#GETTING_DATA", "#UNKNOWN!", "#BUSY!", "#PYTHON!", "#EXTERNAL!", "#TIMEOUT!",
     "#SPILL!", "#CALC!", "#N/A", "#n/a", "#WERT!", "#NV", "#¿NOMBRE?", "#NAME?", "#DIV/0!", "Err:502", "#ERROR!",
     "####"],
)  # fmt: skip
def test_errors_of_every_spreadsheet_are_refused(workbook, tmp_path, error):
    rows = [["q", "a"], *[["问题几？", "回答"]] * 4, ["问得很好", error]]
    assert f"row 6, column a: the error {error}" in intake(workbook(s=rows))
    (tmp_path / "x.csv").write_text("".join(f"{q},{a}\n" for q, a in rows), encoding="utf-8")
    assert f"row 6, column a: the error {error}" in intake(tmp_path / "x.csv")


@pytest.mark.parametrize("text", ["#1", "#话题#", "# 标题", "#win", "Error: 502", "#a!"])
def test_what_begins_like_an_error_is_read(workbook, text):
    assert pairs(workbook(s=[["q", "a"], ["问", text]])) == [("问", text)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("\ufeff试用期多长？", "nobody sees"), ("试用\u200b期多长？", "nobody sees"), ("试\u2060用期", "nobody sees"),
        ("试\u200d用期", "nobody sees"), ("\u202e试用期", "nobody sees"), ("见下图\ufffc。", "U+FFFC"),
        ("按\ue004键", "private-use"), (r"第一步：打开\n第二步：保存", "two characters"), (r"Open it.\nSave it.",
        "two characters"),
        (r"一、打开\r\n二、保存", "two characters"), ("a??b", "question marks inside"), ("啊???这是什么",
         "question marks inside"), ("你好??ERP",
        "question marks inside"),
        ("甲&nbsp;乙", "HTML"), ("他说&quot;好&quot;", "HTML"),
    ],
)  # fmt: skip
def test_odd_characters_are_told_with_their_row(workbook, tmp_path, text, what):
    rows = [["q", "a"], *[["问题几？", "回答"]] * 4, ["问得很好", f"{text}，好的"]]
    path = workbook(s=rows)
    done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert what in done.stdout
    assert "sheet s, row 6, column a" in done.stdout
    survey = Survey()
    survey.add(1, [{"input": "问", "output": text}])
    assert [what in issue for issue in survey.mistakes].count(True) == 1


@pytest.mark.parametrize("text", ["👨‍👩‍👧", "❤️", r"C:\new\table", r"$\nabla \neq \nu$", "می‌خواهم", "print('a')"])
def test_characters_in_their_place_are_not_told(text):
    assert damage.oddities(text) == []


@pytest.mark.parametrize("text", ["好的。 ", "好的。\n\n ", " 好的。", "好的。\u3000", "订单 1.002E+17", "1.38E+10"])
def test_the_report_finds_blanks_and_shortened_numbers(text):
    survey = Survey()
    survey.add(1, [{"input": "怎么办？", "output": text}])
    assert any("blanks" in issue or "shortened" in issue for issue in survey.mistakes)


ROWS = "".join(f"第{n}问？{{0}}第{n}答\n" for n in range(11, 90))


@pytest.mark.parametrize(
    ("separator", "cell", "row"),
    [
        ("\t", '"第一种说法\n' + ROWS + '第90问{0}第二种说法"', 3), ("\t", '"第一种说法\n第11问{0}第11答"', 3),
        (",", '"第一种说法\n' + ROWS + '第90问？{0}第二种说法"', 3), (";", '"第一种说法\n第11问{0}第11答"', 3),
        (",", '"第一种说法\n第11问？{0}第11答\n第12问？{0}第12答"', 3), ("|",
        '"第一种\n第11问{0}第11答\n第12问{0}第12答"', 3),
    ],
)  # fmt: skip
def test_a_quote_that_swallows_rows_is_refused_where_it_begins(tmp_path, separator, cell, row):
    path = tmp_path / "x.csv"
    path.write_text(
        f"问题,回答\n第9问,第9答\n第10问,{cell}\n第95问,第95答\n".replace(",", separator).format(separator), "utf-8"
    )
    assert f"row {row}, column 回答: its quote is closed" in intake(path)


@pytest.mark.parametrize(
    ("separator", "answer"),
    [
        (",", "第一,列清单。\n第二,排优先级。\n第三,沟通。"), (",", "先说明,再给时间。\n谢谢"), ("\t",
        "第一，\n第二，\n第三。"), (";", "a;b\nc"),
        (",", "name,age,city\nli,18,bj"), (",", "怎么办？先想,再做。\n好。"),
    ],
)  # fmt: skip
def test_quoted_lists_are_read(tmp_path, separator, answer):
    path = tmp_path / "x.csv"
    path.write_text(f'问题{separator}回答\n怎么办？{separator}"{answer}"\n', encoding="utf-8")
    assert pairs(path) == [("怎么办？", answer)]


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("问题,回答,\n怎么打卡？,先开软件,再点打卡\n", 2), ("问题,回答,\n甲？,一,\n怎么打卡？,先开软件,再点打卡\n", 3),
        ("问题,回答,,\n怎么打卡？,先开软件,再点,打卡\n", 2), ("问题;回答;\n怎么打卡？;先开软件;再点打卡\n", 2),
        ("编号,问题,回答,\n1,怎么打卡？,先开软件,再点打卡\n", 2), ("问题,,回答\n你好,在吗,在的\n", 2),
    ],
)  # fmt: skip
def test_a_separator_that_cuts_a_cell_is_refused_with_its_row(tmp_path, text, row):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    assert f"row {row}: " in intake(path)
    assert "Quote a cell that holds a separator" in intake(path)


@pytest.mark.parametrize("text", ["问题,回答,\n甲？,一,\n", ",question,answer\n0,甲？,一\n", "问题,回答,\n甲？,一, \n"])
def test_a_column_without_a_name_that_cuts_nothing_is_read(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    assert pairs(path) == [("甲？", "一")]


IDS = ["1.002E+17", "1.002e+17", "2E+17", "100200300400500000", "1002003004005000"]


@pytest.mark.parametrize("identity", IDS)
def test_ids_that_excel_cut_are_refused(tmp_path, identity):
    path = tmp_path / "x.csv"
    path.write_text("会话ID,问题,回答\n" + "".join(f"{identity},{n}问？,{n}答\n" for n in range(8)), encoding="utf-8")
    assert "column 会话ID" in intake(path)
    assert "formatted as text" in intake(path)


def test_ids_of_a_workbook_that_are_too_long_for_a_number(tmp_path):
    book = openpyxl.Workbook()
    for row in [["会话ID", "问题", "回答"], [100200300400500612, "甲？", "一"], [100200300400500613, "乙？", "二"]]:
        book.active.append(row)
    book.save(str(tmp_path / "x.xlsx"))
    assert "row 2, column 会话ID: " in intake(tmp_path / "x.xlsx")


@pytest.mark.parametrize(
    "ids", [["100200300400500612", "100200300400500000"], ["7", "7"], ["a1E+5", "b"], ["123456789012345", "7"]]
)
def test_whole_ids_are_read(tmp_path, ids):
    path = tmp_path / "x.csv"
    path.write_text("会话ID,问题,回答\n" + "".join(f"{one},甲{one}？,一\n" for one in ids), encoding="utf-8")
    assert len(intake(path)) == len(set(ids))


def test_the_report_says_what_it_looked_for(workbook, tmp_path):
    path = workbook(s=[["q", "a"], *[[f"怎么做第{n}件事？", f"先列出第{n}张清单，再开始。"] for n in range(9)]])
    done = recipe("data-report", "tiny", f'data.files=["{path}"]', "--output", tmp_path)
    assert "likely mistakes: none found. Looked for: duplicates" in done.stdout
    page = (tmp_path / "tiny" / "data-report.html").read_text(encoding="utf-8")
    assert "Looked for: duplicates" in page
