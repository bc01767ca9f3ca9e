"""Stages of a full fine-tuning."""

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
