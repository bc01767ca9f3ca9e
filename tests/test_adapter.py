"""Adapter: the same tensors as XTuner's own converter."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from recipe import adapter, settings, stages


@pytest.fixture(scope="module")
def run(demo):
    _, folder = demo
    run = stages.Run("demo", settings.load("demo")[1], ROOT, folder.parent)
    run.manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return run


def test_equals_xtuners_pth_to_hf_tensor_for_tensor(run, tmp_path):
    words = ["-m", "xtuner.tools.model_converters.pth_to_hf", run.config, run.figures("train")["checkpoint"], tmp_path]
    subprocess.run(
        [sys.executable, *map(str, words)], cwd=str(ROOT), check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "MKL_SERVICE_FORCE_INTEL": "1"},
    )  # fmt: skip
    theirs = torch.load(str(tmp_path / "adapter_model.bin"))
    ours = load_file(str(run.adapter / "adapter_model.safetensors"))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype == torch.float16
        assert torch.equal(ours[name], tensor), name
    one, other = (json.loads((p / "adapter_config.json").read_text()) for p in (run.adapter, tmp_path))
    for key in ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "peft_type", "fan_in_fan_out", "use_rslora"):
        assert one[key] == other[key], key
    assert set(one["target_modules"]) == set(other["target_modules"])


def test_figures(run):
    figures = run.figures("adapter")
    assert figures["tensors"] == 2 * (2 * 5 + 1)  # A and B of five matrices in two layers, and of the output head
    assert figures["targets"] == ["output", "w1", "w2", "w3", "wo", "wqkv"]
    assert figures["vanished"] < 0.01
    assert figures["largest_b"] > 1e-3


def test_what_fp16_makes_of_the_tutorials_rates(tmp_path):
    """At 2e-9 the largest lora_B value was 2.2e-9: nothing of it is left in fp16."""
    state = {"llm.base_model.model.m.wo.lora_B.default.weight": torch.full((4, 2), 2.2e-9)}
    torch.save({"state_dict": state}, str(tmp_path / "iter_1.pth"))
    found = adapter.tensors(tmp_path / "iter_1.pth")
    assert list(found) == ["base_model.model.m.wo.lora_B.weight"]
    assert int((found["base_model.model.m.wo.lora_B.weight"].half() != 0).sum()) == 0


def test_a_checkpoint_without_lora_is_refused(tmp_path):
    torch.save({"state_dict": {"llm.model.x.weight": torch.zeros(1)}}, str(tmp_path / "iter_1.pth"))
    with pytest.raises(adapter.RunFailed, match="no LoRA weights"):
        adapter.tensors(tmp_path / "iter_1.pth")
