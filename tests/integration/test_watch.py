"""A run that outlives its terminal (--detach), one that is watched, and one that is asked to stop."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, recipe, refused

from recipe.core import files
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.training import watch

WORDS = ("train", "demo", "train.max_epochs=5", "train.evaluation_max_new_tokens=2")


def terminal(*words, **more):
    """Start a shell at a terminal of its own that runs `words` and then waits, as one left open does.
    Returns its process id and the terminal's other end.
    """
    child, end = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup just test` ignores it; a terminal's shell does not
        os.chdir(str(ROOT))
        line = " ".join(f"'{word}'" for word in words)
        variables = {**os.environ, "RUNTIME": "host", "NO_COLOR": "1", "TERM": "dumb", "DETACH": "300", **more}
        os.execvpe("bash", ["bash", "-c", f"{line}; echo code $?; sleep 600"], variables)
    return child, end


def read_until(end, word, seconds=200):
    said, until = "", time.time() + seconds
    while word not in said:
        ready = select.select([end], [], [], max(0, until - time.time()))[0]
        assert ready, said
        said += os.read(end, 65536).decode("utf-8", "replace")
    return said


@pytest.fixture(scope="module")
def detached(tmp_path_factory):
    """A training started at a terminal that is then closed, watched, stopped, started again the same way and watched to
    its end: what each of these said.
    """
    output = tmp_path_factory.mktemp("detached")
    folder = output / "demo"
    said = {"folder": folder}
    for time_ in ("first", "second"):
        child, end = terminal("docker/runtime/run", *WORDS, "--output", str(output), "--detach")
        said[time_] = read_until(end, "code ")
        if time_ == "first":
            said["other"] = recipe(*WORDS, "--output", output)
        os.close(end)  # the session is over: the kernel sends SIGHUP
        said[f"{time_} shell"] = os.waitpid(child, 0)[1]
        watcher = subprocess.Popen(
            [sys.executable, "-m", "recipe", "watch", str(folder)], cwd=str(ROOT), stdout=subprocess.PIPE, text=True
        )
        if time_ == "first":
            said["stop"] = recipe("stop", folder)
        said[f"{time_} watch"] = watcher.communicate(timeout=200)[0], watcher.returncode
    return said


def test_a_detached_training_outlives_its_terminal(detached):
    assert "data " in detached["first"], "data, plan and config are made in front of the user"
    assert "you can close this terminal" in detached["first"]
    assert "code 0" in detached["first"]
    for part in ("first", "second"):
        assert os.WTERMSIG(detached[f"{part} shell"]) == 1  # SIGHUP ended the shell
    figures = json.loads((detached["folder"] / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["iterations"] == 165
    assert 0 < figures["resumed_from"] < 165
    assert (detached["folder"] / "adapter" / "adapter_model.safetensors").is_file()


def test_a_second_run_on_its_folder_is_refused(detached):
    refused(detached["other"], 3, "Another run is at work")


def test_stop_saves(detached):
    done = detached["stop"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stopped as asked (SIGTERM). The checkpoint of iteration" in done.stdout
    said, code = detached["first watch"]
    assert code == 0
    assert said.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_watch_follows_to_the_end(detached):
    said, code = detached["second watch"]
    assert code == 0, said
    for word in (
        "train    since",
        "/165  loss ",
        "lr ",
        "tokens/s",
        "s left",
        "answers at ",
        "我最近总是感到工作压力很大",
        "165/165",
    ):
        assert word in said, word
    assert said.splitlines()[-1].startswith(f"train in {detached['folder']} ended at ")
    assert said.splitlines()[-1].endswith("exit code 0: done")


def test_when_nothing_runs_the_last_state_is_said(detached, tmp_path):
    state = watch.read_status(detached["folder"])
    folder = tmp_path / "demo"
    folder.mkdir()

    def last(**state):
        files.write_text(folder / ".now.json", json.dumps(state))
        done = recipe("watch", folder)
        return done.returncode, done.stdout

    assert last(**state)[0] == 0
    code, said = last(**{**state, "code": 1, "said": "The loss is nan at iteration 5 of 72."})
    assert code == 1
    assert "exit code 1: The loss is nan at iteration 5 of 72." in said
    code, said = last(command="train", stage="train", at=1.0)
    assert code == 1
    assert "at stage train: it was killed, or the machine went down." in said
    done = recipe("stop", folder)
    assert (done.returncode, done.stdout.strip()) == (0, f"No active run in {folder}.")
    refused(recipe("watch", "none", "--output", tmp_path), 2, "There is no run 'none'")


def test_a_run_that_is_being_started_is_waited_for(tmp_path):
    """What the one before it said is out of date, and stop stops the one that is coming."""
    folder = tmp_path / "demo"
    folder.mkdir()
    files.write_text(folder / ".now.json", json.dumps({"command": "train", "code": 0, "said": "old", "at": 1.0}))
    assert not watch.is_active(folder)
    words = (*WORDS, "--output", tmp_path)
    done = recipe(*words, "--checks")  # what docker/runtime/detach does first
    assert done.returncode == 0, done.stderr
    state = watch.read_status(folder)
    assert state["starting"]
    assert "code" not in state
    assert watch.is_active(folder)
    files.write_text(folder / watch.STOP_FILE, "")
    stopped = recipe(*words)
    assert (stopped.returncode, "Stopped as asked" in stopped.stderr) == (0, True), stopped.stderr
    assert "Stopped as asked" in watch.read_status(folder)["said"]
    assert not watch.is_active(folder)
    files.write_text(folder / ".now.json", json.dumps({**state, "at": state["at"] - watch.STARTUP_SECONDS}))
    assert not watch.is_active(folder)  # it never came
    assert f"{folder}/detached.log" in recipe("watch", folder).stdout


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


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["train", "demo", "train.lr=0.05", "--detach"], 2, "at most 0.01"),
        (["train", "demo", "train.max_epochs=1", "train.accumulative_counts=40", "--detach"], 2, "would not learn"),
        (["plan", "demo", "--detach"], 2, "plan has no option --detach"),
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
    shutil.copy(str(ROOT / "docker" / "runtime" / "detach"), str(tmp_path / "docker"))
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
