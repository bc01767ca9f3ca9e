"""The merge stage: no-ops, and weights of adapters in the recipe."""

import pytest

from recipe.core import settings
from recipe.core.errors import InputWrong, RunFailed
from recipe.core.run import Run
from recipe.stages import pipeline
from recipe.stages.merge import STAGE as MERGE
from recipe.weights import merge
from support.command import ROOT


@pytest.mark.parametrize(
    ("force", "known", "ends"), [(False, [], True), (True, [], False), (False, ["few-updates"], False)]
)
def test_a_merge_that_changed_nothing_fails_unless_that_is_known(force, known, ends, monkeypatch, capsys):
    """Exit 1, but for --force and for a recipe that is about it."""
    figures = {"tensors_changed": 0, "tensors": 17, "share_changed": 0.0, "shards": 1, "shards_reused": 0, "kinds": {}}
    monkeypatch.setattr(pipeline, "perform", lambda run, stage: ({"figures": figures, "seconds": 1.0}, True))
    monkeypatch.setitem(pipeline.COMMANDS, "merge", (MERGE,))
    recipe_settings = settings.replace(settings.load("tiny")[1], "known_faults", known)
    run = Run("tiny", recipe_settings, ROOT, ROOT / "output", force=force)
    if ends:
        with pytest.raises(RunFailed, match="changed nothing"):
            pipeline.run_stages(run, "merge")
        return
    pipeline.run_stages(run, "merge")
    assert "The merge changed nothing" in capsys.readouterr().out


def test_weights_of_adapters_are_checked_with_the_recipe():
    with pytest.raises(InputWrong, match="2 numbers for 3 adapters"):
        settings.load("tiny", ['merge.adapters=["a", "b"]', "merge.weights=[1.0, 2.0]"])
    chosen = settings.load("tiny", ["merge.adapters=a", "merge.weights=[1.0, 0.5]"])[1]
    run = Run("tiny", chosen, ROOT, ROOT / "output")
    assert merge.adapters(run) == [(run.adapter, 1.0), (ROOT / "a", 0.5)]
