"""Training: XTuner's own trainer, stopped and resumed, and its failures told."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, recipe, refused

from recipe import train

# A run of half a minute: 2 epochs of 36 packs, a checkpoint every 18 iterations.
SHORT = ("demo", "train.max_epochs=2", "train.save_steps=0.25", "train.evaluation_max_new_tokens=2")

# The tutorial's published log, one line in mmengine's form
PUBLISHED = (
    "03/17 12:00:00 - mmengine - INFO - Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  "
    "data_time: 0.0083  memory: 9380  loss: 2.0068\n"
    "03/17 12:00:00 - mmengine - INFO - Iter(train) [20/51]  lr: 1.4258e-09  eta: 0:00:39  time: 1.3772  "
    "data_time: 0.0083  memory: 10580  loss: 1.9980  grad_norm: nan\n"
)


def test_log_lines():
    assert train.read_log(PUBLISHED) == [(10, 1.8763e-09, 2.0068), (20, 1.4258e-09, 1.9980)]
    assert train.read_log(PUBLISHED + PUBLISHED.replace("2.0068", "3.5")) == [
        (10, 1.8763e-09, 3.5),
        (20, 1.4258e-09, 1.998),
    ]


def test_the_last_checkpoint_is_the_recorded_whole_one(tmp_path):
    assert train.last_checkpoint(tmp_path) is None
    import torch

    torch.save({"x": 1}, str(tmp_path / "iter_7.pth"))
    torch.save({"x": 1}, str(tmp_path / "iter_9.pth"))
    (tmp_path / "last_checkpoint").write_text("/elsewhere/checkpoints/iter_7.pth")
    assert train.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    (tmp_path / "last_checkpoint").write_text("iter_9.pth")
    whole = (tmp_path / "iter_9.pth").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"damage" + whole[106:], b""):
        (tmp_path / "iter_9.pth").write_bytes(damaged)
        assert train.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    for note in ("", ".", "..", "iter_9999.pth"):
        (tmp_path / "last_checkpoint").write_text(note)
        assert train.last_checkpoint(tmp_path) == tmp_path / "iter_7.pth"
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe")
    (tmp_path / "iter_7.pth").unlink()
    assert train.last_checkpoint(tmp_path) is None


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory):
    """A run killed (SIGKILL) after its first checkpoint, then the same command typed again."""
    output = tmp_path_factory.mktemp("killed")
    words = [sys.executable, "-m", "recipe", "train", *SHORT, "--output", str(output)]
    child = subprocess.Popen(
        words,
        cwd=str(ROOT),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.time() + 300
    while not list(output.glob("demo/checkpoints/*/last_checkpoint")):
        assert child.poll() is None, "ended before it could be killed"
        assert time.time() < until, "no checkpoint in five minutes"
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(1)
    orphans = subprocess.run(["pgrep", "-f", str(output)], capture_output=True, text=True).stdout.split()
    done = recipe("train", *SHORT, "--output", output)
    return orphans, done, output / "demo"


def test_a_killed_run_is_finished_by_the_same_command(stopped_and_resumed):
    _, done, folder = stopped_and_resumed
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["resumed_from"] in (18, 36, 54)
    assert figures["iterations"] == figures["updates"] == 72
    assert (ROOT / figures["checkpoint"]).is_file()
    log = (ROOT / figures["log"]).read_text(encoding="utf-8")
    assert log.count("\n$ ") == 2
    assert f"resumed epoch: 0, iter: {figures['resumed_from']}" in log


def test_the_trainer_does_not_outlive_us(stopped_and_resumed):
    orphans, _, _ = stopped_and_resumed
    assert orphans == []


def test_figures_are_read_from_checkpoint_and_log(stopped_and_resumed):
    _, _, folder = stopped_and_resumed
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    figures, planned = manifest["stages"]["train"]["figures"], manifest["stages"]["plan"]["figures"]
    assert figures["iterations"] == planned["iterations"]
    assert figures["updates"] == planned["updates"]
    assert figures["seed"] == planned["seed"] == 0
    trace = json.loads((folder / "plan.json").read_text(encoding="utf-8"))["lr_trace"]
    steps = train.read_log((ROOT / figures["log"]).read_text(encoding="utf-8"))
    assert [number for number, _, _ in steps] == list(range(1, 73))
    for number, rate, _ in steps:  # plan equals what mmengine did, at every iteration
        assert f"{rate:.4e}" == f"{trace[number - 1]:.4e}"


def test_a_damaged_checkpoint_never_becomes_an_adapter(stopped_and_resumed):
    """Bytes flipped after training: training goes on from the checkpoint before, and the adapter is made again."""
    _, _, folder = stopped_and_resumed
    checkpoint = next(folder.glob("checkpoints/*/iter_72.pth"))
    whole = checkpoint.read_bytes()
    middle = len(whole) // 2
    checkpoint.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
    done = recipe("train", *SHORT, "--output", folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["resumed_from"] == 54
    assert figures["iterations"] == 72


def test_checkpoints_of_other_settings_are_never_mixed(stopped_and_resumed):
    _, _, folder = stopped_and_resumed
    done = recipe("train", *SHORT, "train.lr=1e-3", "--output", folder.parent)
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("checkpoints/*/iter_72.pth"))) == 2
    figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["resumed_from"] == 0


def test_a_trainer_that_crashes_fails_the_run_with_its_last_words(tmp_path):
    """The `xtuner` command would exit 0 here. The data have become unreadable behind the plan's back."""
    done = recipe("config", *SHORT, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    from recipe import settings, stages

    run = stages.Run("demo", settings.load("demo", SHORT[1:])[1], ROOT, tmp_path)
    with run.open():
        run.config.write_text(run.config.read_text(encoding="utf-8").replace("path='json'", "path='no_such_loader'"))
        with pytest.raises(train.RunFailed) as caught:
            train.work(run, tmp_path)
    assert "The trainer failed" in str(caught.value)
    assert "no_such_loader" in str(caught.value)
    assert "train.log" in str(caught.value)


def test_a_trainer_that_plans_other_iterations_is_stopped_at_once(tmp_path):
    done = recipe("config", *SHORT, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    from recipe import settings, stages

    run = stages.Run("demo", settings.load("demo", SHORT[1:])[1], ROOT, tmp_path)
    with run.open():
        run.config.write_text(run.config.read_text(encoding="utf-8").replace("max_epochs = 2", "max_epochs = 3"))
        with pytest.raises(train.RunFailed, match="going to make 108 iterations, the plan says 72"):
            train.work(run, tmp_path)


def test_without_a_gpu_a_gpu_recipe_is_refused_before_the_download(tmp_path, real_workbook, real_tokenizer):
    words = (f'data.files=["{real_workbook}"]', f"model.tokenizer={real_tokenizer}", "model.id=nobody/nothing")
    done = recipe("train", "coach", *words, "--output", tmp_path, PATH="/usr/bin:/bin")
    refused(done, 3, "needs an NVIDIA GPU", "just demo")


def test_deepspeed_needs_no_network(tmp_path):
    """As in a container without one: only the loopback device is there. Calls to the card are answered by the CPU."""
    inside = ["unshare", "--net"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    if subprocess.run([*inside, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        pytest.skip("this machine allows no network namespace, or has no ip (apt-get install iproute2)")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "no_gpu")])
    stage = [sys.executable, "-m", "recipe", "train", "demo", "--force", "train.deepspeed=deepspeed_zero2",
             "train.max_epochs=1", "--output", str(tmp_path)]  # fmt: skip
    done = subprocess.run(
        [*inside, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *stage], cwd=str(ROOT), capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "demo" / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["figures"]
    assert figures["iterations"] == figures["updates"] == 36
