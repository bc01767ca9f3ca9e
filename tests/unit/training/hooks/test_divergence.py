"""A loss or gradient that diverges, and updates that are skipped."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from recipe.core import translation
from recipe.training import failure, hooks
from recipe.training.hooks import divergence
from support.command import ROOT


def test_the_guard_asks_the_card(machine, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # by emulation
    for capability, told in (((7, 5), "no bf16"), ((8, 0), "has bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, capability=capability: capability)
        runner = SimpleNamespace(
            iter=0, max_iters=1, hooks=[], model=None, cfg=SimpleNamespace(lr=1, get=lambda *_: ""),
            optim_wrapper=SimpleNamespace(get_lr=lambda: {"lr": [1]}),
        )  # fmt: skip
        monkeypatch.setattr(divergence, "compute_dtype", lambda _: "fp16")
        assert told in divergence._message(runner, "x", None)


class Watched:
    """What hooks.DivergenceHook looks at of a trainer, without one."""

    def __init__(self, dtype=None):
        self.iter, self.max_iters, self.hooks, self.model = 0, 66, [], None
        self.cfg = Config(dict(lr=4e-3, optim_wrapper=dict(dtype=dtype)))
        self.norm = 1.0
        self.message_hub = SimpleNamespace(log_scalars={"train/grad_norm": SimpleNamespace(current=lambda: self.norm)})
        self.optim_wrapper = SimpleNamespace(_accumulative_counts=1, get_lr=lambda: {"lr": [2e-3]})
        if dtype:
            self.optim_wrapper.loss_scaler = None
        self.guard = hooks.DivergenceHook()

    def goes_on(self, losses, norms):
        for loss, self.norm in zip(losses, norms):
            self.guard.after_train_iter(self, 0, None, {"loss": torch.tensor(loss, dtype=torch.float64)})
            self.iter += 1


def test_a_loss_that_jumps_and_a_gradient_that_explodes_stop_the_run():
    usual = [2.0, 2.2, 1.9, 2.1, 2.0, 1.8, 2.0, 2.1, 1.9, 2.0, 2.0, 2.1]
    for losses, norms, told in (
        ([7.0], [1.0], "The loss jumped to 7 from 2 at iteration 13 of 66."),
        ([float("inf")], [1.0], "The loss is inf at iteration 13 of 66."),
        ([2.0], [5000.0], "The gradient exploded: its norm is 5000, was 1 at iteration 13 of 66."),
        ([2.0], [float("nan")], "The gradient is nan at iteration 13 of 66."),
    ):
        trainer = Watched()
        trainer.goes_on(usual, [1.0] * len(usual))
        with pytest.raises(failure.TrainingError) as caught:
            trainer.goes_on(losses, norms)
        assert str(caught.value).startswith(f"{told} Likely: the learning rate is too high (0.002 now): train.lr=0.001")
    trainer = Watched()
    trainer.goes_on([*usual, 3.9, 5.9], [1.0] * 12 + [900.0, 3.0])  # rough, but within what happens
    assert trainer.guard.losses[-1] == 5.9


def test_the_log_is_english_and_the_user_reads_chinese(monkeypatch):
    """With every cause: fp16, the learning rate, and a row."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    trainer = Watched("float16")
    with translation.use("zh"):
        with pytest.raises(failure.TrainingError) as caught:
            trainer.goes_on([float("nan")], [1.0])
        logged = f"recipe.training.failure.TrainingError: {caught.value}\n"
        assert logged.isascii()
        assert failure.explain(1, logged, None, {}, False) == (
            "第 1 次迭代（共 66 次）：损失为 nan。可能的原因："
            "fp16 超过 65504 就会溢出，这张显卡支持 bf16：train.dtype=bf16；"
            "或者学习率太高（现在是 0.002）：train.lr=0.001；或者有一行的内容异常。"
            "想不管它继续训练，用 train.guard=false。"
        )


def test_fp16_is_named_as_the_likely_cause(monkeypatch):
    """Its loss scaling may skip some updates: only when it skips them all is something wrong."""
    skips = [float("inf")] * divergence.MAX_SKIPPED_UPDATES
    for has_bf16, told in ((True, "and this card has bf16: train.dtype=bf16"), (False, "and this card has no bf16")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda has=has_bf16: (8, 0) if has else (7, 5))
        trainer = Watched("float16")
        trainer.goes_on([2.0] * 20, skips)
        trainer.goes_on([2.0], [1.0])
        with pytest.raises(
            failure.TrainingError, match="The gradient is inf in 21 updates in a row at iteration 42"
        ) as caught:
            trainer.goes_on([2.0] * 21, [*skips, float("inf")])
        assert f"fp16 overflows above 65504, {told}" in str(caught.value)
    with pytest.raises(failure.TrainingError, match="The gradient is inf at iteration 1 of 66"):
        Watched("bfloat16").goes_on([2.0], [float("inf")])


class Engine:
    """What Guard asks of DeepSpeed's."""

    def __init__(self):
        self.optimizer, self.norm = SimpleNamespace(overflow=False), 0.0

    def gradient_accumulation_steps(self):
        return 1

    def get_global_grad_norm(self):
        return self.norm

    def fp16_enabled(self):
        return True


def test_an_update_that_deepspeed_skips_is_seen():
    """Its norm is then 0, or that of the update before: neither counts, and too many in a row end the run."""
    trainer = Watched("float16")
    trainer.model = SimpleNamespace(model=Engine())
    engine = trainer.model.model

    def goes_on(steps, norm, overflow):
        engine.norm, engine.optimizer.overflow = norm, overflow
        trainer.goes_on([2.0] * steps, [norm] * steps)

    goes_on(divergence.MAX_SKIPPED_UPDATES, 0.0, True)
    goes_on(12, 1.5, False)  # no explosion: zeros are no norms
    assert trainer.guard.norms == [1.5] * 12
    with pytest.raises(failure.TrainingError, match="The gradient is inf in 21 updates in a row at iteration 53"):
        goes_on(60, 1.5, True)


FP16 = """
import math, sys, types
import torch, deepspeed
from mmengine.config import Config
from deepspeed.accelerator import get_accelerator
from recipe.training import failure, hooks

type(get_accelerator()).is_fp16_supported = lambda self: True  # the few operations here are, on every CPU
deepspeed.init_distributed("gloo", False, init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x):
        return (self.weight * x).sum()

model = Model()
engine, *_ = deepspeed.initialize(
    model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
    config={"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0, "zero_allow_untested_optimizer": True,
            "fp16": {"enabled": True, "initial_scale_power": 16},
            "zero_optimization": {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}},
)
runner = types.SimpleNamespace(
    iter=0, max_iters=99, hooks=[], model=types.SimpleNamespace(model=engine), cfg=Config(dict(lr=1e-3)),
    optim_wrapper=types.SimpleNamespace(get_lr=lambda: {"lr": [1e-3]}),
)
guard = hooks.DivergenceHook()
for step in range(99):
    x = torch.full((8,), math.inf if step >= 30 else 1.0, dtype=torch.half)
    engine.backward(engine(x))
    engine.step()
    try:
        guard.after_train_iter(runner, 0, None, {"loss": torch.tensor(2.0)})
    except failure.TrainingError as fault:
        print("told", step, engine.skipped_steps, fault)
        break
    runner.iter += 1
"""


@pytest.mark.slow
def test_the_guard_sees_what_deepspeeds_own_fp16_skips(tmp_path):
    """ZeRO-2's optimizer on a CPU (tests/support/no_gpu stands in for the card). The first scale, 2^16, is too large,
    which is not an error; from step 30 on the gradient is inf. DeepSpeed would fail when its scale cannot fall below
    1: the hook stops the run before that, with its own message.
    """
    done = subprocess.run(
        [sys.executable, "-c", FP16, str(tmp_path)], capture_output=True, text=True, cwd=str(ROOT),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support" / "no_gpu"), str(ROOT)]),
             "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout[done.stdout.index("told ") :]
    step, skipped = map(int, told.split()[1:3])  # the latter by DeepSpeed's own count, those of the beginning too
    assert (step, skipped) == (44, 17)
    assert "The gradient is inf in 15 updates in a row at iteration 45 of 99" in told
