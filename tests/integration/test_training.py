"""Training: stopped and resumed, by every step and loop, and its failures."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import ranks, survive
from recipe.core import settings
from recipe.core.run import Run
from recipe.stages.train import make
from recipe.training import checkpoints, log, log_lines
from recipe.training import process as train
from support.command import ROOT, recipe, refused
from support.fast_step import TARGETS


def test_the_trainer_takes_it_saves_it_and_goes_on(tmp_path):
    """The demo with the fast step gives the same adapter bytes when it is resumed from the checkpoint halfway."""
    words = ("tiny", "train.speed=fast", "train.max_epochs=1", "train.save_steps=0.5", "train.evaluation_freq=0.5",
             "train.evaluation_max_new_tokens=2", "--output", tmp_path)  # fmt: skip
    sums, resumed = [], 0
    for _ in range(2):
        done = recipe("train", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        folder = tmp_path / "tiny"
        sums.append(hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest())
        figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
        assert figures["train"]["figures"]["resumed_from"] == resumed
        compared = figures["train"]["figures"]["fast_step"]["against_stock"]
        assert compared["passed"]
        assert compared["seconds"] < 0.1 * figures["train"]["seconds"]
        checkpoints = sorted(folder.glob("checkpoints/*/iter_*.pth"), key=lambda path: int(path.stem[5:]))
        checkpoints[-1].unlink()
        resumed = int(checkpoints[0].stem[5:])
    assert sums[0] == sums[1]
    assert sorted(figures["adapter"]["figures"]["targets"]) == sorted(TARGETS)


# A run of half a minute: 2 epochs of 33 packs, a checkpoint after every iteration, two kept.
SHORT = ("train.save_total_limit=2",)


WORDS = ("tiny", *survive.WORDS, *SHORT)


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
    return broken / "tiny", (wanted, survive.finish(broken, SHORT)), said, orphans


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
    words = ranks.last_of_each(*WORDS, "train.max_epochs=1", "train.save_steps=0.5")
    done = recipe("train", *words, "--output", folder.parent)
    assert done.returncode == 0, done.stderr
    last = {path.parent: path.name for path in sorted(folder.glob("checkpoints/*/iter_*"))}
    assert sorted(last.values()) == ["iter_33.pth", "iter_66.pth"]
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["resumed_from"] == 0


def test_a_trainer_that_crashes_fails_the_run_with_its_last_words(tmp_path):
    """The `xtuner` command would exit 0 here. The data have become unreadable behind the plan's back."""
    done = recipe("config", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run("tiny", settings.load("tiny", WORDS[1:])[1], ROOT, tmp_path)
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
    run = Run("tiny", settings.load("tiny", WORDS[1:])[1], ROOT, tmp_path)
    with run.open():
        run.config.write_text(run.config.read_text(encoding="utf-8").replace("max_epochs = 2", "max_epochs = 3"))
        with pytest.raises(train.RunFailed, match=r"99 iterations, .* 66"):
            make(run, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(tmp_path, monkeypatch):
    """A weight becomes NaN before the fifth iteration. No later checkpoint is made of it."""
    done = recipe("config", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    run = Run("tiny", settings.load("tiny", WORDS[1:])[1], ROOT, tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ["PYTHONPATH"]]))
    with run.open():
        text = run.config.read_text(encoding="utf-8")
        run.config.write_text(
            text.replace(
                "dict(type='recipe.training.hooks.DivergenceHook')", "dict(type='support.poison.Poison'),\n" + GUARD
            )
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
        'until [ -e "$0"/tiny/checkpoints/*/train.log ]; do sleep 0.05; done; '
        'head -c $(($(df -k --output=avail "$0" | tail -1) - 20000))k /dev/zero >"$0/other"; wait $!; code=$?; '
        'ls "$0"/tiny/checkpoints/*/; exit $code'
    )
    stage = [sys.executable, "-m", "recipe", "train", *WORDS, "--output", str(tmp_path)]
    done = subprocess.run(
        [*inside, "sh", "-c", script, str(tmp_path), *stage], cwd=str(ROOT), capture_output=True, text=True,
        env=os.environ, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    refused(done, 1, "The disk is full at iteration", "is kept")
    assert "iter_1.pth" in done.stdout
    assert ".part" not in done.stdout


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


def test_deepspeed_needs_no_network(tmp_path):
    """As in a container without one: only the loopback device is there. Calls to the card are answered by the CPU."""
    inside = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    if subprocess.run([*inside, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("this machine allows no network namespace, or has no ip (apt-get install iproute2)")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support" / "no_gpu"), os.environ["PYTHONPATH"]])
    stage = [sys.executable, "-m", "recipe", "train", "tiny", "--force", "train.deepspeed=deepspeed_zero2",
             "train.max_epochs=1", "--output", str(tmp_path)]  # fmt: skip
    done = subprocess.run(
        [*inside, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *stage], cwd=str(ROOT), capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "tiny" / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["iterations"] == figures["updates"] == 33


def test_a_moved_output_folder_goes_on(demo, tmp_path):
    """Checkpoints belong to what config, data and model hold, not to where they lie."""
    shutil.copytree(str(demo[1]), str(tmp_path / "tiny"))
    done = recipe("adapter", "tiny", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert said["train"].endswith("unchanged")
    assert not said["config"].endswith("unchanged")  # it names the data where they lie now
    assert str(tmp_path) in (tmp_path / "tiny" / "config.py").read_text(encoding="utf-8")
    before, after = (Run("tiny", settings.load("tiny")[1], ROOT, at) for at in (demo[1].parent, tmp_path))
    assert checkpoints.folder(after).name == checkpoints.folder(before).name
    made = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (before, after)]
    assert made[0] == made[1]
