"""Which cards CUDA shows to a process, and the number type that each generation of them trains in."""

import json
import os
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from test_doctor import RTX_3090, T4, nvidia_smi

from recipe.core import distributed, hardware, imports, measurements, settings
from recipe.core.errors import HostLacks, InputWrong
from recipe.inference import loading
from recipe.planning import plan
from recipe.training import failure
from recipe.training.hooks import divergence
from recipe.xtuner import config, preset_editor, step_choice

A100 = ("NVIDIA A100-SXM4-40GB", 40960, 40536, "525.60.13", "8.0")
# As nvidia-smi -L prints it since driver 470, and before (GPU, GPU instance, compute instance).
LISTED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-00000000-aaaa)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-e07a497d-1bb6-5a42-b670-1c33bf55ab6e)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-00000001-aaaa)
  MIG 7g.40gb     Device  0: (UUID: MIG-GPU-00000001-aaaa/0/0)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Function: let this machine's nvidia-smi be that of these cards, with CUDA_VISIBLE_DEVICES as given."""

    def has(*cards, visible=None, **more):
        program = tmp_path / "nvidia-smi"
        program.write_text(nvidia_smi(*cards, **more), encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return has


def cards(number):
    """Cards whose identifiers share their beginnings."""
    return [
        hardware.Card([str(n), f"GPU-{'ab' * (n % 2)}{n}", f"card {n}", "24576", "24000", "550", "Default"])
        for n in range(number)
    ]


def test_visible_cards_are_those_that_pytorch_counts(monkeypatch):
    """Random values of CUDA_VISIBLE_DEVICES, read by PyTorch's own reader of them."""
    drawn = random.Random(0)
    words = ["0", "1", "2", "3", "7", "-1", "", " 1", "2x", "+1", "x", "GPU-", "GPU-0", "GPU-a", "GPU-ab", "GPU-ab1",
             "GPU-ab3", "GPU-2", "GPU-9", " GPU-0", "MIG-1"]  # fmt: skip
    for _ in range(3000):
        here = cards(drawn.randrange(5))
        kind = [word for word in words if word.strip().startswith("GPU-")] if drawn.random() < 0.5 else words
        value = ",".join(drawn.choice(kind) for _ in range(drawn.randrange(1, 5)))
        if value.startswith("MIG-"):  # PyTorch asks the driver
            continue
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        theirs = torch.cuda._parse_visible_devices()
        if theirs and isinstance(theirs[0], str):
            theirs = torch.cuda._transform_uuid_to_ordinals(theirs, [card.uuid for card in here])
        past = next((n for n, one in enumerate(theirs) if one >= len(here)), len(theirs))
        assert [int(card.index) for card in hardware.visible(here)] == theirs[:past], value


def test_mig_shows_one_instance(machine):
    instance = {"1g.5gb": 4768, "1c.3g.20gb": 19073, "7g.40gb": 38146}  # gigabytes in MiB
    for visible, profile in (
        (None, "1g.5gb"), ("0", "1g.5gb"), ("1", "7g.40gb"), ("GPU-00000001", "7g.40gb"), ("MIG-e07a", "1c.3g.20gb"),
        ("MIG-GPU-00000001-aaaa/0/0", "7g.40gb"), ("MIG-c6d4f1ef,MIG-e07a497d", "1g.5gb"), ("MIG-77", ""), ("", ""),
    ):  # fmt: skip
        machine(A100, A100, visible=visible, mig="Enabled", listed=LISTED)
        found = hardware.visible(hardware.query()[0])
        assert [card.name for card in found] == [f"{A100[0]} MIG {profile}"] * bool(profile), visible
        assert [card.total for card in found] == [instance.get(profile)] * bool(profile)
    with pytest.raises(HostLacks, match="gpus=2: 0 can be used here"):
        distributed.check_gpu_count(settings.load("coach", ["gpus=2"])[1])
    machine(A100, mig="Enabled")  # no instance was made
    assert hardware.visible(hardware.query()[0]) == []


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
        assert measurements.estimate(planned, "", 0)["card"] == name
        assert name in failure.explain(1, "OutOfMemoryError: x", run, {**planned, "batch_size": 64}, False)
        assert failure._memory_of_others() == {RTX_3090[0]: 24576 - 24247, T4[0]: 15360 - 15101}[name]
    assert step_choice.dtype(settings.load("coach", ["gpus=2"])[1]) == "fp16"  # the other one has no bf16


def test_cuda_counts_cards_as_nvidia_smi_does():
    """Whatever the shell has it do; all that trains, answers or serves begins by importing the package."""
    for start in (["docker/runtime/host", "exec", "python", "-c"], [sys.executable, "-c"]):
        done = subprocess.run(
            [*start, "import recipe, os; print(os.environ['CUDA_DEVICE_ORDER'])"], cwd=str(ROOT), text=True,
            env={**os.environ, "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        assert done.stdout == "PCI_BUS_ID\n"
    assert "\nexport CUDA_DEVICE_ORDER=PCI_BUS_ID\n" in (ROOT / "docker/runtime/host").read_text(encoding="utf-8")


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


def test_a_deepspeed_file_of_the_users_own(tmp_path):
    """Its "auto" is filled too; what else it says holds, but not against the recipe."""
    own = tmp_path / "mine.json"
    own.write_text('{"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1, "overlap_comm": true}}')
    made = json.loads(preset_editor.deepspeed_text(str(own), "bf16"))
    assert (made["bf16"]["enabled"], made["fp16"]["enabled"]) == (True, False)
    assert made["zero_optimization"]["overlap_comm"] is True
    own.write_text('{"fp16": {"enabled": true}}')
    with pytest.raises(InputWrong, match=r"mine.json has fp16 on, the recipe trains in bf16: make them equal"):
        preset_editor.deepspeed_text(str(own), "bf16")
    for text in ("[]", "{", '{"fp16": true}'):
        own.write_text(text)
        with pytest.raises(InputWrong, match=r"mine.json is not a DeepSpeed configuration"):
            preset_editor.deepspeed_text(str(own), "fp16")


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_zero_1_and_2_do_not_sum_gradients_while_they_are_made(stage):
    name = f"deepspeed_{stage}"
    shipped = json.loads(preset_editor.deepspeed_text(name, ""))
    made = json.loads(preset_editor.deepspeed_text(name, "fp32"))
    assert shipped["zero_optimization"]["overlap_comm"] is True
    assert made["zero_optimization"]["overlap_comm"] == ("zero3" in stage)
    for found in (shipped, made):
        for part in ("fp16", "bf16"):
            del found[part]["enabled"]
        del found["zero_optimization"]["overlap_comm"]
    assert made == shipped


def test_plan_says_which_type_trains(machine):
    """The tutorial names fp16, as XTuner ships it; DeepSpeed's "auto" takes bf16 on the card."""
    machine(RTX_3090)
    assert step_choice.training_dtype(settings.load("tutorial")[1]) == "bf16"
    assert step_choice.dtype(settings.load("tutorial")[1]) == "fp16"
    assert plan.dtype_warnings(settings.load("coach")[1]) == []
    assert "in bf16, not in the recipe's fp16" in plan.dtype_warnings(settings.load("tutorial")[1])[0]


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
