"""The train stage: the count of updates, and what is refused before it."""

import re
import shutil

import pytest
import torch

from recipe.core import settings
from recipe.core.errors import HostLacks
from recipe.core.run import Run
from recipe.planning import memory
from recipe.stages.train import _room, state
from support.command import ROOT, recipe, refused


@pytest.mark.parametrize("step", [7, torch.tensor(7.0)])
def test_updates_are_counted_as_each_optimizer_writes_them(tmp_path, step):
    """PyTorch's count in a tensor, bitsandbytes' in a number."""
    saved = {"meta": {"iter": 9, "seed": 1}, "optimizer": {"state": {0: {"step": step}, 1: {"step": step}}}}
    torch.save(saved, str(tmp_path / "iter_9.pth"))
    assert state(tmp_path / "iter_9.pth") == {"iterations": 9, "seed": 1, "updates": 7}


def test_without_a_gpu_a_gpu_recipe_is_refused_before_the_download(tmp_path, real_workbook, real_tokenizer):
    words = (f'data.files=["{real_workbook}"]', f"model.tokenizer={real_tokenizer}", "model.id=nobody/nothing")
    done = recipe("train", "coach", *words, "--output", tmp_path, PATH="/usr/bin:/bin")
    refused(done, 3, "needs an NVIDIA GPU", "just demo")


def test_too_small_a_disk_is_told_before_training(tmp_path, monkeypatch):
    run = Run("tiny", settings.load("tiny")[1], ROOT, tmp_path)
    disk = memory.disk(7_000_000_000, 7_000_000_000, deepspeed=True, copies=3)
    planned = {"iterations": 300, "memory": {"disk": disk}}
    (tmp_path / "iter_1.pth").mkdir()
    with (tmp_path / "iter_1.pth" / "part.pt").open("wb") as stream:
        stream.truncate(98_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 196_000_000_000))
    _room(run, tmp_path, planned)  # what is there already is not asked for again
    (tmp_path / "iter_1.pth" / "part.pt").unlink()
    with pytest.raises(
        HostLacks, match=r"need 294.00 GB .*, 98.00 GB each, and 196.00 GB are free.*save_total_limit=1"
    ) as caught:
        _room(run, tmp_path, planned)
    remedies = re.findall(r"train\.\w+=\S+", str(caught.value))
    assert len(remedies) == 2
    settings.load("tiny", remedies)  # both can be typed
