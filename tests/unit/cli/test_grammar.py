"""The command line's checks: recipe files, overrides and names."""

import json

import pytest

from recipe.cli import grammar, schema, words
from recipe.core.errors import InputWrong
from support.command import ROOT


def test_a_recipe_file_is_checked_by_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "x"\n[data]\nfiles = "a.xlsx"\n[train]\nlr = "high"\nepochs = 3\n', encoding="utf-8")
    with pytest.raises(InputWrong) as caught:
        grammar.check("train", [str(path)])
    assert str(caught.value).splitlines() == [
        f"{path}, line 5: train.lr: should be a number (found 'high').",
        f"{path}, line 6: train.epochs: unknown key; did you mean train.max_epochs.",
    ]


@pytest.mark.parametrize(
    ("name", "words", "options", "settings", "arguments"),
    [
        ("plan", ["train.lr=1e-4", "coach", "--png", "a=b"], ["--png", "a=b"], ["train.lr=1e-4"], ["coach"]),
        ("chat", ["coach", "how?", "model=base"], ["--model=base"], [], ["coach", "how?"]),
        ("chat", ["--recipe", "tiny", "how?"], [], [], ["tiny", "how?"]),
        ("export", ["coach", "vllm"], [], [], ["vllm", "coach"]),
        ("web", ["coach", "port=8502"], ["--port=8502"], [], ["coach"]),
        ("chat", ["coach", "--", "-5 + 3?"], [], [], ["coach", "-5 + 3?"]),
        ("cluster", ["coach", "nodes=2", "slurm"], [], ["nodes=2"], ["slurm", "coach"]),
    ],
)
def test_words_are_sorted(name, words, options, settings, arguments):
    assert grammar.sort_words(grammar.load()["commands"][name], words) == (options, settings, arguments)


def test_settings_are_checked_as_the_recipe_checks_them():
    """Every kind of limit that settings.py has: grammar.json and pydantic refuse the same values."""
    from recipe.core import settings

    known = grammar.load()["settings"]
    assert list(known) == settings.known_keys()
    values = {
        "train.max_epochs": (1, 0, 1.5, True, "3"),
        "train.lr": (1e-4, 0, 1, "x", True), "data.files": ("a", ["a"], [], 1),
        "train.speed": ("fast", "fats"), "train.evaluation_freq": (0.5, 3, 0, 1.5), "train.deterministic": (True, 1),
        "train.evaluation_images": ("a.png", ["a.png"], 3),
        "export.repo": ("a/b", "", "a b"), "data.sheet": ([], "x", 7), "merge.weights": ([], ["a"], [11]),
    }  # fmt: skip
    for key, tried in values.items():
        for value in tried:
            refused_here = bool(schema.find_error(value, known[key]))
            try:
                settings.load("coach", [f"{key}={json.dumps(value)}"])
                refused_there = False
            except InputWrong:
                refused_there = True
            assert refused_here == refused_there, (key, value)


def test_what_the_scripts_are_told(tmp_path):
    """Folders to write to and files to read that lie outside the clone, and where the page is published."""
    mine = tmp_path / "mine.toml"
    text = (ROOT / "recipe/tiny.toml").read_text(encoding="utf-8")
    mine.write_text(text.replace('files = ["', 'files = ["/elsewhere/a b.csv", "'), encoding="utf-8")
    plan = [str(mine), "model.path=../models", "--output=/results", "--png", "/charts/lr.png"]
    found = words.facts("plan", plan)
    assert [value for name, value in found if name == "writes"] == ["/results", "/charts"]
    read = [value for name, value in found if name == "reads"]
    assert {str(mine), "/elsewhere/a b.csv", "../models"} <= set(read)
    assert dict(found)["recipe"] == "mine"
    assert json.loads(dict(found)["values"])["model"]["path"] == "../models"
    assert "detach" not in dict(found)
    assert dict(words.facts("train", ["tiny", "--detach"]))["detach"] == "yes"
    for given, host, port in (
        ([], "127.0.0.1", "8501"),
        (["host=localhost", "port=8502"], "127.0.0.1", "8502"),
        (["--host", "::1"], "[::1]", "8501"),
    ):
        page = dict(words.facts("web", ["tiny", *given]))
        assert (page["host"], page["port"]) == (host, port)


def test_a_run_is_named_although_its_recipe_is_being_edited(tmp_path):
    (tmp_path / "mine.toml").write_text("base = ", encoding="utf-8")
    for name in ("stop", "watch", "verify", "report", "web"):
        assert grammar.check(name, [str(tmp_path / "mine.toml")]).name == str(tmp_path / "mine.toml")
    with pytest.raises(InputWrong, match="not valid TOML"):
        grammar.check("train", [str(tmp_path / "mine.toml")])


def test_a_name_that_no_file_can_have_is_told():
    with pytest.raises(InputWrong, match="There is no recipe"):
        grammar.check("chat", ["我最近压力很大" * 60])


@pytest.mark.parametrize(
    "given",
    [
        ["data/workplace.xlsx", "data.system=You", "are", "a", "coach"],
        ["system=You", "are", "a", "coach"],
        ["coach", "system=You", "are", "a", "coach", "data/workplace.xlsx"],
        ["data.system=You", "are"],
    ],
)
def test_a_text_that_the_shell_has_split_is_told(given):
    setting = next(word for word in given if "=" in word)
    text = " ".join([setting.partition("=")[2], *(word for word in given if word in ("are", "a"))])
    text += " coach" * (given[-1] != "are")
    with pytest.raises(InputWrong, match=f'Put a text with blanks in quotes: {setting.partition("=")[0]}="{text}"'):
        grammar.check("plan", given, ROOT)


def test_a_system_prompt_has_a_short_name():
    found = grammar.check("plan", ["coach", "system=You are a coach"], ROOT)
    assert found.words.settings == ["data.system=You are a coach"]
    assert found.values["data"]["system"] == "You are a coach"
