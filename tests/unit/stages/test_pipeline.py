"""Stages of a full fine-tuning, and those that a waiting trainer waits for."""

import contextlib

import pytest

from recipe.core import settings
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.stages import pipeline
from recipe.stages.adapter import STAGE as ADAPTER
from recipe.stages.merge import STAGE as MERGE
from recipe.weights import merge
from support.command import ROOT


def test_no_adapter_is_made_and_none_is_added(tmp_path):
    _, found = settings.load("tiny", ["train.method=full"])
    run = Run("tiny", found, ROOT, tmp_path)
    for command in ("train", "merge", "demo"):
        items = pipeline.of_method(run, pipeline.COMMANDS[command])
        assert ADAPTER not in items
        assert (MERGE in items) == (command != "train")
        assert len(set(map(id, items))) == len(items)
    run.settings = settings.replace(found, "merge.adapters", ["x"])
    run.manifest = {"stages": {"train": {"figures": {"checkpoint": "c"}}}}
    with pytest.raises(InputWrong, match="no adapter to combine"):
        merge.adapters(run)


def test_no_trainer_waits_once_training_has_ended(tmp_path, monkeypatch):
    """Else it, or a process that compiles for it, would hold memory that the merge and the answers need."""
    done = []

    @contextlib.contextmanager
    def started(run):
        yield
        done.append("ended")

    monkeypatch.setattr(pipeline.waiting_trainer, "started", started)
    monkeypatch.setattr(pipeline, "_perform", lambda run, stage: done.append(stage.name) or {"tensors_changed": 1})
    run = Run("tiny", settings.load("tiny")[1], ROOT, tmp_path)
    monkeypatch.setattr(Run, "record_training", lambda self: None)
    for command in ("demo", "plan"):
        items = [one for one in pipeline.COMMANDS[command] if one is not pipeline.evaluate.STAGE]
        pipeline.run_stages(run, command, tuple(one for one in items if not callable(one)))
    assert done == [
        "data", "plan", "config", "model", "train", "ended", "adapter", "merge", "chat", "data", "plan",
    ]  # fmt: skip
