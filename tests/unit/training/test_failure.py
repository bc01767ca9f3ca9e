"""Causes of a failed training, by the trainer's last lines."""

import os
import re
import shlex
from types import SimpleNamespace

import pytest
import torch

from recipe.core import measurements, settings, translation
from recipe.core.run import Run
from recipe.training import failure
from recipe.training import process as train
from support.command import ROOT

PLANNED = {"batch_size": 2, "max_length": 512, "accumulative_counts": 1}


OOM = "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 7.79 GiB total capacity)"


TORCHRUN = "torch.distributed.elastic.multiprocessing.api:failed "


ENDS = [
    (1, "x\nrecipe.failure.TrainingError: The loss is nan at iteration 3.\n", False, "The loss is nan at iteration 3."),
    (1, "[rank1]: recipe.training.failure.TrainingError: The loss is inf.\n", False, "The loss is inf."),
    (
        1,
        "RuntimeError: Failed to initialize NVML: Unknown Error\n",
        False,
        "lost its GPU (Failed to initialize",
    ),
    (1, "RuntimeError: CUDA error: unspecified launch failure\n", False, "lost its GPU"),
    (1, "[ 1.2] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off\n", False, "Xid 79: the GPU has fallen off"),
    (
        1,
        "[E] Watchdog caught collective operation timeout: WorkNCCL(…) ran for 1800001\n",
        False,
        "waited for each other",
    ),
    (1, "OSError: [Errno 28] No space left on device\n", False, "The disk is full"),
    (
        1,
        "RuntimeError: cumsum_cuda_kernel does not have a deterministic implementation, but you set\n",
        False,
        "cumsum_cuda_kernel on this GPU. train.deterministic=false trains without",
    ),
    (1, "UserWarning: x does not have a deterministic implementation\nValueError: y\n", False, "failed: ValueError: y"),
    (
        1,
        f"x.py:1: UserWarning\nERROR:{TORCHRUN}(exitcode: -9) local_rank: 1 (pid: 7)\n",
        True,
        "Rank 1 of this machine was",
    ),
    (
        1,
        f"RuntimeError: x [1] Connection closed by peer\nERROR:{TORCHRUN}(exitcode: -9) local_rank: 0",
        False,
        "Rank 0",
    ),
    (1, f"ValueError: no\nERROR:{TORCHRUN}(exitcode: 1) local_rank: 0\nx.ChildFailedError:\n", False, "ValueError: no"),
    (1, "RuntimeError: [gloo/tcp] Connection closed by peer [10.0.0.2]:9\n", False, "The connection to another rank"),
    (
        1,
        "x.builder.MissingCUDAException: CUDA_HOME does not exist, unable to\n",
        False,
        "needs (MissingCUDAException: CUDA",
    ),
    (1, "in _share_and_gather\n  data = store.get(x)\nRuntimeError: Socket Timeout\n", False, "MASTER_ADDR"),
    (-9, "Iter(train)\n", True, "out of memory"),
    (-9, "Iter(train)\n", False, "killed from outside"),
    (-11, "", False, "SIGSEGV"),
    (1, "Traceback …\nFileNotFoundError: no such file: x\n", False, "FileNotFoundError: no such file: x"),
    (7, "nothing\n", False, "exit code 7"),
]


# What else the drivers and libraries say, and what is told: see failure.KNOWN. `fits`: with the overrides that do.
OTHER_WORDS = [
    ("RuntimeError: CUDA error: out of memory\nCUDA kernel errors might be", "(CUDA error: out of memory)", True),
    ("Error out of memory at line 380 in file /src/csrc/ops.cu\n", "(Error out of memory at line)", True),
    ("torch.distributed.DistBackendError: NCCL error …\nLast error:\nCuda failure 'out of memory'\n",
     "(Cuda failure 'out of memory')", True),
    ("n1:7 [0] NCCL WARN Cuda failure 2 'out of memory'\nRuntimeError: NCCL\n", "(Cuda failure 2 'out of", True),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`\n",
     "(CUBLAS_STATUS_NOT_INITIALIZED)", True),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`\n", "ALLOC_FAILED", True),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device\n", "VARIANT=cu13", False),
    ("Error no kernel image is available for execution on the device at line 167 in file /src/csrc/ops.cu\n",
     "just doctor names the variant", False),
    ("torch.AcceleratorError: CUDA error: operation not permitted when stream is capturing\n", "train.speed=stock",
     False),
    ("RuntimeError: CUDA error: operation failed due to a previous error during capture\nSearch for "
     "`cudaErrorStreamCaptureInvalidated' in\n", "could not be recorded as a CUDA graph", False),
    ("RuntimeError: CUDA error: cudaErrorStreamCaptureInvalidated\n", "train.speed=stock", False),
    ("RuntimeError: CUDA error: operation would make the legacy stream depend on a capturing blocking stream\n",
     "train.speed=stock", False),
    # Memory that ends while a step is recorded is the cause, not what it does to the recording.
    (OOM + "\nRuntimeError: operation failed due to a previous error during capture\n", "CUDA out of", True),
]  # fmt: skip


@pytest.mark.parametrize(("said", "told", "fits"), OTHER_WORDS)
def test_other_words_for_the_same_are_known(monkeypatch, said, told, fits):
    card = {"name": "NVIDIA GeForce RTX 3090", "memory_mib": 12288, "capability": "8.6"}
    monkeypatch.setattr(failure, "gpus", lambda: [card])
    monkeypatch.setattr(failure, "_memory_of_others", lambda: 0)
    run = SimpleNamespace(settings=settings.load("coach")[1])
    text = failure.explain(1, f"Iter(train)\n{said}", run, {**PLANNED, "batch_size": 4}, False)
    assert told in text
    assert ("train.batch_size=2 train.accumulative_counts=2" in text) == fits
    other = failure.explain(1, said, run, {}, False)  # of another machine, which has no plan
    assert told in other
    assert ("lower train.batch_size" in other) == fits


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Function: what training says when this shell script is the trainer; the words that end the run."""
    run = Run("tiny", settings.load("tiny")[1], ROOT, tmp_path)
    (run.folder / "checkpoints").mkdir(parents=True)

    def train_with(script):
        monkeypatch.setattr(train, "command", lambda *_: ["sh", "-c", script])
        with pytest.raises(train.RunFailed) as caught:
            train.run_trainer(run, run.folder, run.folder / "train.log", None, {**PLANNED, **WHOLE})
        return str(caught.value)

    return train_with


NOT_TRANSLATED = [ends for ends in ENDS if "The loss is" not in ends[1]]


@pytest.mark.parametrize(("code", "said", "killed", "told"), NOT_TRANSLATED)
def test_each_end_is_named_in_chinese(monkeypatch, code, said, killed, told):
    monkeypatch.setattr(failure, "gpus", lambda: [])
    run = SimpleNamespace(settings=SimpleNamespace(nodes=2))
    with translation.use("zh"):
        text = failure.explain(code, said, run, {}, killed)
    assert re.search("[\u4e00-\u9fff]", text), text
    assert text.endswith("。")
    assert " 。" not in text


WHOLE = {"seed": 0, "iterations": 66, "tokens_kept": 8448, "iterations_per_epoch": 33}


@pytest.mark.parametrize(("code", "said", "killed", "told"), ENDS)
def test_each_end_is_named(stand_in, monkeypatch, code, said, killed, told):
    kills = iter([3, 3 + killed])
    monkeypatch.setattr(failure, "oom_kills", lambda: next(kills))
    end = f"kill {code} $$" if code < 0 else f"exit {code}"
    text = stand_in(f"printf '%s' {shlex.quote(said)}; {end}")
    assert told in text
    assert "There is no checkpoint yet" in text


def test_the_end_names_the_checkpoint_that_is_there(stand_in, monkeypatch, tmp_path):
    """Only one that can be read; of a trainer that hangs too."""
    torch.save({"x": 1}, str(tmp_path / "tiny" / "iter_7.pth"))
    (tmp_path / "tiny" / "iter_9.pth").write_bytes(b"half of it")
    kept = "The checkpoint of iteration 7 is kept: the same command resumes the run."
    assert stand_in("exit 1").endswith(kept)
    lines = train._read_lines
    monkeypatch.setattr(train, "_read_lines", lambda child, copy, patience, asked: lines(child, copy, 0.1, asked))
    text = stand_in("sleep 60")
    assert "printed nothing" in text
    assert text.endswith(kept)
    (tmp_path / "tiny" / "iter_7.pth").unlink()
    assert "is kept" not in stand_in("sleep 60")


def test_a_fault_that_only_the_kernel_tells_of_is_named(stand_in, tmp_path, monkeypatch):
    dmesg = tmp_path / "dmesg"
    old = "[1.0] NVRM: Xid (PCI:0000:01:00): 31, pid=7, name=python"
    dmesg.write_text(f"#!/bin/sh\necho '{old}'; cat {tmp_path}/new\n")
    dmesg.chmod(0o755)
    (tmp_path / "new").write_text("[2.0] usb 1-1: new device\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    line = "[9.0] NVRM: Xid (PCI:0000:01:00): 48, pid=9, name=python"
    text = stand_in(
        f"echo 'RuntimeError: CUDA error: an illegal memory access'; echo '{line}' >>{tmp_path}/new; exit 1"
    )
    assert text.startswith("The driver reported Xid 48: a double-bit ECC error: the card's memory is faulty.")
    assert "Xid" not in stand_in("echo 'RuntimeError: something else'; exit 1"), "what was there before is not new"


@pytest.mark.parametrize(
    ("card", "batch", "length", "told"),
    [
        (("NVIDIA H100", 81559), 64, 2048, "train.batch_size=32 train.accumulative_counts=2"),
        (("NVIDIA GeForce RTX 3090", 12288), 4, 512, "train.batch_size=2 train.accumulative_counts=2"),
        (("NVIDIA GeForce RTX 3090", 12288), 1, 4096, "train.max_length=2048"),
        (("NVIDIA GeForce RTX 2080", 8192), 2, 512, "train.speed=small"),
        (("NVIDIA GeForce GTX 1060", 6144), 2, 512, "no setting of the 7B model fits"),
    ],
)
def test_out_of_memory_offers_what_fits_by_measurement(monkeypatch, card, batch, length, told):
    monkeypatch.setattr(failure, "gpus", lambda: [{"name": card[0], "memory_mib": card[1]}])
    monkeypatch.setattr(failure, "_memory_of_others", lambda: 0)
    run = SimpleNamespace(settings=settings.load("coach")[1])
    several = failure.explain(1, OOM, run, {**PLANNED, "batch_size": 64, "max_length": 2048, "ranks": 2}, False)
    assert "train.accumulative_counts=4" in several or card[0] != "NVIDIA H100"
    text = failure.explain(1, OOM, run, {**PLANNED, "batch_size": batch, "max_length": length}, False)
    assert text.startswith(f"{batch} × {length} tokens per iteration do not fit")
    assert told in text
    assert measurements.memory_mib(128, card[0]) > 8192 or "fits" in text
    monkeypatch.setattr(failure, "_memory_of_others", lambda: card[1] - 1000)
    held = failure.explain(1, OOM, run, {**PLANNED, "batch_size": batch, "max_length": length}, False)
    assert f"Other processes use {card[1] - 1000} MiB of it" in held
