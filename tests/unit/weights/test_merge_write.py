"""Written shards: threads, interruptions, PyTorch's form."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from recipe.core import imports
from recipe.weights import merge
from support.command import ROOT
from support.lora_merge import assert_one_rounding, exactly, interrupt, join, weights


@pytest.mark.slow
def test_bin_bases_and_bin_shards(base, adapter, merged, tmp_path):
    """PyTorch's form in and out, as the tutorial writes it."""
    imports.load()
    from transformers import AutoModelForCausalLM

    shutil.copytree(str(base), str(tmp_path / "bin"), ignore=shutil.ignore_patterns("*.safetensors*"))
    model = AutoModelForCausalLM.from_pretrained(str(base), trust_remote_code=True, torch_dtype=torch.float16)
    model.save_pretrained(str(tmp_path / "bin"), safe_serialization=False, max_shard_size="130KB")
    assert len(list((tmp_path / "bin").glob("*.bin"))) > 2
    figures = join(tmp_path / "bin", [adapter], tmp_path / "out", safe=False)
    assert figures["shards"] == len(list((tmp_path / "out").glob("pytorch_model-*-of-*.bin")))
    assert not list((tmp_path / "out").glob("*safetensors*"))
    theirs = weights(merged[0])
    for path in (tmp_path / "out").glob("*.bin"):
        for name, tensor in torch.load(str(path)).items():
            assert torch.equal(tensor, theirs.pop(name)), name
    assert not theirs
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), trust_remote_code=True, torch_dtype="auto")
    assert all(torch.equal(t, weights(merged[0])[n]) for n, t in again.state_dict().items())
    with merge.check_loads(tmp_path / "bin") as check:
        assert check(tmp_path / "out", ["<|im_end|>"])["stops"] == merged[1]["load_check"]["stops"]


@pytest.mark.parametrize("safe", [True, False])
def test_an_interrupted_merge_goes_on_from_its_finished_shards(base, adapter, merged, tmp_path, monkeypatch, safe):
    part = tmp_path / ".out.part"
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})  # tensors one after the other
        interrupt(patch, 20, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            join(base, [adapter], tmp_path / "out", safe=safe)
    assert not (tmp_path / "out").exists()
    assert not (part / "config.json").exists()  # nobody takes it for a model
    kept = json.loads((part / "progress.json").read_text())["shards"]
    assert 1 <= len(kept) < merged[1]["shards"]
    damaged = part / sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    figures = join(base, [adapter], tmp_path / "out", safe=safe)
    assert figures["shards_reused"] == len(kept) - 1
    assert figures["kinds"] == merged[1]["kinds"]
    ours, theirs = weights(tmp_path / "out"), weights(merged[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not part.exists()


def test_shards_written_at_once_are_the_same(base, adapter, merged, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert join(base, [adapter], tmp_path / "out")["kinds"] == merged[1]["kinds"]
    ours, theirs = (
        {p.name: p.read_bytes() for p in place.glob("*.safetensors")} for place in (tmp_path / "out", merged[0])
    )
    assert ours == theirs


def test_an_error_in_any_thread_is_the_one_that_is_told(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    interrupt(monkeypatch, 12, OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        join(base, [adapter], tmp_path / "out")


def test_a_half_made_folder_of_another_merge_is_not_used(base, adapter, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        interrupt(patch, 20, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            join(base, [adapter], tmp_path / "out")
    assert (tmp_path / ".out.part" / "progress.json").exists()
    figures = join(base, [(adapter, 0.5)], tmp_path / "out")
    assert figures["shards_reused"] == 0
    assert_one_rounding(weights(tmp_path / "out"), *exactly(base, [(adapter, 0.5)]))


@pytest.mark.slow
def test_a_merge_leaves_the_number_of_threads(base, adapter, tmp_path):
    """Its workers use one each, which must not become the number of a process that has not asked for it before."""
    code = (
        "import sys; from pathlib import Path; from support.lora_merge import join\n"
        "join(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]))\n"
        "import torch; print(torch.get_num_threads())"
    )
    known = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{os.environ['PYTHONPATH']}"}
    words = [str(base), str(adapter), str(tmp_path / "out")]
    counts = [
        subprocess.run(
            [sys.executable, "-c", code, *words], env=known, cwd=str(ROOT), capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        for code in (code, "import torch; print(torch.get_num_threads())")
    ]
    assert counts[0] == counts[1]
