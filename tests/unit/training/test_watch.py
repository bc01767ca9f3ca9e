"""Detached runs that fail at once."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.training import watch
from support.command import ROOT


def announced(folder):
    """A run in `folder` that has been announced, and of which nothing else is known."""
    run = SimpleNamespace(folder=folder, status={})
    run.update_status = lambda **more: Run.update_status(run, **more)
    watch.mark_starting(run, "train")
    return run


def test_a_fetch_that_fails_is_not_waited_for(tmp_path, monkeypatch):
    """Of a detached run's two containers the first fetches the model; where it cannot, the second never comes."""
    monkeypatch.setenv("RECIPE_FETCH", "model")
    run = announced(tmp_path)
    with watch.report_status(run, "train"):
        pass
    assert watch.is_active(tmp_path)  # the second is coming
    with pytest.raises(InputWrong), watch.report_status(run, "train"):
        raise InputWrong("No such model.")
    assert not watch.is_active(tmp_path)
    assert watch.read_status(tmp_path)["said"] == "No such model."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "tiny", "train.lr=0.05", "--detach"], 2, "at most 0.01"),
        (["train", "tiny", "train.max_epochs=1", "train.accumulative_counts=40", "--detach"], 2, "would not learn"),
        (["plan", "tiny", "--detach"], 2, "plan has no option --detach"),
    ],
)
def test_what_is_refused_is_refused_in_front_of_the_user(tmp_path, words, code, said):
    done = subprocess.run(
        [str(ROOT / "docker/runtime/run"), *words, "--output", str(tmp_path)], env={**os.environ, "RUNTIME": "host"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stderr
    assert not list(tmp_path.glob("*/detached.log"))


def test_a_run_that_fails_at_once_is_not_hidden(tmp_path):
    """docker/runtime/detach alone, with a stand-in for what it starts: its checks pass, then it fails."""
    (tmp_path / "docker").mkdir()
    for name in ("detach", "message"):
        shutil.copy(str(ROOT / "docker" / "runtime" / name), str(tmp_path / "docker"))
    runs = tmp_path / "docker" / "run"
    (tmp_path / "run.json").write_text("{}")
    announced(tmp_path)
    (tmp_path / watch.STOP_FILE).touch()
    runs.write_text(f'#!/bin/sh\n[ "$3" != --checks ] || exec echo "{tmp_path}"\necho no GPU "$@"\nexit 3\n')
    runs.chmod(0o755)
    assert watch.is_active(tmp_path)
    words = [str(tmp_path / "docker" / "detach"), "train", "--detach", "a b"]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "DETACH": "abc"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "DETACH=abc is not a number of seconds.\n")
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "no GPU train a b\n")
    assert (tmp_path / "detached.log").read_text() == done.stdout
    assert not watch.is_active(tmp_path)  # else watch and stop would wait for it
    assert not (tmp_path / watch.STOP_FILE).exists()  # else it would stop the next run
