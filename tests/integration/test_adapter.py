"""The demo's adapter: the same tensors as XTuner's own converter."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from recipe.base_model import folder, licence
from recipe.core import imports, settings, tensor_files
from recipe.core.run import Run
from recipe.reporting import report
from recipe.weights import adapter, merge
from support.command import ROOT


@pytest.fixture(scope="module")
def run(demo):
    _, folder = demo
    run = Run("tiny", settings.load("tiny")[1], ROOT, folder.parent)
    run.manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return run


def test_equals_xtuners_pth_to_hf_tensor_for_tensor(run, tmp_path):
    words = ["-m", "xtuner.tools.model_converters.pth_to_hf", run.config, run.figures("train")["checkpoint"], tmp_path]
    subprocess.run(
        [sys.executable, *map(str, words)], cwd=str(ROOT), check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "MKL_SERVICE_FORCE_INTEL": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    )  # fmt: skip
    theirs = torch.load(str(tmp_path / "adapter_model.bin"))
    ours = load_file(str(run.adapter / "adapter_model.safetensors"))
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype == torch.float16
        assert torch.equal(ours[name], tensor), name
    one, other = (json.loads((p / "adapter_config.json").read_text()) for p in (run.adapter, tmp_path))
    for key in ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "peft_type", "fan_in_fan_out"):
        assert one[key] == other[key], key
    assert set(one["target_modules"]) == set(other["target_modules"])


def test_figures(run, demo):
    figures = run.figures("adapter")
    assert figures["tensors"] == 2 * (2 * 5 + 1)  # A and B of five matrices in two layers, and of the output head
    assert figures["targets"] == ["output", "w1", "w2", "w3", "wo", "wqkv"]
    assert figures["underflow_share"] < 0.01
    assert figures["largest_b"] > 1e-3
    assert "underflow in fp16" in demo[0].stdout


def test_peft_reads_it_as_xtuners(run):
    imports.load()
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(str(run.adapter))
    lora = run.figures("config")["lora"]
    assert (config.r, config.lora_alpha, config.bias) == (lora["r"], lora["lora_alpha"], "none")
    assert config.target_modules == set(run.figures("adapter")["targets"])


def test_it_says_what_it_was_made_from(run):
    """Base and checksum in the file and on the card, with recipe and figures."""
    base = folder.folder(run)
    checksum = adapter.base_checksum(base)
    assert tensor_files.safetensors(run.adapter / "adapter_model.safetensors")[1] == {
        "format": "pt", "base_model": run.relative(base), "base_sha256": checksum,
    }  # fmt: skip
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    train = run.figures("train")
    figures = (f"{train['iterations']}, {train['updates']}", f"{train['loss_first']} → {train['loss_last']}")
    for word in (checksum, run.relative(base), "library_name: peft", "tiny", *figures):
        assert word in card, word


def test_terms_of_the_bases_own_stand_on_every_card(demo, tmp_path):
    shutil.copytree(str(demo[1]), str(tmp_path / "tiny"))
    run = Run("tiny", settings.load("tiny")[1], ROOT, tmp_path)
    run.manifest = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    run.figures("model")["base_licence"] = licence.INTERNLM2._asdict()
    run.save()
    cards = [adapter.card(run, run.figures("adapter"), run.adapter), merge.model_card(run, run.figures("merge"))]
    report.write(run)
    for card in [*cards, (run.folder / "report" / "README.md").read_text(encoding="utf-8")]:
        (tmp_path / "README.md").write_text(card, encoding="utf-8")
        assert licence.read_card(tmp_path) == licence.INTERNLM2._replace(terms="")
        assert "commercial use is free, but has to be applied for" in card
