"""Workbooks, against openpyxl and pandas where those read the same."""

import datetime
import random
import re
import zipfile

import openpyxl
import pandas
import pytest
from openpyxl.utils.escape import unescape

from recipe.intake import xlsx, xml_parts
from support.command import ROOT
from support.intake import intake, pairs, rewritten

HAN = "怎样拒绝不合理的加班先说明手头优先级再给出可行时间新同事总抢我功劳办把进展写周报让贡献看得见"


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


def test_cells_joined_downwards_have_one_value(tmp_path, chunk):
    book = openpyxl.Workbook()
    sheet = book.active
    for row in [["对话", "q", "a"], ["甲", "一", "1"], [None, "二", "2"], [None, "三", "3"], ["乙", "四", "4"]]:
        sheet.append(row)
    sheet.merge_cells("A2:A4")
    sheet.merge_cells("A9:A2000")  # joined and never used: no rows
    book.save(str(tmp_path / "x.xlsx"))
    assert [len(turns) for turns in intake(tmp_path / "x.xlsx")] == [3, 1]


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
