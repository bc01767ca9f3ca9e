"""The trainer's process: hangs, memory, a missing compiler."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from recipe.core import settings
from recipe.core.run import Run
from recipe.training import process as train
from support.command import ROOT


def test_training_says_that_it_does_without(monkeypatch, tmp_path, capsys):
    from recipe.core import compiler, settings
    from recipe.training import process
    from recipe.xtuner import step_choice

    def started(*words):
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "gpus", lambda: [{"name": "one"}])
    monkeypatch.setattr(process, "command", lambda *words: [])
    monkeypatch.setattr(process, "run_process", started)
    monkeypatch.setattr(compiler, "fault", lambda: "there is no C compiler")
    run = SimpleNamespace(settings=settings.load("tiny")[1], folder=tmp_path, update_status=lambda **words: None)
    planned = {"seed": 0, "iterations": 1, "iterations_per_epoch": 1, "tokens_kept": 1}
    for speed in ("fast", "stock"):
        monkeypatch.setattr(step_choice, "speed", lambda settings, speed=speed: speed)
        with pytest.raises(KeyboardInterrupt):
            process.run_trainer(run, tmp_path, tmp_path / "train.log", None, planned)
        assert ("there is no C compiler" in capsys.readouterr().err) == (speed == "fast")


def process(*words):
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_trainer_that_says_nothing_is_ended(tmp_path):
    child = process("sh", "-c", "echo one; sleep 60")
    with (tmp_path / "log").open("w") as log, pytest.raises(train.RunFailed) as caught:
        list(train._read_lines(child, log, 1.0, []))
    assert "printed nothing for 0.0167 minutes" in str(caught.value)
    assert child.wait() == -9
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_trainer_that_does_not_stop_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STOP_TIMEOUT", 1)
    child = process("sh", "-c", "trap '' TERM; echo one; sleep 60 & wait; sleep 60")
    with (tmp_path / "log").open("w") as log:
        list(train._read_lines(child, log, 100.0, [1.0]))
    assert child.wait() == -9


def test_memory_is_kept_between_iterations_where_a_cpu_trains(monkeypatch):
    run = Run("tiny", settings.load("tiny")[1], ROOT, ROOT / "output")
    monkeypatch.setattr(train, "gpus", lambda: [])
    assert train.MALLOC_SETTINGS.items() <= train.environment(run).items()
    monkeypatch.setattr(train, "gpus", lambda: [{"name": "H100"}])
    assert not train.MALLOC_SETTINGS.keys() & train.environment(run).keys()


# What a waiting trainer does: reads what to prepare for, then its arguments.
WAITING = """import json, os, sys
print("prepared for", json.loads(sys.stdin.readline()), flush=True)
line = sys.stdin.readline()
print("given", json.loads(line)["arguments"] if line else "nothing", flush=True)"""


@pytest.fixture
def run(tmp_path):
    made = Run("tiny", settings.load("tiny")[1], ROOT, tmp_path)
    made.folder.mkdir()
    return made


def say(run, words, tmp_path):
    """run_process's lines."""
    lines = []
    end = train.run_process(run, words, tmp_path / "log", lines.append)
    return end.code, "".join(lines)


def test_a_trainer_that_was_started_early_gets_its_arguments(run, tmp_path, monkeypatch):
    words = [sys.executable, "-c", WAITING]
    monkeypatch.delenv("ADDED_BY_AN_IMPORT", raising=False)
    with train.started_early(run, words, {"model": "模型"}):
        monkeypatch.setenv("ADDED_BY_AN_IMPORT", "1")
        assert say(run, [*train.TRAINER, "config.py", "--resume"], tmp_path) == (
            0, "prepared for {'model': '模型'}\ngiven ['config.py', '--resume']\n"
        )  # fmt: skip
        # The next one starts by itself.
        assert say(run, [sys.executable, "-c", "print('alone')"], tmp_path) == (0, "alone\n")


@pytest.mark.parametrize("what", ["other words", "other variables", "it has ended"])
def test_a_trainer_that_cannot_be_used_is_ended(run, tmp_path, monkeypatch, what):
    waiting = "raise SystemExit(1)" if what == "it has ended" else WAITING
    with train.started_early(run, [sys.executable, "-c", waiting], {}):
        early = train._early[run.folder].child
        if what == "it has ended":
            early.wait()
        if what == "other variables":
            run.settings = settings.load("tiny", ["train.deterministic=false"])[1]
        monkeypatch.setattr(train, "TRAINER", [sys.executable, "-c", "print('alone')"])
        words = [sys.executable, "-c", "print( 'alone' )"] if what == "other words" else train.TRAINER
        assert say(run, words, tmp_path) == (0, "alone\n")
        assert early.poll() is not None


def test_a_trainer_that_is_not_needed_is_ended(run):
    with train.started_early(run, [sys.executable, "-c", WAITING], {}):
        early = train._early[run.folder].child
    assert early.poll() is not None
    assert not train._early


def test_kernels_are_compiled_before_a_training_that_needs_the_whole_card(run, tmp_path, monkeypatch):
    card = SimpleNamespace(free=24000, mode="Default")
    monkeypatch.setattr(train, "gpus", lambda: [])
    monkeypatch.setattr(train.hardware, "query", lambda: ([card], None))
    monkeypatch.setattr(train.hardware, "visible", lambda cards: cards)
    compiling = [sys.executable, "-c", "import time; input(); time.sleep(1)"]
    found = []
    for card.free, card.mode in ((24000, "Default"), (80000, "Exclusive_Process"), (80000, "Default")):
        with train.started_early(run, [sys.executable, "-c", WAITING], {}, compiling):
            compiler = train._early[run.folder].compiler
            say(run, train.TRAINER, tmp_path)
            found.append(compiler.poll())
    assert found == [0, 0, None]
    assert compiler.poll() is not None  # with the block


@pytest.mark.parametrize("waiting", [WAITING, "raise SystemExit(1)"])
def test_compiling_that_takes_too_long_gives_the_card_back(run, tmp_path, monkeypatch, waiting):
    card = SimpleNamespace(free=80000, mode="Exclusive_Process")
    monkeypatch.setattr(train, "gpus", lambda: [])
    monkeypatch.setattr(train.hardware, "query", lambda: ([card], None))
    monkeypatch.setattr(train.hardware, "visible", lambda cards: cards)
    monkeypatch.setattr(train, "COMPILE_TIMEOUT", 0.5)
    monkeypatch.setattr(train, "TRAINER", [sys.executable, "-c", "print('alone')"])
    with train.started_early(run, [sys.executable, "-c", waiting], {}, ["sleep", "60"]):
        compiler = train._early[run.folder].compiler
        assert say(run, train.TRAINER, tmp_path)[0] == 0
        assert compiler.poll() is not None


def test_a_trainer_is_ended_where_waiting_for_the_card_is_interrupted(run, tmp_path, monkeypatch):
    def interrupted(compiler):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_wait_for_card", interrupted)
    with train.started_early(run, [sys.executable, "-c", WAITING], {}, ["sleep", "60"]):
        early = train._early[run.folder].child
        with pytest.raises(KeyboardInterrupt):
            say(run, train.TRAINER, tmp_path)
        assert early.poll() is not None


def test_a_machine_that_cannot_start_it_early_trains_all_the_same(run, tmp_path):
    with train.started_early(run, [str(tmp_path / "no-such-program")], {}):
        assert not train._early
        assert say(run, [sys.executable, "-c", "print('alone')"], tmp_path) == (0, "alone\n")
