"""Text that would harm training, and text that is only unusual."""

import pytest

from support.intake import intake, pairs


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
