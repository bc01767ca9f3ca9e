"""Questions that come through a pipe, and commands."""

import io
from types import SimpleNamespace

import pytest

from recipe.core.errors import InputWrong
from recipe.core.translation import use
from recipe.inference import terminal as chat
from recipe.inference.chat_model import Answer


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


class Parrot:
    """A model that answers nothing and remembers one turn."""

    tokenizer = None

    def fit_history(self, system, turns, question, limit):
        return turns[-1:]

    def answer(self, *given):
        return Answer("", False)


@pytest.fixture
def conversation(monkeypatch):
    monkeypatch.setattr(chat, "answer_printer", lambda tokenizer: SimpleNamespace(text="好 "))
    return chat.Conversation(Parrot(), "")


def test_commands_are_told_in_the_users_language(conversation, capsys):
    with use("zh"):
        for line in ("/help", "一", "二", "三", "/undo", "/system"):
            conversation.handle(line)
        with pytest.raises(InputWrong, match="/x 不是命令。可用命令：/undo、/retry、"):
            conversation.handle("/x")
    out, err = capsys.readouterr()
    assert "  /clear         开始新的对话\n" in out
    assert "  Ctrl-C         停止当前回答；" in out
    assert err.splitlines() == [
        "（在 512 个 token 处截断）", "（在 512 个 token 处截断）", "（共 2 轮，模型只看得到最后 1 轮，更早的放不下）",
        "（在 512 个 token 处截断）", "（已删除：三）", "（没有系统提示词）",
    ]  # fmt: skip


def test_english_is_as_it_was(conversation, capsys, tmp_path):
    for line in ("/help", "一", f"/save {tmp_path}/one.jsonl", "二", f"/save {tmp_path}/two.jsonl", "/clear"):
        conversation.handle(line)
    out, err = capsys.readouterr()
    assert "  /undo          removes the last question and its answer\n" in out
    assert out.endswith("  Ctrl-C         stops an answer; Ctrl-D ends the chat; arrow up recalls earlier lines\n")
    assert err.splitlines() == [
        "(cut at 512 tokens)", f"(1 turn saved to {tmp_path}/one.jsonl)", "(cut at 512 tokens)",
        f"(2 turns saved to {tmp_path}/two.jsonl)", "(a new conversation)",
    ]  # fmt: skip
