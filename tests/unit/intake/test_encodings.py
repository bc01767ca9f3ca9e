"""Text in GBK, UTF-8 and no known encoding."""

import pytest

from recipe.intake import encodings
from recipe.intake.cells import UnreadableFile
from support.intake import intake, pairs


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("q,a\n你好,再见\n你好,再见啊".encode()[:-1], "it is damaged UTF-8 (byte"),
        ("q,a\n你好吗,很好\n".encode() + "你好吗,很好\n".encode("gbk"), "it is damaged UTF-8 (byte"),
        ("q,a\n怎麼請假比較好,請先填寫表單再請主管簽名\n".encode("big5"), "it does not read like Chinese"),
        ("q,a\nどうやって休暇を取りますか,まず用紙に記入してください\n".encode("shift_jis"), "not"),
        (("q,a\n" + "휴가는 어떻게 신청하나요,먼저 양식을 작성하세요\n" * 2).encode("euc-kr"), "does not read like"),
        ("q,a\nWas heißt Größe,Das weiß ich\n".encode("cp1252"), "encoding"),
        ("q,a\n年休をどうやって取りますか,まず用紙に記入してください\n".encode("euc-jp"), "does not read like"),
        (b"q,a\n" + b"x" * 100 + b"\x00,\x00\n", "it holds NUL bytes"),
    ],
)  # fmt: skip
def test_other_encodings_are_not_taken_for_gbk(tmp_path, content, words):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    got = intake(path)
    assert isinstance(got, str), got
    assert words in got


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("answer", ["好", "Yes, of course", "好的，先说明", "네, 알겠습니다"])
def test_utf16_without_a_mark_is_read(tmp_path, encoding, answer):
    path = tmp_path / "x.tsv"
    path.write_bytes(("q\ta\n" + "你好再见" * 100 + f"\t{answer}\n").encode(encoding))
    assert pairs(path) == [("你好再见" * 100, answer)]


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
