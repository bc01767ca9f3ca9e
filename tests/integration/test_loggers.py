"""TensorBoard's files of every run; Weights & Biases and SwanLab offline."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from recipe.core import settings
from recipe.training import log
from recipe.xtuner import config, loggers
from support.command import ROOT

LOG = """
import sys
from mmengine.config import Config
from mmengine.visualization import Visualizer
cfg = Config.fromfile(sys.argv[1])
shown = Visualizer.get_instance("x", save_dir=sys.argv[2], **{k: v for k, v in cfg.visualizer.items() if k != "type"})
shown.add_config(cfg)
for step in (1, 2, 3):
    shown.add_scalars({"loss": 1 / step, "lr": 0.1}, step=step)
shown.close()
"""


def test_tensorboards_files_hold_the_curves_of_every_run(demo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [place] = (demo[1] / "checkpoints").glob("*")
    [events] = place.glob("*/vis_data/events.out.tfevents.*")
    told = EventAccumulator(str(events))
    told.Reload()
    steps = log.read_iterations(place)
    for name in ("loss", "lr", "time"):
        assert {e.step: e.value for e in told.Scalars(name)} == pytest.approx(
            {n: step[{"time": "seconds"}.get(name, name)] for n, step in steps.items()}
        )


def test_weights_and_biases_and_swanlab_write_beside_without_a_network(tmp_path):
    _, recipe = settings.load("tiny", ['train.loggers=["wandb","swanlab"]'])
    (tmp_path / "config.py").write_text(config.render(recipe, "base", "data", {}), encoding="utf-8")
    run = SimpleNamespace(settings=recipe, name="tiny")
    path = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"], os.environ["LOGGERS"]])
    closed = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-c", LOG, str(tmp_path / "config.py"), str(tmp_path)], cwd=str(tmp_path),
        env={**os.environ, **closed, **loggers.environment(run), "PYTHONPATH": path, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(tmp_path.glob("vis_data/events.out.tfevents.*"))
    [sent] = tmp_path.glob("vis_data/wandb/offline-run-*/run-*.wandb")
    assert b"loss" in sent.read_bytes()
    assert not list(sent.parent.glob("**/*.py")), "no source code"
    [sent] = tmp_path.glob("vis_data/run-*/backup.swanlab")
    assert b"loss" in sent.read_bytes()
