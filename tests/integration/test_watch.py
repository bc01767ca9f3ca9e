"""A run that outlives its terminal (--detach), one that is watched, and one that is asked to stop."""

import json
import os
import signal
import subprocess
import sys

import pytest

from recipe.core import files
from recipe.training import watch
from support.command import ROOT, recipe, refused
from support.terminal import WORDS, read_until, terminal


@pytest.fixture(scope="module")
def detached(tmp_path_factory):
    """A training started at a terminal that is then closed, watched, stopped, started again the same way and watched to
    its end: what each of these said.
    """
    output = tmp_path_factory.mktemp("detached")
    folder = output / "tiny"
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
    refused(detached["other"], 3, "Another run is using")


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
    folder = tmp_path / "tiny"
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
    folder = tmp_path / "tiny"
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
    # The second where a slow machine sees the file before training begins
    assert stopped.returncode in (0, -signal.SIGTERM), stopped.stderr
    assert "Stopped as asked" in watch.read_status(folder)["said"]
    assert not watch.is_active(folder)
    files.write_text(folder / ".now.json", json.dumps({**state, "at": state["at"] - watch.STARTUP_SECONDS}))
    assert not watch.is_active(folder)  # it never came
    assert f"{folder}/detached.log" in recipe("watch", folder).stdout
