"""The trainer that is started while the plan is made."""

import json
import subprocess
import sys

import pytest

from recipe.core import settings
from recipe.core.run import Run
from recipe.stages import waiting_trainer
from recipe.training import process
from support.command import ROOT


def new_run(tmp_path, words=(), **manifest):
    return Run("tiny", settings.load("tiny", list(words))[1], ROOT, tmp_path, manifest=manifest)


def test_it_is_started_for_a_training_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(waiting_trainer, "WORDS", [sys.executable, "-c", "input()"])
    with waiting_trainer.started(new_run(tmp_path)):
        assert list(process._early) == [tmp_path / "tiny"]
    trained = new_run(tmp_path, stages={"train": {}})
    for other in (trained, new_run(tmp_path, ["gpus=2"])):
        with waiting_trainer.started(other):
            assert not process._early


@pytest.mark.slow
def test_it_counts_its_time_from_its_arguments_and_trains_with_them(tmp_path):
    expected = json.dumps(waiting_trainer.expected(new_run(tmp_path)))
    given = json.dumps({"arguments": ["no-such-config.py"], "sent": 12.5})
    done = subprocess.run(
        waiting_trainer.WORDS, input=f"{expected}\n{given}\n", cwd=str(ROOT), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode
    assert "Cannot find no-such-config.py" in done.stdout


def test_it_ends_where_nothing_is_wanted():
    done = subprocess.run(waiting_trainer.WORDS, input="", cwd=str(ROOT), text=True)
    assert done.returncode == 0
