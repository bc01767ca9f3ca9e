"""Which GPUs CUDA shows to a process."""

import os
import random
import subprocess
import sys

import pytest
import torch

from recipe.core import distributed, hardware, settings
from recipe.core.errors import HostLacks
from support.command import ROOT

A100 = ("NVIDIA A100-SXM4-40GB", 40960, 40536, "525.60.13", "8.0")


# As nvidia-smi -L prints it since driver 470, and before (GPU, GPU instance, compute instance).
LISTED = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-00000000-aaaa)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1c.3g.20gb  Device  1: (UUID: MIG-e07a497d-1bb6-5a42-b670-1c33bf55ab6e)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-00000001-aaaa)
  MIG 7g.40gb     Device  0: (UUID: MIG-GPU-00000001-aaaa/0/0)
"""


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


def test_cuda_counts_cards_as_nvidia_smi_does():
    """Whatever the shell has it do; all that trains, answers or serves begins by importing the package."""
    for start in (["docker/runtime/host", "exec", "python", "-c"], [sys.executable, "-c"]):
        done = subprocess.run(
            [*start, "import recipe, os; print(os.environ['CUDA_DEVICE_ORDER'])"], cwd=str(ROOT), text=True,
            env={**os.environ, "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        assert done.stdout == "PCI_BUS_ID\n"
    assert "\nexport CUDA_DEVICE_ORDER=PCI_BUS_ID\n" in (ROOT / "docker/runtime/host").read_text(encoding="utf-8")
