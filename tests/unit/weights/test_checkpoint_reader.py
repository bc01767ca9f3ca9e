"""Checkpoints of one file and of DeepSpeed's folders."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.bench_adapter import write_zero
from recipe.core.errors import RunFailed
from recipe.weights import checkpoint_reader
from support.checkpoints import converted, state
from support.command import ROOT


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


@pytest.mark.slow
def test_a_folder_that_deepspeed_itself_wrote(tmp_path):
    """Trained one step by DeepSpeed's engine, ZeRO-2, without a GPU (tests/support/no_gpu answers for one)."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'support' / 'no_gpu'}:{ROOT}", "OMP_NUM_THREADS": "1",
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
    with pytest.raises(RunFailed, match=r"saved by 3 processes but has 2 \*_optim_states.pt"):
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


def test_a_checkpoint_without_lora_or_cut_short_is_refused(tmp_path):
    path = tmp_path / "iter_1.pth"
    torch.save({"state_dict": {"llm.model.x.weight": torch.zeros(1)}}, str(path))
    with pytest.raises(RunFailed, match="no LoRA weights"):
        checkpoint_reader.lora_tensors(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailed, match="cut short"):
        checkpoint_reader.lora_tensors(path)


def test_rows_of_a_weight_that_lies_in_parts(tmp_path):
    weights = {"llm.a": torch.randn(7, 5), "llm.b": torch.randn(11), "llm.c": torch.randn(3, 2)}
    write_zero(tmp_path / "iter_1.pth", [weights], 2, 4)
    held = checkpoint_reader.full_weights(tmp_path / "iter_1.pth")
    for name, tensor in weights.items():
        one = held[name[len("llm.") :]]
        assert (one.shape, one.numel) == (tuple(tensor.shape), tensor.numel())
        for first, last in ((0, None), (0, 1), (1, 3), (2, 3)):
            assert torch.equal(one.read(first, last), tensor[first:last])
