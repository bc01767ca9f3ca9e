"""What the scripts under docker/ learn of a command line that names a data file."""

import contextlib
import json
import os
import shutil

import pytest

from recipe.cli import words
from recipe.core import data_source
from support.command import ROOT
from support.terminal import read_until, terminal


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "我的 数据.xlsx"
    shutil.copy(str(ROOT / "data/workplace.xlsx"), str(path))
    return path


def test_a_data_file_is_read_and_names_the_run(book, tmp_path):
    link = tmp_path / "link.xlsx"
    link.symlink_to(book)
    for named, name in ((book, "我的 数据"), (link, "link")):
        found = words.facts("plan", [str(named), "train.max_epochs=5", "--output", str(tmp_path / "out")])
        assert dict(found)["recipe"] == name
        assert str(book) in [value for key, value in found if key == "reads"]
        values = json.loads(dict(found)["values"])
        assert values["data"]["files"] == [str(named)]
        assert "sha256" not in values["data"]
        assert values["train"]["max_epochs"] == 5
    assert not (tmp_path / "out").exists(), "nobody is there to be asked"


def test_a_path_that_holds_an_equals_sign_is_read(tmp_path):
    path = tmp_path / "a=b.xlsx"
    path.touch()
    assert str(path) in words.paths([str(path)])


def asked(book, output, keys):
    """What a terminal shows, where `keys` are typed at the question of a command that would train."""
    check = f'check_words train "{book}" --output {output}; echo "checked $(fact recipe)"'
    child, end = terminal("sh", "-c", f"root=$PWD; . docker/runtime/words; {check}")
    said = read_until(end, "> ")
    os.write(end, keys)
    with contextlib.suppress(OSError):  # Ctrl-C ends the terminal's shell, too, which closes it
        while "code " not in said:
            said += os.read(end, 65536).decode("utf-8", "replace")
    os.close(end)
    os.waitpid(child, 0)
    return said


def test_it_asks_at_a_terminal_before_anything_starts(book, tmp_path):
    said = asked(book, tmp_path, "你是教练。\n".encode())
    assert "Its system prompt for" in said
    assert "checked 我的 数据" in said
    assert data_source.read(tmp_path / "我的 数据") == {"data": str(book), "system": "你是教练。"}


def test_ctrl_c_at_the_question_starts_nothing(book, tmp_path):
    said = asked(book, tmp_path, b"\x03")
    assert "checked" not in said
    assert "Traceback" not in said
    assert not (tmp_path / "我的 数据").exists()
