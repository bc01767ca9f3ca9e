"""Readers of workbooks, delimited text, JSON and Parquet, against pandas and openpyxl where those read the same."""

import codecs
import datetime
import io
import json
import random
import re
import zipfile

import openpyxl
import pandas
import pytest
from conftest import ROOT, recipe, refused
from openpyxl.utils.escape import unescape

from recipe.core.errors import InputWrong
from recipe.core.settings import Columns, Data
from recipe.intake import columns, encodings, formats, records, tables, xlsx, xml_parts
from recipe.intake.cells import InvalidCell, UnreadableFile
from recipe.intake.progress import Progress
from recipe.intake.reader import DatasetReader
from recipe.intake.writer import Writer

HAN = "怎样拒绝不合理的加班先说明手头优先级再给出可行时间新同事总抢我功劳办把进展写周报让贡献看得见"


def intake(path, **settings):
    """The turns of every conversation of one file, or the refusal's text."""
    stream = io.StringIO()
    reading = DatasetReader(Data(files=[str(path)], **settings), Writer(stream, ""))
    reading.read_conversations(path, path.name)
    reading.writer.flush()
    try:
        reading.errors.raise_if_any()
    except InputWrong as error:
        return str(error)
    lines = [json.loads(line)["conversation"] for line in stream.getvalue().split("\n")[:-1]]
    return [[(turn.get("system"), turn["input"], turn["output"]) for turn in line] for line in lines]


def assert_told(path, text, words):
    """That a file of this text is refused in all these words."""
    path.write_text(text, encoding="utf-8")
    got = intake(path)
    for word in words:
        assert word in got


def pairs(path, **settings):
    """(question, answer) of every conversation of one turn."""
    got = intake(path, **settings)
    assert isinstance(got, list), got
    return [(question, answer) for [(_, question, answer)] in got]


def as_text(cell):
    """A cell as openpyxl gives it, by the rules that the reader documents: the reference."""
    if cell is None or isinstance(cell, str):
        return None if cell is None else unescape(cell).replace("\r\n", "\n")
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() else format(cell, ".15g")  # what Excel itself keeps
    if isinstance(cell, datetime.datetime):
        return str(cell.date()) if cell.time() == datetime.time() else str(cell)
    return str(cell)


def reference(path):
    book = openpyxl.load_workbook(str(path), data_only=True)
    found = {}
    for sheet in book.worksheets:
        rows = [(number, list(map(as_text, row))) for number, row in enumerate(sheet.iter_rows(values_only=True), 1)]
        found[sheet.title] = [(n, trimmed(row)) for n, row in rows if any(row)]
    return found


def trimmed(cells):
    cells = [cell or None for cell in cells]  # openpyxl takes an empty text for no text; blank is what both are
    while cells and cells[-1] is None:
        cells.pop()
    return cells


def ours(path):
    return {
        sheet.sheet: [(number, trimmed(cells)) for number, cells in sheet.rows()] for sheet in xlsx.sheets(path)
    }  # fmt: skip


@pytest.fixture(params=[64, 1 << 16])
def chunk(request, monkeypatch):
    """Parts cut anywhere, and read in one piece."""
    monkeypatch.setattr(xml_parts, "CHUNK", request.param)


def some_text(chance):
    pieces = [HAN[chance.randrange(30) : chance.randrange(30, 45)], "a & b", "<b>", '"', "  ", "\n", "]]>", "😀", "é",
              "'", "_x0041_", "_x000D_", "0012", "NA", "&amp;", "\ue5e5", "\t"]  # fmt: skip
    return "问" + "".join(chance.choice(pieces) for _ in range(chance.randrange(1, 6)))


def some_cell(chance):
    kinds = [some_text(chance), None, chance.randrange(10**6), chance.random() * 100, chance.random() < 0.5,
             52.0, datetime.datetime(2024, 3, 17), datetime.datetime(2024, 3, 17, 8, 30, 15), "",
             some_text(chance)]  # fmt: skip
    return chance.choice(kinds)


def rewritten(source, target, change):
    """A copy of the workbook with `change(part name, text)` applied to each XML part."""
    with zipfile.ZipFile(str(source)) as old, zipfile.ZipFile(str(target), "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            new.writestr(part, change(part, old.read(part).decode("utf-8")))
    return target


def prefixed(part, text):
    """As some programs write: every element of the sheet with a prefix."""
    if "worksheets/" not in part:
        return text
    return re.sub(r"<(/?)([a-zA-Z])", r"<\1x:\2", text.replace("xmlns=", "xmlns:x="))


def spaced(part, text):
    """As pretty printers write: rows and cells on lines of their own."""
    return re.sub(r"(<row |<c |</row>|</c>)", r"\n  \1", text) if "worksheets/" in part else text


def without_places(part, text):
    """The r attributes are optional: rows and cells count on then. Gaps cannot be written so."""
    return re.sub(r'(<row|<c) r="[A-Z0-9]+"', r"\1", text) if "worksheets/" in part else text


def as_excel(part, text):
    """Raw characters instead of numbered ones, spans and descents on the rows."""
    text = re.sub(r"&#(\d+);", lambda m: chr(int(m.group(1))) if int(m.group(1)) > 127 else m.group(), text)
    return re.sub(r'(<row r="\d+")', r'\1 spans="1:4"', text) if "worksheets/" in part else text


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("form", [None, prefixed, spaced, as_excel])
def test_workbooks_read_like_openpyxl_reads_them(seed, form, chunk, tmp_path):
    chance = random.Random(seed)
    book = openpyxl.Workbook()
    for title in ("甲", "b & c"):
        sheet = book.create_sheet(title)
        for _ in range(chance.randrange(1, 40)):
            sheet.append([some_cell(chance) for _ in range(chance.randrange(1, 5))])
    path = tmp_path / "x.xlsx"
    book.save(str(path))
    path = rewritten(path, tmp_path / "y.xlsx", form) if form else path
    assert ours(path) == reference(path)


def test_cells_without_places_count_on(workbook, chunk, tmp_path):
    path = workbook(s=[["q", "a"], ["甲", "一"], ["乙", "二"]])
    bare = rewritten(path, tmp_path / "bare.xlsx", without_places)
    assert ours(bare) == ours(path)


def shared(part, text):
    """Inline texts as shared ones, every other with a phonetic guide or in runs of rich text."""
    if part == "xl/_rels/workbook.xml.rels":
        kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/sharedStrings"
        more = f'<Relationship Id="rId99" Type="{kind}" Target="/xl/sharedStrings.xml"/>'
        return text.replace("</Relationships>", more + "</Relationships>")
    number = iter(range(10**6))
    return re.sub(r't="inlineStr"><is>.*?</is>', lambda _: f't="s"><v>{next(number)}</v>', text, flags=re.S)


def test_shared_texts_runs_and_phonetic_guides(chunk, tmp_path, workbook):
    texts = [f"文{number} " * (number % 7 + 1) for number in range(500)]
    rows = [[a, b] for a, b in zip(texts[::2], texts[1::2])]
    path = rewritten(workbook(s=rows), tmp_path / "y.xlsx", shared)
    items = []
    for number, text in enumerate(texts):
        forms = [
            f'<si><t xml:space="preserve">{text}</t></si>',
            f'<si><t>{text}</t><phoneticPr fontId="1" type="noConversion"/></si>',
            f"<si><r><rPr><b/></rPr><t>{text[:2]}</t></r><r><t>{text[2:]}</t></r></si>",
            f'<si><t>{text}</t><rPh sb="0" eb="1"><t>guide</t></rPh></si>',
        ]
        items.append(forms[number % 4])
    with zipfile.ZipFile(str(path), "a") as archive:
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="x">{"".join(items)}</sst>')
    assert ours(path)["s"] == [(number, row) for number, row in enumerate(rows, 1)]

    def backwards(part, text):
        return re.sub(r"<v>(\d+)</v>", lambda m: f"<v>{499 - int(m[1])}</v>", text) if "worksheets/" in part else text

    backwards = rewritten(path, tmp_path / "z.xlsx", backwards)
    assert [cell for _, row in ours(backwards)["s"] for cell in row] == texts[::-1]


def test_the_sample_and_the_published_workbook_read_like_pandas(real_workbook):
    for path in (ROOT / "data" / "workplace.xlsx", real_workbook):
        for sheet in xlsx.sheets(path):
            table = pandas.read_excel(str(path), sheet_name=sheet.sheet, header=None, dtype=str, keep_default_na=False)
            got = [[cell or "" for cell in row] + [""] * (table.shape[1] - len(row)) for _, row in sheet.rows()]
            assert got == table.values.tolist()


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        (52, "General", "52"), (3.0, "General", "3"), (0.1 + 0.2, "General", "0.3"), (1e20, "General", "1" + "0" * 20),
        (-1.5, "General", "-1.5"), (0.125, "0%", "13%"), (0.125, "0.00%", "12.50%"), (1234.5, "#,##0.00", "1,234.50"),
        (1234.5, '"¥"#,##0.00', "¥1,234.50"), (-1234.5, '[$¥-804]#,##0.00', "-¥1,234.50"), (7, "00000", "00007"),
        (-3, "#,##0_);(#,##0)", "(3)"), (-3, "#,##0;[Red]#,##0", "-3"), (1234.5, '_ "¥"* #,##0.00_ ', "¥1,234.50"),
        (12, '0"年"', "12年"), (12345, "0.00E+00", "1.23E+04"), (0.5, "# ?/?", "0.5"), (5, "[>3]0.0;0", "5"),
        (2.5, "0", "3"), (3.14159, "0.0#", "3.14"), (3, "0.0#", "3.0"), (12000, "0,", "12"), (5, "@", "5"),
        (-0.001, "0.0", "0.0"), (0, '0;-0;"无"', "0"), (45368, "yyyy-mm-dd", "2024-03-17"),
        (45368, 'yyyy"年"m"月"d"日"', "2024-03-17"), (45368.5, "yyyy/m/d h:mm", "2024-03-17 12:00:00"),
        (45368.75, "yyyy/m/d", "2024-03-17"), (0.354166666666667, "h:mm", "08:30:00"),
        (45368.25, "hh:mm:ss", "06:00:00"),
        (1.5, "[h]:mm", "36:00:00"), (0.5, "mm-dd-yy", None), (-5, "yyyy-mm-dd", None), (1e9, "yyyy-mm-dd", None),
        (0, '_ * #,##0.00_ ;_ * -#,##0.00_ ;_ * "-"??_ ;_ @_ ', "-"), (12345, '0.0,"千"', "12.3千"),
        (52, 'General"元"', "52元"),
        (1012345678, "000\\-00000000", "010-12345678"), (13812345678, "000-0000-0000", "138-1234-5678"),
        (1.10101199003071e17, "General", "110101199003071000"), (1e-7, "General", "1E-07"), (5, '0" d"', "5 d"),
        (45368, "[$-804]aaaa", "2024-03-17"), (5, "[$€-2]\\ #,##0.00", "€ 5.00"), (0.5, "##0.0E+0", "0.5"),
        (60.5, "yyyy-mm-dd", "1900-02-28"), (61, "yyyy-mm-dd", "1900-03-01"), (1, "yyyy-mm-dd", "1900-01-01"),
    ],
)  # fmt: skip
def test_numbers_are_shown_as_their_format_shows_them(value, code, shown):
    made = formats.Formats(datetime.datetime(1899, 12, 30))
    made.styles, made.codes = [0, 200], {200: code}
    got = made[1](repr(value))
    assert isinstance(got, InvalidCell) if shown is None else got == shown


def test_dates_of_east_asian_and_old_mac_workbooks(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["哪天？", datetime.datetime(2024, 3, 17)]])
    numbered = rewritten(
        path, tmp_path / "y.xlsx", lambda part, text: re.sub(r'(<xf [^>]*?)numFmtId="1\d\d"', r'\1numFmtId="31"', text)
    )  # fmt: skip
    assert 'numFmtId="31"' in zipfile.ZipFile(str(numbered)).read("xl/styles.xml").decode()
    assert pairs(numbered) == [("哪天？", "2024-03-17")]
    book = openpyxl.Workbook()
    book.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
    book.active.append(["q", "a"])
    book.active.append(["哪天？", datetime.datetime(2024, 3, 17)])
    book.save(str(tmp_path / "mac.xlsx"))
    assert pairs(tmp_path / "mac.xlsx") == [("哪天？", "2024-03-17")]


def test_cells_joined_over_rows_and_columns_have_their_value_in_the_first(tmp_path):
    book = openpyxl.Workbook()
    for row in [["对话", "主题", "q", "a"], ["甲", None, "一", "1"], [None, None, "二", "2"]]:
        book.active.append(row)
    book.active.merge_cells("A2:B3")
    book.save(str(tmp_path / "x.xlsx"))
    assert [len(turns) for turns in intake(tmp_path / "x.xlsx")] == [2]


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
    done = recipe("data", "demo", f'data.files=["{path}"]', "--output", tmp_path)
    assert "not read: column C (without a name), column D (without a name)" in done.stdout


def test_one_odd_cell_does_not_condemn_the_workbook(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["几点？", 52], ["问二", "答二"]])
    for old, new, words in [
        ("<v>52</v>", "<v>abc</v>", "row 2, column a: 'abc' is stored as a number or date but is not one"),
        ('t="n"><v>52</v>', 't="d"><v>10:30:00</v>', [("几点？", "10:30:00"), ("问二", "答二")]),
    ]:

        def change(part, text, old=old, new=new):
            return text.replace(old, new) if "worksheets/" in part else text

        changed = rewritten(path, tmp_path / "y.xlsx", change)
        assert (words in intake(changed)) if isinstance(words, str) else pairs(changed) == words


def test_formats_of_conditions_are_not_those_of_cells(workbook, tmp_path):
    book = openpyxl.Workbook()
    book.active.append(["q", "a"])
    book.active.append(["多少？", 0.5])
    book.active["B2"].number_format = '0.0%"起"'
    book.save(str(tmp_path / "x.xlsx"))
    dxf = '<dxfs count="1"><dxf><numFmt numFmtId="164" formatCode="0.00"/></dxf></dxfs>'

    def change(part, text):
        return re.sub(r"<dxfs[^>]*/>|(?=</styleSheet>)", dxf, text, count=1) if "styles" in part else text

    path = rewritten(tmp_path / "x.xlsx", tmp_path / "y.xlsx", change)
    assert "<dxf>" in zipfile.ZipFile(str(path)).read("xl/styles.xml").decode()
    assert pairs(path) == [("多少？", "50.0%起")]


def test_cells_joined_downwards_have_one_value(tmp_path, chunk):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [["对话", "q", "a"], ["甲", "一", "1"], [None, "二", "2"], [None, "三", "3"], ["乙", "四", "4"]]:
        sheet.append(row)
    sheet.merge_cells("A2:A4")
    sheet.merge_cells("A9:A2000")  # joined and never used: no rows
    book.save(str(tmp_path / "x.xlsx"))
    assert [len(turns) for turns in intake(tmp_path / "x.xlsx")] == [3, 1]


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
    assert "the column q is there twice" in intake(workbook(s=[["q", "q", "a"], ["甲", "乙", "丙"]]))


def test_turns_systems_and_ids(workbook):
    path = workbook(
        s=[
            ["conversation", "turn", "system", "q", "a"],
            [1, 2, None, "二", "2"],
            ["1.0", 1, "教练", "一", "1"],
            [None, None, None, "单", "0"],
            ["１", "第3轮", "教练", "三", "3"],
        ]
    )
    assert intake(path) == [[("教练", "一", "1"), (None, "二", "2"), (None, "三", "3")], [(None, "单", "0")]]
    path = workbook(s=[["conversation", "turn", "q", "a"], [1, 1, "一", "1"], [1, 1, "二", "2"], [2, "x", "三", "3"]])
    assert "row 3: turn 1 of conversation 1 is there twice" in intake(path)
    assert "row 4, column turn: expected a number, found 'x'" in intake(path)
    path = workbook(s=[["turn", "q", "a"], [1, "一", "1"]])
    assert "the column turn numbers turns, but no column names the conversation" in intake(path)
    path = workbook(s=[["conversation", "turn", "q", "a"], [1, 1, "一", "1"], [None, 2, "二", "2"]])
    assert "row 3, column conversation: blank, but this is turn 2" in intake(path)
    path = workbook(
        s=[["conversation", "turn", "q", "a"], [1, None, "一", "1"], [1, 2, "二", "2"], [1, None, "三", "3"]]
    )
    assert "conversation 1 has turns with and without a number" in intake(path)
    path = workbook(s=[["conversation", "system", "q", "a"], [1, "甲", "一", "1"], [1, "乙", "二", "2"]])
    assert "row 2: this conversation has several system prompts" in intake(path)
    path = workbook(s=[["conversation", "q", "a"], [1, "一", "1"], [1, "二", None], [2, "三", "3"]])
    assert intake(path, skip_blank=True) == [[(None, "三", "3")]]


def test_columns_of_alpaca_are_one_question(workbook):
    rows = [["instruction", "input", "output"], ["译成英文", "你好", "Hello"], ["问好", None, "你好"]]
    assert pairs(workbook(s=rows)) == [("译成英文\n你好", "Hello"), ("问好", "你好")]


ENCODED = 'q,a\n怎样拒绝？,先说明，再给出时间。\n"甲,乙","说""好""\n再说"\n'


@pytest.mark.parametrize("separator", list(",\t;|"))
@pytest.mark.parametrize(
    ("encoding", "mark", "name"),
    [
        ("utf-8", b"", "UTF-8"), ("utf-8", codecs.BOM_UTF8, "UTF-8 with a mark"), ("gb18030", b"", "GB18030 (GBK)"),
        ("utf-16-le", codecs.BOM_UTF16_LE, "UTF-16"), ("utf-16-be", codecs.BOM_UTF16_BE, "UTF-16"),
        ("utf-16-le", b"", "UTF-16-LE"),
    ],
)  # fmt: skip
def test_delimited_text_in_any_encoding_with_any_separator(tmp_path, separator, encoding, mark, name):
    path = tmp_path / "x.csv"
    path.write_bytes(mark + ENCODED.replace(",", separator).replace("\n", "\r\n").encode(encoding))
    (table,) = tables.tables(path, lambda cells: columns.is_header(cells, {}))
    assert table.encoding == name
    assert pairs(path) == [("怎样拒绝？", "先说明，再给出时间。"), (f"甲{separator}乙", '说"好"\n再说')]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q,a\n问,答,更多\n", ["row 2: more cells than the header has: '更多'", "Quote a cell"]),
        ('q,a\n问,"答\n完\n', ["row 2: a quoted cell that begins here never ends"]),
        ('q,a\n"问"题,答\n', ["row 2: text follows the closing quote"]),
        ("q,a\n问\n", ["row 2, column a: blank"]),
        ('q,a\n"一\n二",好\n三,\n', ["row 3 (line 4), column a: blank"]),
        ("q,a\n问,#N/A\n", ["row 2, column a: the error #N/A"]), ("q,a\n问,########\n", ["the error ########"]),
        ('q,a\nhi, "yes, sir"\n', ["row 2: more cells than the header has"]),
        ('q,a,n\nhi, "yes, sir"\n', ["row 2: a quote after a space does not quote"]),
        ("问题一,回答一\n", ["no row that names the questions and the answers", "问题一, 回答一"]),
        ("", ["there are no rows in it"]), ("\n\n", ["there are no rows in it"]),
    ],
)  # fmt: skip
def test_faults_of_delimited_text_have_their_place(tmp_path, content, words):
    assert_told(tmp_path / "x.csv", content, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q,a\n你好,再见\n你好,再见啊".encode()[:-1], "it is UTF-8 with damage in it (byte"),
        ("q,a\n你好吗,很好\n".encode() + "你好吗,很好\n".encode("gbk"), "it is UTF-8 with damage in it (byte"),
        ("q,a\n怎麼請假比較好,請先填寫表單再請主管簽名\n".encode("big5"), "it does not read like Chinese"),
        ("q,a\nどうやって休暇を取りますか,まず用紙に記入してください\n".encode("shift_jis"), "not"),
        (("q,a\n" + "휴가는 어떻게 신청하나요,먼저 양식을 작성하세요\n" * 2).encode("euc-kr"), "does not read like"),
        ("q,a\nWas heißt Größe,Das weiß ich\n".encode("cp1252"), "encoding"),
        (("q,a\n" + "你好再见" * 100 + ",好\n").encode("utf-16-le"), "it holds NUL bytes"),
    ],
)  # fmt: skip
def test_other_encodings_are_not_taken_for_gbk(tmp_path, content, words):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    got = intake(path)
    assert isinstance(got, str), got
    assert words in got


@pytest.mark.parametrize(
    "text",
    [
        "怎样拒绝不合理的加班？",
        "怎麼請假比較好，請先填寫表單",
        "价格是€5",
        "饕餮盛宴，魑魅魍魉都来了",
        "A组的目标",
        "Hello, 你好",
    ],
)
def test_honest_gbk_is_read(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_bytes(b'q,a\n"' + text.encode("gb18030").replace("€".encode("gb18030"), b"\x80") + b'",OK\n')
    assert pairs(path) == [(text, "OK")]


def test_text_of_no_known_encoding_is_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"q,a\ncaf\xe9,\xff\xff\n")
    with pytest.raises(UnreadableFile, match="not UTF-8, UTF-16 or GB18030"):
        encodings.detect(path)
    path.write_bytes(b"PK\x03\x04 and so on")
    assert "it is not a text file" in intake(path)


TURN = ("教练", "问", "答")


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"conversation": [{"system": "教练", "input": "问", "output": "答"}]}, [TURN]),
        ({"messages": [{"role": "system", "content": "教练"}, {"role": "user", "content": "问"},
                       {"role": "assistant", "content": "答"}]}, [TURN]),
        ({"system": "教练", "conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
         [TURN]),
        ({"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
         [(None, "问", "答")]),
        ({"instruction": "问", "input": "", "output": "答", "system": "教练"}, [TURN]),
        ({"instruction": "译", "input": "好", "output": "答", "history": [["一", "二"]]},
         [(None, "一", "二"), (None, "译\n好", "答")]),
        ({"conversation": [{"system": "教练", "input": "问", "output": "答"},
                           {"system": "教练", "input": "二", "output": "三"}]},
         [TURN, (None, "二", "三")]),
        ({"Instruction": "译", "Input": "好", "Output": "答"}, [(None, "译\n好", "答")]),
        ({"q": "问", "a": "答"}, [(None, "问", "答")]), ({"问题": "问", "回答": "答"}, [(None, "问", "答")]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]},
                       {"role": "assistant", "content": "答"}]}, [(None, "问", "答")]),
    ],
)  # fmt: skip
def test_json_of_the_common_kinds(tmp_path, record, turns):
    for name, text in [
        ("x.jsonl", json.dumps(record) + "\n"), ("x.json", json.dumps([record], ensure_ascii=False, indent=1)),
        ("y.json", json.dumps(record, indent=1)), ("z.json", json.dumps({"data": [record]}, indent=1)),
        ("one.json", json.dumps({"data": [record]})),
        ("array.jsonl", json.dumps([record])),
    ]:  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert intake(tmp_path / name) == [turns], name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"q": "问", "a": "答"}\n{"q": "问" "a": "答"}\n', ["line 2: column 11: expecting ',' delimiter"]),
        ('[{"q": "问",\n "a": "答"},]', ["line 2, column 12: expecting value"]),
        ('{"q": "问", "a": null}\n{"q": 7, "a": "答"}\n', ["line 1: a: expected text, found null",
                                                        "line 2: q: expected text, found a number"]),
        ('{"conversations": [{"input": "问", "output": "答"}]}\n', ["found input, output in conversations",
                                                                 "conversation is the key"]),
        ('{"messages": [{"role": "user", "content": "问"}]}\n', ["the last question has no answer"]),
        ('{"messages": [{"role": "assistant", "content": "答"}]}\n', ["message 1: an answer without a question"]),
        ('{"messages": [{"role": "tool", "content": "答"}]}\n', ["role 'tool' is not known"]),
        ('{"conversation_id": 1, "turn": 2, "q": "问", "a": "答"}\n', ["conversation_id, turn: turns of a"]),
        ('{"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}\n', ["tool calls are not"]),
        ('{"system": "甲", "messages": [{"role": "system", "content": "乙"}]}\n', ["a second system prompt"]),
        ('{"train": [{"q": "问", "a": "答"}], "test": [{"q": "问", "a": "答"}]}', ["several lists: train, test"]),
        ('{"conversation": []}\n', ["there are no turns in it"]),
        ('{"text": "x"}\n', ["found text; wanted: conversation"]),
        ('{"conversation": [{"input": "问"}]}\n', ["turn 1: found input; output is missing"]),
        ('{"q": "问", "q": "二", "a": "答"}\n', ["the key q appears twice"]),
        ('{"q": NaN, "a": "答"}\n', ["NaN is not valid JSON"]),
        ('{"conversation": [{"input": "问", "output": "答", "output_with_loss": false}]}\n', ["output_with_loss"]),
        ('{"messages": [{"role": "user", "content": "问", "weight": 0}]}\n', ["message 1: weight is not supported"]),
        ('3\n"x"\n', ["line 1: expected an object, found a number", "line 2: expected an object, found text"]),
        ("", ["there are no rows in it"]), ("[]", ["there are no rows in it"]),
        ('{"q": "\\ud800", "a": "答"}\n', ["line 1, question: an invalid character (U+D800)"]),
        ('{"conversation": [{"input": "一", "output": "1"}, {"input": " ", "output": "2"}]}\n',
         ["line 1, turn 2, question: blank"]),
    ],
)  # fmt: skip
def test_faults_of_json_have_their_place(tmp_path, text, words):
    assert_told(tmp_path / "x.jsonl", text, words)


def test_names_of_the_recipe_go_before_alpacas(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "问", "output": "坏", "better": "好"}\n', encoding="utf-8")
    assert pairs(path, columns=Columns(answer="better")) == [("问", "好")]


def test_lists_of_messages_line_by_line(tmp_path):
    talk = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    (tmp_path / "x.jsonl").write_text((json.dumps(talk) + "\n") * 2, encoding="utf-8")
    assert pairs(tmp_path / "x.jsonl") == [("问", "答")] * 2


def test_damaged_parquet_of_conversations_has_its_row(tmp_path):
    talk = [
        [{"role": "user", "content": f"问{n}" * 20}, {"role": "assistant", "content": f"答{n}" * 20}]
        for n in range(3000)
    ]
    pandas.DataFrame({"messages": talk}).to_parquet(str(tmp_path / "x.parquet"))
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(byte ^ 255 for byte in content[middle : middle + 400])
    (tmp_path / "x.parquet").write_bytes(bytes(content))
    assert "it is damaged after row 0" in intake(tmp_path / "x.parquet")


def test_parquet_of_columns_and_of_conversations(tmp_path):
    table = pandas.DataFrame({"问题": ["一", "二"], "答案": ["甲", None], "n": [1, 2]})
    table.to_parquet(str(tmp_path / "x.parquet"))
    assert "x.parquet, row 2, column 答案: blank" in intake(tmp_path / "x.parquet")
    assert pairs(tmp_path / "x.parquet", skip_blank=True) == [("一", "甲")]
    talk = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    pandas.DataFrame({"messages": [talk]}).to_parquet(str(tmp_path / "y.parquet"))
    assert pairs(tmp_path / "y.parquet") == [("问", "答")]
    pandas.DataFrame({"q": [1, 2], "a": [0.5, 3.0]}).to_parquet(str(tmp_path / "z.parquet"))
    assert pairs(tmp_path / "z.parquet") == [("1", "0.5"), ("2", "3")]
    pandas.DataFrame({"q": pandas.Series([0.1], dtype="float32"), "a": ["好"]}).to_parquet(str(tmp_path / "f.parquet"))
    assert pairs(tmp_path / "f.parquet") == [("0.1", "好")]
    grouped = pandas.DataFrame({"conversation": ["甲", "甲"], "q": ["一", "二"], "a": ["1", "2"]})
    grouped.to_parquet(str(tmp_path / "g.parquet"))
    assert intake(tmp_path / "g.parquet") == [[(None, "一", "1"), (None, "二", "2")]]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    assert "it is not a Parquet file" in intake(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("好的<|im_end|>", "the chat control token <|im_end|>"), ("</s>", "the chat control token </s>"),
        ("<|im_start|>user", "the chat control token <|im_start|>"),
        ("看[UNUSED_TOKEN_145]", "the chat control token [UNUSED_TOKEN_145]"),
        ("缺\ufffd字", "a character lost in an earlier conversion"), ("\u200b\ufeff", "blank"), ("\u3164", "blank"),
        (" \t\n", "blank"), ("#REF!", "the error #REF!"),
    ],
)  # fmt: skip
def test_text_that_would_harm_training_is_refused(workbook, text, words):
    assert f"sheet s, row 2, column a: {words}" in intake(workbook(s=[["q", "a"], ["问", text]]))


@pytest.mark.parametrize("text", ["NA", "None", "nan", "null", "0012", " 前后 ", "a < b > c", "<br>", "[1]", "½", "—"])
def test_text_that_is_only_odd_is_kept(workbook, text):
    assert pairs(workbook(s=[["q", "a"], ["问", text]])) == [("问", text)]


def test_line_breaks_of_every_origin_are_line_feeds(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["问", "一_x000D_\n二_x000B_三"]])
    assert pairs(path) == [("问", "一\n二\n三")]
    (tmp_path / "x.csv").write_bytes('q,a\r\n问,"一\r\n二\r三"\r\n'.encode())
    assert pairs(tmp_path / "x.csv") == [("问", "一\n二\n三")]


def test_every_line_is_one_json_text_for_every_reader(workbook, tmp_path):
    """U+2028 ends a line for str.splitlines and some programs: escaped it is the same text for all."""
    path = workbook(s=[["q", "a"], ["问", "一\u2028二\x85三"]])
    done = recipe("data", "demo", f'data.files=["{path}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "demo/dataset.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["conversation"][0]["output"] == "一\u2028二\x85三"


def test_what_is_written_is_what_json_dumps_writes(workbook, tmp_path):
    rows = [["q", "a"], ['说"好"', "反\\斜\n行"], ["\t制表", "😀é/"], ["一", "二"]]
    stream = io.StringIO()
    writer = Writer(stream, '系"统')
    DatasetReader(Data(files=["x"]), writer).read_conversations(workbook(s=rows), "x")
    writer.flush()
    expected = [
        {"conversation": [{"system": '系"统', "input": question, "output": answer}]} for question, answer in rows[1:]
    ]
    assert stream.getvalue() == "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in expected)


def test_formulas_count_by_their_stored_value(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["问", "=1+1"], ["问二", "答二"]])
    assert "row 2, column a: a formula without a stored value" in intake(path)
    assert "row 2" in intake(path, skip_blank=True)  # it is no blank
    stored = rewritten(path, tmp_path / "y.xlsx", lambda part, text: re.sub(r"<v ?/>|<v></v>", "<v>2</v>", text))
    assert pairs(stored) == [("问", "2"), ("问二", "答二")]
    harmful = workbook(s=[["q", "a"], ["问", '=CMD|"/c calc"!A1'], ["问二", '=HYPERLINK("http://x.invalid","答")']])
    stored = rewritten(harmful, tmp_path / "z.xlsx", lambda part, text: re.sub(r"<v ?/>|<v></v>", "<v>7</v>", text))
    assert pairs(stored) == [("问", "7"), ("问二", "7")]


def test_archives_that_are_traps_are_refused(workbook, tmp_path, monkeypatch):
    path = workbook(s=[["q", "a"], ["问", "答"]])
    entity = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    trap = rewritten(path, tmp_path / "y.xlsx", lambda part, text: entity + text if "worksheets/" in part else text)
    assert "its XML declares entities" in intake(trap)
    for part in ("styles", "workbook.xml", "sharedStrings"):
        rewritten(path, trap, lambda name, text, part=part: entity + text if part in name else text)
        assert part == "sharedStrings" or "its XML declares entities" in intake(trap)
    with zipfile.ZipFile(str(trap), "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("xl/worksheets/sheet1.xml", b"0" * (1 << 26))
    monkeypatch.setattr(xlsx, "LIMIT", 1 << 25)
    assert "it unpacks to 0.1 GB, more than 0.0 GB" in intake(trap)
    monkeypatch.undo()
    assert "it is a ZIP archive, but not a workbook" in intake(trap)
    long = "长" * ((1 << 20) + 70000)
    rewritten(path, trap, lambda part, text: re.sub("&#31572;|答", long, text) if "worksheets/" in part else text)
    assert "a cell holds more than 1,048,576 characters" in intake(trap)


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
    done = recipe("data", "demo", f'data.files=["{folder}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "demo/dataset.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["conversation"][0]["input"] for line in lines] == ["乙", "甲"]
    assert "not read: " in done.stdout
    assert "README.md" in done.stdout
    (folder / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    refused(recipe("data", "demo", f'data.files=["{folder}"]', "--output", tmp_path), 2, "old.xls", "Save it as .xlsx")
    refused(recipe("data", "demo", f'data.files=["{folder / "~$b.xlsx"}"]', "--output", tmp_path), 2, "Name b.xlsx")


def test_duplicates_go_on_request(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["甲", "一"], ["乙", "二"], ["甲", "一"], ["甲", "三"]])
    for more, rows in (([], 4), (["data.dedupe=true"], 3)):
        done = recipe("data", "demo", f'data.files=["{path}"]', "--output", tmp_path, *more)
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / "demo/dataset.jsonl").read_text(encoding="utf-8").splitlines()) == rows
    figures = json.loads((tmp_path / "demo/run.json").read_text(encoding="utf-8"))["stages"]["data"]["figures"]
    assert (figures["conversations"], figures["duplicates"], figures["duplicates_dropped"]) == (3, 0, 1)


def test_memory_does_not_grow_with_rows(tmp_path):
    peaks = []
    for rows in (10_000, 200_000):
        path = tmp_path / f"{rows}.csv"
        path.write_text("q,a\n" + "".join(f"问题{n}：怎么办？,先列清单{n}。\n" for n in range(rows)), encoding="utf-8")
        done = recipe("data", "demo", f'data.files=["{path}"]', "--output", tmp_path)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "demo/run.json").read_text(encoding="utf-8"))
        figures = manifest["stages"]["data"]["figures"]
        assert figures["rows"] + figures["held_out"] == rows
        peaks.append(manifest["stages"]["data"]["peak_memory_mb"])
    # 190,000 rows more: 8 bytes each to keep, a moment's 60 to compare; the rows themselves are 9 MB, as objects 60
    assert peaks[1] - peaks[0] < 25, peaks


def test_values_of_a_conversation_may_lie_far_apart(tmp_path):
    """Rows of one id with a hundred thousand others between them, in a database on disk."""
    path = tmp_path / "x.csv"
    ids = list(range(20_000)) * 2
    path.write_text("对话,q,a\n" + "".join(f"{n},问{at},答{at}\n" for at, n in enumerate(ids)), encoding="utf-8")
    got = intake(path)
    assert len(got) == 20_000
    assert got[7] == [(None, "问7", "答7"), (None, "问20007", "答20007")]


def test_records_can_be_told_from_files(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"conversations": [{"conversation": [{"input": "问", "output": "答"}]}]}, indent=1))
    assert pairs(path) == [("问", "答")]
    assert records.read(path)[0] == "UTF-8"


def test_a_bar_is_shown_past_two_seconds(capsys):
    progress = Progress()
    progress.step("x.csv", 0.1)
    assert progress.bar is None
    progress.began -= 2.1
    progress.step("x.csv", 0.5)
    progress.stop()
    assert progress.bar is not None
    assert progress.bar.tasks[0].completed == 0.5
