"""Merge: exact to one rounding, and equal to PEFT's and XTuner's up to theirs."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipe.core import hashing, settings, stage
from recipe.core.errors import RunFailed
from recipe.core.run import Run
from recipe.core.translation import use
from recipe.stages.merge import STAGE as MERGE
from recipe.weights import merge
from support.command import ROOT
from support.lora_merge import LINEAR, assert_one_rounding, changed, exactly, interrupt, join, peft_model, weights


def test_every_weight_is_the_exact_sum_rounded_once(base, adapter, merged):
    found = weights(merged[0])
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert_one_rounding(found, *exactly(base, [(adapter, 1.0)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bases_of_other_types_keep_them(base, adapter, tmp_path, dtype):
    shutil.copytree(str(base), str(tmp_path / "base"))
    for path in (tmp_path / "base").glob("*.safetensors"):
        save_file({name: t.to(dtype) for name, t in load_file(str(path)).items()}, str(path), {"format": "pt"})
    join(tmp_path / "base", [adapter], tmp_path / "out")
    found = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_one_rounding(found, *exactly(tmp_path / "base", [(adapter, 1.0)]))


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"rank_pattern": {"wqkv": 4, "layers.1.feed_forward.w1": 2}, "alpha_pattern": {"w2": 3, "wqkv": 5}},
        {"use_rslora": True},
        {"use_dora": True, "target_modules": ["wqkv", "wo", "w2"]},
        {"modules_to_save": ["output", "attention_norm"], "target_modules": ["wqkv", "w1"]},
        {"target_modules": ["tok_embeddings", "wo"]},
    ],
    ids=["plain", "patterns", "rslora", "dora", "modules_to_save", "embeddings"],
)
def test_every_kind_of_lora_equals_pefts_own_merge(base, tmp_path, variant):
    model = peft_model(base, **variant)
    model.save_pretrained(str(tmp_path / "adapter"))
    theirs = model.merge_and_unload().state_dict()
    join(base, [tmp_path / "adapter"], tmp_path / "out")
    ours, before = weights(tmp_path / "out"), weights(base)
    assert set(ours) == set(theirs)
    assert sum(not torch.equal(ours[name], before[name]) for name in ours) >= 4
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].float(), tensor, rtol=2**-10, atol=2**-24), name


@pytest.mark.slow
def test_equals_xtuners_own_merge(base, adapter, merged, tmp_path):
    """XTuner's adds fp16 to fp16: the adapter's share is rounded once more than ours."""
    words = ["-m", "xtuner.tools.model_converters.merge", base, adapter, tmp_path, "--device", "cpu"]
    subprocess.run(
        [sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MKL_THREADING_LAYER": "GNU", "MKL_SERVICE_FORCE_INTEL": "1"},
    )  # fmt: skip
    theirs, ours, before = weights(tmp_path), weights(merged[0]), weights(base)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        added = (ours[name].float() - before[name].float()).abs()
        slack = 2**-10 * (ours[name].float().abs() + added) + 2**-24
        assert bool(((ours[name].float() - tensor.float()).abs() <= slack).all()), name


def test_what_changed_is_told_by_module_kind(base, adapter, merged):
    before, after, figures = weights(base), weights(merged[0]), merged[1]
    assert sorted(figures["kinds"]) == sorted(LINEAR)
    for kind, told in figures["kinds"].items():
        names = [name for name in before if name.split(".")[-2] == kind]
        changes = [
            (after[n].float() - before[n].float()).norm().item() / before[n].float().norm().item() for n in names
        ]
        assert told["tensors"] == told["tensors_changed"] == len(names)
        assert told["weights_changed"] == sum(int((after[n] != before[n]).sum()) for n in names)
        assert told["largest"] == pytest.approx(max(changes), rel=1e-4)
        assert told["mean"] == pytest.approx(sum(changes) / len(names), rel=1e-4)
    assert figures["weights_changed"] == sum(k["weights_changed"] for k in figures["kinds"].values())
    said = merge.summary(figures)
    assert f"{figures['tensors_changed']} of {figures['tensors']} tensors" in said
    assert len(said.splitlines()) == 1 + len(LINEAR)
    with use("zh"):
        first, *kinds = merge.summary(figures).splitlines()
    assert first.startswith(f"{figures['tensors']} 个张量中的 {figures['tensors_changed']} 个、")
    assert [line[:16].strip() for line in kinds] == sorted(LINEAR)


def test_values_that_the_type_cannot_hold_are_told(base, adapter, tmp_path):
    huge = changed(adapter, tmp_path / "huge", value=lambda n, t: t * 1e9 if ".lora_B." in n else t)
    with pytest.raises(RunFailed, match="overflows float16"):
        join(base, [huge], tmp_path / "out")


def test_the_stage_goes_on_where_it_was_stopped(base, adapter, tmp_path, monkeypatch):
    """The half-made folder outlives the stage's own; settings reach the merge; nothing is hashed twice."""
    words = [f"model.path={base}", "merge.max_shard_size=130KB", "merge.safe_serialization=false"]
    run = Run("tiny", settings.load("tiny", words)[1], ROOT, tmp_path)
    shutil.copytree(str(adapter), str(run.adapter))
    run.manifest = {"stages": {"adapter": {"figures": {"base_sha256": "0" * 64, "base_model": "a base"}}}}
    monkeypatch.setattr(merge, "check_loads", lambda _: contextlib.nullcontext(lambda *_: {"stops": [2, 92542]}))
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        interrupt(patch, 20, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stage.perform(run, MERGE)
    assert not run.merged.exists()
    assert f"resumes   after {len(list((run.folder / merge.PART).glob('*.bin')))} finished" in "\n".join(
        merge.dry_run(run)
    )
    entry, ran = stage.perform(run, MERGE)
    assert ran
    assert entry["figures"]["shards_reused"] >= 1
    assert entry["outputs"]["merged"]["sha256"] == hashing.digest(run.merged)
    assert sorted(path.name for path in run.folder.iterdir()) == ["adapter", "merged", "run.json"]
    card = (run.merged / "README.md").read_text(encoding="utf-8")
    for word in ("base_model: a base", "0" * 64, "adapter × 1", "2, 92542"):
        assert word in card, card
    assert not stage.perform(run, MERGE)[1]
    run.settings = settings.load("tiny", [*words, "merge.weights=[0.5]"])[1]
    assert stage.perform(run, MERGE)[1]
