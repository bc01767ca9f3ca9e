"""The command line: what is declared, help without an environment, and mistakes that are told before anything runs."""

import json
import os
import subprocess
import time

import pytest
from conftest import ROOT, recipe, refused

from recipe.cli import describe, grammar, schema, words
from recipe.cli.main import COMMANDS
from recipe.core.errors import InputWrong


def justw(*words, cache, **more):
    """./justw on a machine that has made and fetched nothing yet; (finished process, seconds)."""
    environment = {**os.environ, "RECIPE_CACHE": str(cache), "PATH": "/usr/local/bin:/usr/bin:/bin", **more}
    environment.pop("RECIPE_ENV", None)
    began = time.monotonic()
    done = subprocess.run(
        [str(ROOT / "justw"), *words], env=environment, cwd=str(ROOT), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done, time.monotonic() - began


def test_the_grammar_is_that_of_the_commands():
    """`python -m recipe.cli.describe` writes it again."""
    written = (ROOT / "recipe/cli/grammar.json").read_text(encoding="utf-8")
    assert written == describe.text()


@pytest.mark.parametrize("words", [["help"], ["train", "--help"], ["image", "-h"], ["help", "export"]])
def test_help_needs_nothing(tmp_path, words):
    spent = min(justw(*words, cache=tmp_path / "none")[1] for _ in range(3))
    done, _ = justw(*words, cache=tmp_path / "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ./justw ")
    assert not (tmp_path / "none").exists()
    assert spent < 1


def test_every_command_has_help_with_two_examples():
    known = grammar.load()["commands"]
    assert list(known) == list(COMMANDS)
    for name, command in known.items():
        text = recipe(name, "--help").stdout if name in ("plan", "image") else grammar.answer([name, "--help"])
        assert text.startswith(f"Usage: just {name} ")
        examples = text.partition("Examples:\n")[2].splitlines()
        assert all(line.startswith(f"  just {name}") for line in examples)
        assert len(examples) >= (1 if name in ("shell", "new") else 2), name
        assert command["summary"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "no command 'trian'. Did you mean train?"),
        (["plan", "coch"], "no recipe 'coch'. Did you mean coach?"),
        (["doctor", "coach", "train.speed=fsat"], "did you mean fast (found 'fsat')"),
        (["train", "coach", "train.max_epoch=3"], "unknown key; did you mean train.max_epochs"),
        (["train", "coach", "train.max_epochs=three"], "should be a whole number (found 'three')"),
        (["plan", "trian.lr=1"], "override trian.lr=1: trian: unknown key; did you mean train."),
        (["plan", "train.lr=1"], "should be at most 0.01 (found 1)"),
        (["merge", "train.lr＝1e-4"], "Type = in its place"),
        (["verify", "coach", "train.lr=1e-4"], "verify takes no settings"),
        (["eval", "--png", "curve.png"], "eval has no option --png"),
        (["train", "--yes"], "train has no option --yes"),
        (["chat", "--tokenizer"], "chat has no option --tokenizer"),
        (["plan", "--dry-run"], "plan has no option --dry-run"),
        (["model", "--verfy"], "Did you mean --verify?"),
        (["export", "gguff"], "Did you mean gguf?"),
        (["image", "biuld"], "Did you mean build?"),
        (["compare", "coach"], "RUN is missing"),
        (["plan", "coach", "more"], "Too many words: more"),
        (["plan", "--output"], "--output wants a value"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(tmp_path, words, said):
    done, _ = justw(*words, cache=tmp_path / "none")
    refused(done, 2, said)
    assert done.stdout == ""
    assert not (tmp_path / "none").exists()


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
        ("chat", ["--recipe", "demo", "how?"], [], [], ["demo", "how?"]),
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


def test_words_are_checked_from_any_folder(tmp_path):
    """Python imports from the current folder first: what lies there is not ours."""
    (tmp_path / "json.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/__init__.py").write_text("")
    done = subprocess.run(
        [str(ROOT / "docker/runtime/doctor"), "--help"], cwd=str(tmp_path), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: just doctor ")


def test_what_the_scripts_are_told(tmp_path):
    """Folders to write to and files to read that lie outside the clone, and where the page is published."""
    mine = tmp_path / "mine.toml"
    text = (ROOT / "recipe/demo.toml").read_text(encoding="utf-8")
    mine.write_text(text.replace('files = ["', 'files = ["/elsewhere/a b.csv", "'), encoding="utf-8")
    plan = [str(mine), "model.path=../models", "--output=/results", "--png", "/charts/lr.png"]
    found = words.facts("plan", plan)
    assert [value for name, value in found if name == "writes"] == ["/results", "/charts"]
    read = [value for name, value in found if name == "reads"]
    assert {str(mine), "/elsewhere/a b.csv", "../models"} <= set(read)
    assert dict(found)["recipe"] == "mine"
    assert json.loads(dict(found)["values"])["model"]["path"] == "../models"
    assert "detach" not in dict(found)
    assert dict(words.facts("train", ["demo", "--detach"]))["detach"] == "yes"
    for given, host, port in (
        ([], "127.0.0.1", "8501"),
        (["host=localhost", "port=8502"], "127.0.0.1", "8502"),
        (["--host", "::1"], "[::1]", "8501"),
    ):
        page = dict(words.facts("web", ["demo", *given]))
        assert (page["host"], page["port"]) == (host, port)


def test_a_run_is_named_although_its_recipe_is_being_edited(tmp_path):
    (tmp_path / "mine.toml").write_text("base = ", encoding="utf-8")
    for name in ("stop", "watch", "verify", "report", "web"):
        assert grammar.check(name, [str(tmp_path / "mine.toml")]).recipe == str(tmp_path / "mine.toml")
    with pytest.raises(InputWrong, match="not valid TOML"):
        grammar.check("train", [str(tmp_path / "mine.toml")])


def test_a_name_that_no_file_can_have_is_told():
    with pytest.raises(InputWrong, match="There is no recipe"):
        grammar.check("chat", ["我最近压力很大" * 60])


def test_options_of_just_itself_are_justs(tmp_path):
    done, _ = justw("--show", "train", cache=os.environ.get("RECIPE_CACHE") or ROOT / ".cache")
    assert "docker/runtime/run --doctor train" in done.stdout, done.stderr
    done, _ = justw("help", "trian", cache=tmp_path / "none")
    refused(done, 2, "Did you mean train?")
