"""Which step and number type a recipe gets on a card."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from recipe.core import hardware, imports, measurements, settings
from recipe.core.errors import InputWrong
from recipe.inference import loading
from recipe.planning import plan
from recipe.training import failure
from recipe.xtuner import config, preset_editor, step_choice
from support.fast_step import TARGETS
from support.stand_in_machine import RTX_3090, T4


def rendered(*overrides):
    text = config.render(settings.load("coach", overrides)[1], "models/base", "dataset.jsonl", {})
    return Config.fromstring(text, file_format=".py")


def test_speed_is_named_by_the_config(monkeypatch):
    card = dict(name="NVIDIA H100", memory_mib=81559, capability="9.0")
    monkeypatch.setattr(step_choice, "gpus", lambda: [card])
    cfg = rendered()
    assert cfg.model.type == "recipe.training.fast.finetune.Finetune"
    assert sorted(cfg.model.lora.target_modules) == sorted(TARGETS)  # not the output head, as XTuner's own
    assert cfg.model.lora.lora_dropout == 0
    assert rendered("train.speed=stock").model.type.__name__ == "SupervisedFinetune"
    assert rendered("train.speed=fast", "lora.lora_dropout=0.1").model.lora.lora_dropout == 0.1
    card.update(capability="7.5")
    assert rendered().model.type.__name__ == "SupervisedFinetune"
    card.update(capability="8.6", memory_mib=81559)
    assert rendered("gpus=2").model.type.__name__ == "SupervisedFinetune"
    assert "graph" not in rendered("gpus=2", "train.speed=fast").model
    several = rendered("nodes=2", "gpus=2", "train.batch_size=8", "train.speed=fast")
    assert several.model.graph is False  # not measured across machines
    with pytest.raises(InputWrong, match=r"without ZeRO-3.*train\.speed=stock"):
        rendered("train.speed=fast", "train.method=lora", "train.deepspeed=deepspeed_zero3")
    card.update(memory_mib=8188)
    cfg = rendered()
    assert cfg.model.small is True
    assert cfg.optim_wrapper.optimizer.type == "bitsandbytes.optim.AdamW8bit"


@pytest.mark.slow
def test_the_first_row_of_nvidia_smi_is_not_the_card(machine, monkeypatch):
    """A T4 behind an RTX 3090: type, way, memory and remedies are the T4's where CUDA shows that one."""
    chosen = settings.load("coach")[1]
    planned = {"batch_size": 2, "max_length": 512, "accumulative_counts": 1, "iterations": 9, "ranks": 1}
    run = SimpleNamespace(settings=chosen)
    for visible, name, kind in (
        (None, RTX_3090[0], "bf16"), ("1", T4[0], "fp16"), ("GPU-00000001", T4[0], "fp16"),
        ("0,1", RTX_3090[0], "bf16"), ("1,0", T4[0], "fp16"),
    ):  # fmt: skip
        machine(RTX_3090, T4, visible=visible)
        assert step_choice.dtype(chosen) == kind
        assert (step_choice.way(chosen, 1024) == "stock") == (name == T4[0])
        assert measurements.estimate(planned, "")["card"] == name
        assert name in failure.explain(1, "OutOfMemoryError: x", run, {**planned, "batch_size": 64}, False)
        assert failure._memory_of_others() == {RTX_3090[0]: 24576 - 24247, T4[0]: 15360 - 15101}[name]
    assert step_choice.dtype(settings.load("coach", ["gpus=2"])[1]) == "fp16"  # the other one has no bf16


GENERATIONS = ("6.0", "6.1", "7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


@pytest.mark.parametrize("capability", GENERATIONS)
def test_each_generation_trains_evaluates_and_answers_in_the_type_that_is_named(
    machine, monkeypatch, tmp_path, capability
):
    """What XTuner's trainer makes of the file that it is given, on a card that PyTorch takes for one of this
    generation: `is_bf16_supported` is PyTorch's own, of this environment.
    """
    imports.load()
    from xtuner.tools.utils import auto_dtype_of_deepspeed_config as fill

    major, minor = map(int, capability.split("."))
    machine(("NVIDIA X", 24576, 24000, "580.1", capability))
    card = SimpleNamespace(major=major, minor=minor, total_memory=24 << 30)
    for name, answer in (
        ("is_available", True), ("current_device", 0), ("get_device_properties", card),
        ("get_device_capability", (major, minor)), ("mem_get_info", (24 << 30, 24 << 30)),
        ("_check_bf16_tensor_supported", True),  # PyTorch tries to make one: any card can
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    getattr(torch.cuda.is_bf16_supported, "cache_clear", lambda: None)()

    def trained(chosen):
        found = fill(json.loads(step_choice.deepspeed_text(chosen)))
        return [kind for kind in ("fp16", "bf16") if found[kind]["enabled"]]

    best = "bf16" if major >= 8 else "fp16"
    for asked in ("auto", "fp16", "bf16"):
        chosen = settings.load("coach", [f"train.dtype={asked}", "train.speed=stock"])[1]
        named = best if asked == "auto" else asked
        assert step_choice.dtype(chosen) == step_choice.training_dtype(chosen) == named
        assert trained(chosen) == [named]
        text = config.render(chosen, "model", "dataset", {})
        assert ("dtype='bfloat16'" in text) == ("compute_dtype=torch.bfloat16" in text) == (named == "bf16")
    shipped = settings.load("tutorial")[1]
    assert step_choice.deepspeed_text(shipped) == preset_editor.deepspeed_config("deepspeed_zero2").read_text("utf-8")
    assert trained(shipped) == [step_choice.training_dtype(shipped)]  # what the plan says
    if major < 8:
        assert torch.cuda.is_bf16_supported() == (sys.version_info >= (3, 12)), "else this shows nothing"
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert loading.choose_precision(tmp_path) == best
    assert hardware.has_bf16() == (best == "bf16")


def test_plan_says_which_type_trains(machine):
    """The tutorial names fp16, as XTuner ships it; DeepSpeed's "auto" takes bf16 on the card."""
    machine(RTX_3090)
    assert step_choice.training_dtype(settings.load("tutorial")[1]) == "bf16"
    assert step_choice.dtype(settings.load("tutorial")[1]) == "fp16"
    assert plan.dtype_warnings(settings.load("coach")[1]) == []
    assert "in bf16, not in the recipe's fp16" in plan.dtype_warnings(settings.load("tutorial")[1])[0]
