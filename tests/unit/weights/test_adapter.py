"""Adapter: the same tensors as XTuner's own converter."""

import json
import os
import subprocess
import sys

import pytest
import torch
from bench_adapter import LORA, write_zero
from conftest import ROOT
from safetensors.torch import load_file

from recipe.base_model import folder
from recipe.core import imports, settings, tensor_files
from recipe.core.errors import RunFailed
from recipe.core.run import Run
from recipe.weights import adapter, checkpoint_reader


@pytest.fixture(scope="module")
def run(demo):
    _, folder = demo
    run = Run("demo", settings.load("demo")[1], ROOT, folder.parent)
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
    for word in (checksum, run.relative(base), "library_name: peft", "demo", *figures):
        assert word in card, word


def state(seed=0, scale=1e-3):
    """A checkpoint's trained weights by XTuner's names; odd sizes, so that parts end inside of weights."""
    torch.manual_seed(seed)
    made = {}
    for number in range(3):
        module = f"llm.base_model.model.model.layers.{number}.attention.wo"
        made[f"{module}.lora_A.default.weight"] = torch.randn(3, 7 + number)
        made[f"{module}.lora_B.default.weight"] = torch.randn(11, 3) * scale
    return made


def converted(checkpoint, place, dtype="fp32"):
    figures = adapter.convert(checkpoint, place, LORA, dtype, {"base_model": "base", "base_sha256": "0"})
    return figures, load_file(str(place / "adapter_model.safetensors"))


def named(weights):
    return {name[len("llm.") :].replace(".default", ""): weight for name, weight in weights.items()}


def assert_equal(found, expected):
    assert list(found) == sorted(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeeds_folders_equal_deepspeeds_own_consolidation(tmp_path, stage, ranks, capsys):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    weights = state()
    names = list(weights)
    groups = [{n: weights[n] for n in names[:4]}, {n: weights[n] for n in names[4:]}]
    write_zero(tmp_path / "iter_81.pth", groups, stage, ranks)
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path), "iter_81.pth")
    assert_equal(converted(tmp_path / "iter_81.pth", tmp_path / "out")[1], named(theirs))
    assert_equal(named(theirs), named(weights))


def test_a_folder_that_deepspeed_itself_wrote(tmp_path):
    """Trained one step by DeepSpeed's engine, ZeRO-2, on a machine without a GPU (tests/no_gpu answers for one)."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'no_gpu'}:{ROOT}", "OMP_NUM_THREADS": "1",
             "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "iter_1.pth" / "mp_rank_00_model_states.pt").exists()
    trained = torch.load(str(tmp_path / "trained.pt"))
    _, found = converted(tmp_path / "iter_1.pth", tmp_path / "out")
    assert_equal(found, named(trained))


TRAIN = """
import sys, torch, deepspeed
from torch import nn

class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 3, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(3, 5, bias=False)})

    def forward(self, x):
        return self.lora_B["default"](self.lora_A["default"](x))

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        inner = nn.Module()
        inner.base_model = nn.Module()
        inner.base_model.model = nn.Module()
        inner.base_model.model.wo = Lora()
        self.llm = inner

    def forward(self, x):
        return self.llm.base_model.model.wo(x)

torch.manual_seed(0)
rendezvous = f"file://{sys.argv[1]}/rendezvous"
deepspeed.init_distributed("gloo", False, init_method=rendezvous, rank=0, world_size=1)
model = Model()
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=0.1),
    config={
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000},
    },
)
engine.backward(engine(torch.randn(2, 6)).square().sum())
engine.step()
engine.save_checkpoint(sys.argv[1], tag="iter_1.pth", save_latest=False)
torch.save({n: p.detach().float().clone() for n, p in engine.module.named_parameters()}, sys.argv[1] + "/trained.pt")
"""


def test_a_folder_that_lacks_a_part_is_refused(tmp_path):
    write_zero(tmp_path / "iter_81.pth", [state()], 2, 3)
    next((tmp_path / "iter_81.pth").glob("*rank_1*")).unlink()
    with pytest.raises(RunFailed, match=r"saved by 3 processes, 2 \*_optim_states.pt"):
        checkpoint_reader.lora_tensors(tmp_path / "iter_81.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFailed, match=r"no \*_optim_states\.pt"):
        checkpoint_reader.lora_tensors(tmp_path / "empty")


def test_only_what_was_trained_is_read(tmp_path):
    """Neither the optimizer's state nor a class that the pickle names, which could do anything."""
    weights = state()
    torch.save({"state_dict": weights, "optimizer": torch.randn(1000), "hub": Nasty()}, str(tmp_path / "iter_1.pth"))
    assert_equal(converted(tmp_path / "iter_1.pth", tmp_path / "out")[1], named(weights))
    assert not Nasty.ran


class Nasty:
    ran = False

    def __reduce__(self):
        return (setattr, (Nasty, "ran", True))


def test_the_type_is_chosen_and_its_underflow_said(tmp_path):
    """At 2e-9 the largest lora_B value was 2.2e-9: nothing of it is left in fp16."""
    weights = {name: w / w.abs().max() * (2.2e-9 if "lora_B" in name else 1) for name, w in state().items()}
    torch.save({"state_dict": weights}, str(tmp_path / "iter_1.pth"))
    for dtype, kind, vanished in (("fp16", torch.float16, 1), ("bf16", torch.bfloat16, 0), ("fp32", torch.float32, 0)):
        figures, found = converted(tmp_path / "iter_1.pth", tmp_path / dtype, dtype)
        assert {tensor.dtype for tensor in found.values()} == {kind}
        assert figures["underflow_share"] == vanished
        assert figures["largest_b"] == pytest.approx(2.2e-9)
        said = adapter.summary(figures)
        assert f"(largest 2.2e-09) {vanished:.1%} underflow in {dtype}" in said
        assert ("adapter.dtype=fp32 keeps them" in said) == bool(vanished)


def test_values_that_are_no_numbers_or_too_large_are_refused(tmp_path):
    for value, said in ((float("nan"), "non-finite"), (float("inf"), "non-finite"), (1e6, "overflows fp16")):
        weights = state()
        next(iter(weights.values()))[0, 0] = value
        torch.save({"state_dict": weights}, str(tmp_path / "iter_1.pth"))
        with pytest.raises(RunFailed, match=said):
            converted(tmp_path / "iter_1.pth", tmp_path / "out", "fp16")
        assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_lora_or_cut_short_is_refused(tmp_path):
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"llm.model.x.weight": torch.zeros(1)}}, str(path))
    with pytest.raises(RunFailed, match="no LoRA weights"):
        checkpoint_reader.lora_tensors(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailed, match="cut short"):
        checkpoint_reader.lora_tensors(path)


def test_modules_to_save_keep_their_names(tmp_path):
    weights = {**state(), "llm.base_model.model.output.modules_to_save.default.weight": torch.ones(4, 2)}
    torch.save({"state_dict": weights}, str(tmp_path / "iter_1.pth"))
    _, found = converted(tmp_path / "iter_1.pth", tmp_path / "out")
    assert torch.equal(found["base_model.model.output.weight"], torch.ones(4, 2))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == ["wo"]
