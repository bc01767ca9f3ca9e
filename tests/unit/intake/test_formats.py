"""Number formats of cells."""

import datetime
import re
import zipfile

import openpyxl
import pytest

from recipe.intake import formats
from recipe.intake.cells import InvalidCell
from support.intake import pairs, rewritten


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
