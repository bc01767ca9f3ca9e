"""Delimited text of any encoding."""

import codecs

import pytest

from recipe.intake import columns, tables
from support.intake import assert_told, pairs

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
