"""Training: XTuner's own trainer, stopped and resumed, and its failures told."""

import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import survive
import torch
from conftest import ROOT, recipe, refused
from mmengine.config import Config

from recipe.core import measurements, settings
from recipe.core.errors import HostLacks
from recipe.core.run import Run
from recipe.planning import memory
from recipe.stages.train import _room, make, state
from recipe.training import checkpoints, failure, hooks, log, log_lines
from recipe.training import process as train
from recipe.training.fast import attention
from recipe.training.hooks import divergence

# A run of half a minute: 2 epochs of 33 packs, a checkpoint after every iteration, two kept.
SHORT = ("train.save_total_limit=2",)
WORDS = ("demo", *survive.WORDS, *SHORT)

# The tutorial's published log, one line in mmengine's form
PUBLISHED = (
    "03/17 12:00:00 - mmengine - INFO - Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  "
    "data_time: 0.0083  memory: 9380  loss: 2.0068\n"
    "03/17 12:00:00 - mmengine - INFO - Iter(train) [20/51]  lr: 1.4258e-09  eta: 0:00:39  time: 1.3772  "
    "data_time: 0.0083  memory: 10580  loss: 1.9980  grad_norm: nan\n"
)


def test_log_lines():
    steps = log_lines.parse_iterations(PUBLISHED)
    assert list(steps) == [10, 20]
    assert steps[10] == {"lr": 1.8763e-09, "loss": 2.0068, "seconds": 1.201, "memory_mb": 9380}
    assert math.isnan(steps[20]["grad_norm"])
    again = log_lines.parse_iterations(PUBLISHED + PUBLISHED.replace("2.0068", "3.5"))
    assert [step["loss"] for step in again.values()] == [3.5, 1.998]


def test_the_last_checkpoint_is_the_recorded_whole_one(tmp_path):
    assert checkpoints.last_checkpoint(tmp_path) is None
    import torch

    torch.save({"x": 1}, str(tmp_path / "iter_7.pth"))
    torch.save({"x": 1}, str(tmp_path / "iter_9.pth"))
    (tmp_path / "last_checkpoint").write_text("/elsewhere/checkpoints/iter_7.pth")
    assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    (tmp_path / "last_checkpoint").write_text("iter_9.pth")
    whole = (tmp_path / "iter_9.pth").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"damage" + whole[106:], b""):
        (tmp_path / "iter_9.pth").write_bytes(damaged)
        assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    for note in ("", ".", "..", "iter_9999.pth"):
        (tmp_path / "last_checkpoint").write_text(note)
        assert checkpoints.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    (tmp_path / "iter_7.pth").unlink()
    assert checkpoints.last_checkpoint(tmp_path) is None


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory):
    """The same training twice: without a break, and ended by SIGKILL, by SIGKILL while a checkpoint is being written
    and by SIGTERM, the same command typed again after each. (broken's folder, both adapters' sha256, what SIGTERM
    said, processes that were left.)
    """
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    draw = random.Random(0)
    wanted = survive.finish(whole, SHORT)
    orphans = []
    for moment in ("any", "writing", "SIGTERM"):
        survive.interrupt(broken, SHORT, draw, moment)
        orphans += subprocess.run(["pgrep", "-f", str(broken)], capture_output=True, text=True).stdout.split()
    said = (broken / "log").read_text(encoding="utf-8")
    return broken / "demo", (wanted, survive.finish(broken, SHORT)), said, orphans


def test_interrupted_training_gives_the_same_bytes(stopped_and_resumed):
    folder, (wanted, got), _, _ = stopped_and_resumed
    assert got == wanted
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert 0 < figures["resumed_from"] < 66
    assert figures["iterations"] == figures["updates"] == 66
    log = (ROOT / figures["log"]).read_text(encoding="utf-8")
    assert log.count("\n$ ") == 4
    starts = [float(seconds) for seconds in re.findall(r"Seconds: start ([\d.]+)", log)]
    assert figures["time_breakdown"]["start"] > 2 * min(starts), "those of all its starts"
    assert f"resumed epoch: 0, iter: {figures['resumed_from']}" in log


def test_sigterm_saves_and_ends_well(stopped_and_resumed):
    _, _, said, _ = stopped_and_resumed
    assert "Stopped as asked (SIGTERM). The checkpoint of iteration" in said
    assert "resume by typing the same command" in said
    assert "Traceback" not in said


def test_the_trainer_does_not_outlive_us(stopped_and_resumed):
    assert stopped_and_resumed[3] == []


def test_checkpoints_are_pruned_and_nothing_half_made_is_left(stopped_and_resumed):
    place = next(stopped_and_resumed[0].glob("checkpoints/*"))
    assert sorted(path.name for path in place.glob("iter_*")) == ["iter_65.pth", "iter_66.pth"]
    assert list(place.glob(".*")) == []


def test_figures_are_read_from_checkpoint_and_log(stopped_and_resumed):
    folder = stopped_and_resumed[0]
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    figures, planned = manifest["stages"]["train"]["figures"], manifest["stages"]["plan"]["figures"]
    assert figures["iterations"] == planned["iterations"]
    assert figures["updates"] == planned["updates"]
    assert figures["seed"] == planned["seed"] == 0
    trace = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["lr_trace"]
    steps = log_lines.parse_iterations((ROOT / figures["log"]).read_text(encoding="utf-8"))
    assert list(steps) == list(range(1, 67))
    for number, step in steps.items():  # plan equals what mmengine did, at every iteration
        assert f"{step['lr']:.4e}" == f"{trace[number - 1]:.4e}"


@pytest.mark.parametrize("step", [7, torch.tensor(7.0)])
def test_updates_are_counted_as_each_optimizer_writes_them(tmp_path, step):
    """PyTorch's count in a tensor, bitsandbytes' in a number."""
    saved = {"meta": {"iter": 9, "seed": 1}, "optimizer": {"state": {0: {"step": step}, 1: {"step": step}}}}
    torch.save(saved, str(tmp_path / "iter_9.pth"))
    assert state(tmp_path / "iter_9.pth") == {"iterations": 9, "seed": 1, "updates": 7}


def test_a_damaged_checkpoint_never_becomes_an_adapter(stopped_and_resumed):
    """Bytes flipped after training: training goes on from the checkpoint before, and the adapter is made again."""
    folder = stopped_and_resumed[0]
    checkpoint = next(folder.glob("checkpoints/*/iter_66.pth"))
    whole = checkpoint.read_bytes()
    middle = len(whole) // 2
    checkpoint.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    done = recipe("train", *WORDS, "--output", folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["resumed_from"] == 65
    assert figures["iterations"] == 66


def test_checkpoints_of_other_settings_are_never_mixed(stopped_and_resumed):
    folder = stopped_and_resumed[0]
    done = recipe("train", *WORDS, "train.max_epochs=1", "train.save_steps=0.5", "--output", folder.parent)
    assert done.returncode == 0, done.stderr
    last = {path.parent: path.name for path in sorted(folder.glob("checkpoints/*/iter_*"))}
    assert sorted(last.values()) == ["iter_33.pth", "iter_66.pth"]
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["resumed_from"] == 0


def test_a_trainer_that_crashes_fails_the_run_with_its_last_words(tmp_path):
    """The `xtuner` command would exit 0 here. The data have become unreadable behind the plan's back."""
    done = recipe("config", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run("demo", settings.load("demo", WORDS[1:])[1], ROOT, tmp_path)
    with run.open():
        run.config.write_text(run.config.read_text(encoding="utf-8").replace("path='json'", "path='no_such_loader'"))
        with pytest.raises(train.RunFailed) as caught:
            make(run, tmp_path)
    assert "The trainer failed" in str(caught.value)
    assert "no_such_loader" in str(caught.value)
    assert "train.log" in str(caught.value)


def test_a_trainer_that_plans_other_iterations_is_stopped_at_once(tmp_path):
    done = recipe("config", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run("demo", settings.load("demo", WORDS[1:])[1], ROOT, tmp_path)
    with run.open():
        run.config.write_text(run.config.read_text(encoding="utf-8").replace("max_epochs = 2", "max_epochs = 3"))
        with pytest.raises(train.RunFailed, match=r"99 iterations, .* 66"):
            make(run, tmp_path)


def test_without_a_gpu_a_gpu_recipe_is_refused_before_the_download(tmp_path, real_workbook, real_tokenizer):
    words = (f'data.files=["{real_workbook}"]', f"model.tokenizer={real_tokenizer}", "model.id=nobody/nothing")
    done = recipe("train", "coach", *words, "--output", tmp_path, PATH="/usr/bin:/bin")
    refused(done, 3, "needs an NVIDIA GPU", "just demo")


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(tmp_path, monkeypatch):
    """A weight becomes NaN before the fifth iteration. No later checkpoint is made of it."""
    done = recipe("config", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run("demo", settings.load("demo", WORDS[1:])[1], ROOT, tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ["PYTHONPATH"]]))
    with run.open():
        text = run.config.read_text(encoding="utf-8")
        run.config.write_text(
            text.replace("dict(type='recipe.training.hooks.DivergenceHook')", "dict(type='poison.Poison'),\n" + GUARD)
        )
        with pytest.raises(train.RunFailed) as caught:
            make(run, tmp_path)
    told = str(caught.value)
    assert told.startswith("The loss is nan at iteration 5 of 66. Likely: the learning rate is too high")
    assert "train.lr=0.001" in told
    rows = [int(n) for n in told.split("in these rows: ")[1].split(" of ")[0].split(", ")]
    assert 1 <= len(rows) <= 6
    assert set(rows) <= set(range(1, 105))
    assert checkpoints.last_checkpoint(checkpoints.folder(run)).name == "iter_4.pth"


GUARD = "dict(type='recipe.training.hooks.DivergenceHook')"


def test_a_disk_that_fills_stops_cleanly_and_keeps_the_last_checkpoint(tmp_path):
    """On a real file system, of which something else leaves room for two checkpoints once the trainer is started."""
    inside = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    if subprocess.run([*inside, "mount", "-t", "tmpfs", "x", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace")
    script = (
        'mount -t tmpfs -o size=60m x "$0"; "$@" & '
        'until [ -e "$0"/demo/checkpoints/*/train.log ]; do sleep 0.05; done; '
        'head -c $(($(df -k --output=avail "$0" | tail -1) - 20000))k /dev/zero >"$0/other"; wait $!; code=$?; '
        'ls "$0"/demo/checkpoints/*/; exit $code'
    )
    stage = [sys.executable, "-m", "recipe", "train", *WORDS, "--output", str(tmp_path)]
    done = subprocess.run(
        [*inside, "sh", "-c", script, str(tmp_path), *stage], cwd=str(ROOT), capture_output=True, text=True,
        env=os.environ, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    refused(done, 1, "The disk is full at iteration", "is kept")
    assert "iter_1.pth" in done.stdout
    assert ".part" not in done.stdout


def test_too_small_a_disk_is_told_before_training(tmp_path, monkeypatch):
    run = Run("demo", settings.load("demo")[1], ROOT, tmp_path)
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
    settings.load("demo", remedies)  # both can be typed


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_follow_each_other_without_a_pause(monkeypatch, workers):
    """The batches of XTuner's own loop in its order, the same numbers drawn; a pause only where processes load data."""
    from mmengine.dataset import DefaultSampler
    from mmengine.runner import loops
    from xtuner.engine.runner import TrainLoop as XTunersLoop

    from recipe.training import loop

    rows = torch.arange(10)

    def batches(kind):
        torch.manual_seed(5)
        slept = []
        monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=slept.append))
        data = torch.utils.data.DataLoader(
            rows, batch_size=3, sampler=DefaultSampler(rows, shuffle=True, seed=7), num_workers=workers
        )
        trainer = kind(SimpleNamespace(visualizer=None), data, max_epochs=3)
        found = [next(trainer.dataloader_iterator).tolist() for _ in range(trainer.max_iters)]
        return found, torch.rand(1).item(), slept

    (theirs, drawn, pauses), (ours, drawn_too, left) = batches(XTunersLoop), batches(loop.TrainLoop)
    assert ours == theirs
    assert len({str(theirs[at : at + 4]) for at in (0, 4, 8)}) == 3, "each epoch has an order of its own"
    assert drawn_too == drawn
    assert (pauses, left) == ([2, 2], [2, 2] * workers)


def test_the_loop_changes_no_byte(demo, tmp_path, monkeypatch):
    """XTuner's trainer, three epochs of few packs, by its own loop and by the recipe's."""
    from mmengine.runner import loops
    from xtuner.tools import train as xtuners

    text = (demo[1] / "config.py").read_text(encoding="utf-8")
    rows = (demo[1] / "dataset.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(rows[:16]), encoding="utf-8")
    text = re.sub(r"(?m)^data_path = .*$", f"data_path = '{tmp_path}/rows.jsonl'", text)
    for name, value in (("max_epochs", 3), ("save_steps", 99), ("evaluation_freq", 99), ("evaluation_inputs", [])):
        text, replaced = re.subn(rf"(?ms)^{name} = (\[.*?\]|\S+)$", f"{name} = {value}", text)
        assert replaced == 1, name
    (tmp_path / "ours.py").write_text(text, encoding="utf-8")
    (tmp_path / "theirs.py").write_text(text.replace("'recipe.training.loop.TrainLoop'", "TrainLoop"), encoding="utf-8")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=lambda _: None))
    before, strict = signal.getsignal(signal.SIGTERM), torch.are_deterministic_algorithms_enabled()
    made = {}
    try:
        for name in ("ours", "theirs"):
            monkeypatch.setattr(
                sys, "argv", ["train", str(tmp_path / f"{name}.py"), "--work-dir", str(tmp_path / name)]
            )
            xtuners.main()
            made[name] = torch.load(str(checkpoints.last_checkpoint(tmp_path / name)), weights_only=False)
    finally:
        signal.signal(signal.SIGTERM, before)
        torch.use_deterministic_algorithms(strict)
    assert made["ours"]["meta"]["iter"] == made["theirs"]["meta"]["iter"] >= 6
    for name, tensor in made["theirs"]["state_dict"].items():
        assert torch.equal(made["ours"]["state_dict"][name], tensor), name
    assert any("lora_B" in name and tensor.any() for name, tensor in made["ours"]["state_dict"].items())


def test_the_trainers_libraries_come_in_the_order_that_is_soonest():
    """What looks through the source of all frames above it is imported where there are few."""
    script = (
        "import runpy, sys; from recipe.training import entry as trainer\n"
        "def run(name, **more):\n"
        "    print(trainer.SLOW_IMPORT in sys.modules, 'mmengine' in sys.modules, name, *sys.argv[1:])\n"
        "runpy.run_module = run; trainer.main(['a', 'b'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=str(ROOT))
    assert done.stdout.split() == ["True", "False", "xtuner.tools.train", "a", "b"], done.stderr


def test_where_the_trainers_seconds_went(demo):
    entry = json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))["stages"]["train"]
    seconds = entry["figures"]["time_breakdown"]
    assert set(seconds) == {"start", "iterations", "checkpoints", "answers"}
    assert min(seconds.values()) > 0
    # Five roundings to 0.01 and the kernel's clock tick. How long the process takes to end is not told: 1 to 3 s of
    # this run, and 18 where two of them ended at once on a busy machine.
    ended = time.mktime(time.strptime(entry["finished"][:19], "%Y-%m-%dT%H:%M:%S"))
    spoke = entry["seconds"] - (ended - (ROOT / entry["figures"]["log"]).stat().st_mtime)
    assert 0.9 * spoke < sum(seconds.values()) < entry["seconds"] + 0.04
    steps = log.curve_summary(log.read_iterations((ROOT / entry["figures"]["log"]).parent))
    # mmengine's own sum of what iterations take has what lies between them too
    assert (
        seconds["iterations"] < steps["seconds"] < seconds["iterations"] + seconds["checkpoints"] + seconds["answers"]
    )


def test_the_trainers_process_knows_when_it_began():
    """Not up to a second before, as psutil has it: the kernel tells its boot in whole seconds."""
    code = "import time; from recipe.training import timing; print(time.monotonic() - timing.process_age())"
    before = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    after = time.monotonic()
    assert before - 0.02 < float(child.communicate()[0].split()[-1]) < after + 0.02


def test_seconds_of_several_starts_are_added():
    log = "\n$ a\nx - Seconds: start 2.00, iterations 1.50\nx - Seconds: start 2.00, iterations 9.25\n\n$ b\nkilled\n"
    assert log_lines.time_breakdown(f"{log}\n$ c\nx - Seconds: start 3.50, iterations 1.00\n") == {
        "start": 5.5,
        "iterations": 10.25,
    }
    assert log_lines.time_breakdown(PUBLISHED) == {}


def process(*words):
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_trainer_that_says_nothing_is_ended(tmp_path):
    child = process("sh", "-c", "echo one; sleep 60")
    with (tmp_path / "log").open("w") as log, pytest.raises(train.RunFailed) as caught:
        list(train._read_lines(child, log, 1.0, []))
    assert "said nothing for 0.0167 minutes" in str(caught.value)
    assert child.wait() == -9
    assert (tmp_path / "log").read_text() == "one\n"


def test_a_trainer_that_does_not_stop_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "STOP_TIMEOUT", 1)
    child = process("sh", "-c", "trap '' TERM; echo one; sleep 60 & wait; sleep 60")
    with (tmp_path / "log").open("w") as log:
        list(train._read_lines(child, log, 100.0, [1.0]))
    assert child.wait() == -9


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
        "lost to this process (Failed to initialize",
    ),
    (1, "RuntimeError: CUDA error: unspecified launch failure\n", False, "lost to this process"),
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
        "takes (MissingCUDAException: CUDA",
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
    assert ("a smaller train.batch_size" in other) == fits


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Function: what training says when this shell script is the trainer; the words that end the run."""
    run = Run("demo", settings.load("demo")[1], ROOT, tmp_path)
    (run.folder / "checkpoints").mkdir(parents=True)

    def train_with(script):
        monkeypatch.setattr(train, "command", lambda *_: ["sh", "-c", script])
        with pytest.raises(train.RunFailed) as caught:
            train.run_trainer(run, run.folder, run.folder / "train.log", None, {**PLANNED, **WHOLE})
        return str(caught.value)

    return train_with


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
    torch.save({"x": 1}, str(tmp_path / "demo" / "iter_7.pth"))
    (tmp_path / "demo" / "iter_9.pth").write_bytes(b"half of it")
    kept = "The checkpoint of iteration 7 is kept: the same command resumes the run."
    assert stand_in("exit 1").endswith(kept)
    lines = train._read_lines
    monkeypatch.setattr(train, "_read_lines", lambda child, copy, patience, asked: lines(child, copy, 0.1, asked))
    text = stand_in("sleep 60")
    assert "has said nothing" in text
    assert text.endswith(kept)
    (tmp_path / "demo" / "iter_7.pth").unlink()
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


@pytest.mark.parametrize(("every", "asked"), [(2, [0, 2, 4, 6]), (4, [0, 4, 6]), (9, [0, 6])])
def test_the_questions_are_asked_once_at_the_end(every, asked):
    """By XTuner's own hook, in mmengine's order of hooks, of a training of six iterations."""
    from xtuner.engine.hooks import EvaluateChatHook

    evaluation, made = EvaluateChatHook.__new__(EvaluateChatHook), []
    evaluation.every_n_iters = every
    runner = SimpleNamespace(
        hooks=[evaluation, hooks.DedupeEvalHook()],
        iter=0,
        cfg=Config(dict(default_hooks=dict(checkpoint=dict(interval=99)))),
        logger=SimpleNamespace(info=lambda _: None),
    )
    evaluation._generate_samples = lambda runner, **_: made.append(runner.iter)
    for hook in runner.hooks:
        hook.before_train(runner)
    for runner.iter in range(6):
        before = len(made)
        evaluation.after_train_iter(runner, 0)
        made[before:] = [runner.iter + 1] * (len(made) - before)
    runner.iter = 6
    evaluation.after_train(runner)
    assert made == asked


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


def test_the_guard_sees_what_deepspeeds_own_fp16_skips(tmp_path):
    """ZeRO-2's optimizer on a CPU (tests/no_gpu answers for the card): 2^16 is too large a scale at first, which is no
    fault; from step 30 on the gradient is inf. DeepSpeed would end the run where its scale can get no smaller than 1:
    it is told before, in our words.
    """
    done = subprocess.run(
        [sys.executable, "-c", FP16, str(tmp_path)], capture_output=True, text=True, cwd=str(ROOT),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "no_gpu"), str(ROOT)]),
             "OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = done.stdout[done.stdout.index("told ") :]
    step, skipped = map(int, told.split()[1:3])  # the latter by DeepSpeed's own count, those of the beginning too
    assert (step, skipped) == (44, 17)
    assert "The gradient is inf in 15 updates in a row at iteration 45 of 99" in told


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
    assert text.startswith(f"The GPU's memory does not hold {batch} × {length} tokens")
    assert told in text
    assert measurements.memory_mib(128, card[0]) > 8192 or "fits" in text
    monkeypatch.setattr(failure, "_memory_of_others", lambda: card[1] - 1000)
    held = failure.explain(1, OOM, run, {**PLANNED, "batch_size": batch, "max_length": length}, False)
    assert f"Other processes hold {card[1] - 1000} MiB of it" in held


def test_deepspeed_needs_no_network(tmp_path):
    """As in a container without one: only the loopback device is there. Calls to the card are answered by the CPU."""
    inside = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    if subprocess.run([*inside, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("this machine allows no network namespace, or has no ip (apt-get install iproute2)")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "no_gpu"), os.environ["PYTHONPATH"]])
    stage = [sys.executable, "-m", "recipe", "train", "demo", "--force", "train.deepspeed=deepspeed_zero2",
             "train.max_epochs=1", "--output", str(tmp_path)]  # fmt: skip
    done = subprocess.run(
        [*inside, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *stage], cwd=str(ROOT), capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "demo" / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["iterations"] == figures["updates"] == 33


def test_a_moved_output_folder_goes_on(demo, tmp_path):
    """Checkpoints belong to what config, data and model hold, not to where they lie."""
    shutil.copytree(str(demo[1]), str(tmp_path / "demo"))
    done = recipe("adapter", "demo", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert said["train"].endswith("unchanged")
    assert not said["config"].endswith("unchanged")  # it names the data where they lie now
    assert str(tmp_path) in (tmp_path / "demo" / "config.py").read_text(encoding="utf-8")
    before, after = (Run("demo", settings.load("demo")[1], ROOT, at) for at in (demo[1].parent, tmp_path))
    assert checkpoints.folder(after).name == checkpoints.folder(before).name
    made = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (before, after)]
    assert made[0] == made[1]


def test_memory_is_kept_between_iterations_where_a_cpu_trains(monkeypatch):
    run = Run("demo", settings.load("demo")[1], ROOT, ROOT / "output")
    monkeypatch.setattr(train, "gpus", lambda: [])
    assert train.MALLOC_SETTINGS.items() <= train.environment(run).items()
    monkeypatch.setattr(train, "gpus", lambda: [{"name": "H100"}])
    assert not train.MALLOC_SETTINGS.keys() & train.environment(run).keys()


@pytest.mark.parametrize("strict", [True, False])
def test_iterations_repeat_and_what_lies_between_may_not(monkeypatch, strict):
    """As PyTorch itself says; with attention's plain formula where it cannot be told to repeat the others."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.backends.cuda.enable_flash_sdp(True)  # as PyTorch begins, whatever this process did before
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    monkeypatch.setattr(attention, "IS_DETERMINISTIC", strict)
    monkeypatch.setattr(attention, "VERSION", (2, 5) if strict else (2, 4))
    runner = SimpleNamespace(seed=3, iter=0)
    try:
        hooks.DeterminismHook().before_run(runner)
        hooks.DeterminismHook().before_train_iter(runner, 0)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() != strict
        assert torch.backends.cuda.flash_sdp_enabled() == torch.backends.cuda.mem_efficient_sdp_enabled() == strict
        hooks.RelaxDeterminismHook().after_train_iter(runner, 0)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(was)
        torch.backends.cuda.enable_flash_sdp(True)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
