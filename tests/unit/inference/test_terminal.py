"""Questions that come through a pipe."""

import io

import pytest

from recipe.core.errors import InputWrong
from recipe.inference import terminal as chat


@pytest.mark.parametrize(
    ("given", "said"),
    [("你好\n", "你好"), ("你好\n".encode("gb18030"), "你好"), (b"\xff\n", "Line 1"),
     ("你好\n".encode("utf-16"), "你好"), ("你好\r\n".encode("utf-16-le"), "你好"), ("你好\n".encode("utf-16-be"),
     "你好"),
     ("问题\n".encode("gb18030"), "问题"), ("你好\n".encode("utf-8-sig"), "你好")],
)  # fmt: skip
def test_a_pipe_is_read_in_utf8_and_gb18030(monkeypatch, given, said):
    given = given.encode() if isinstance(given, str) else given
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given), encoding="ascii"))
    if said == "Line 1":
        with pytest.raises(InputWrong, match="Line 1 of standard input is neither UTF-8 nor GB18030"):
            list(chat.piped_lines())
    else:
        assert [line.strip() for line in chat.piped_lines()] == [said]
