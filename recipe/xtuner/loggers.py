"""Weights & Biases and SwanLab in addition to TensorBoard: train.loggers = ["wandb", "swanlab"].

Both write into vis_data/ below the checkpoints and send nothing, because containers train without a network.
`wandb sync` and `swanlab sync` upload it later; on a host WANDB_MODE=online and SWANLAB_MODE=cloud do it immediately.
"""

import importlib.util
import os
import subprocess
import sys
from typing import Dict

from recipe.core.errors import HostLacks, NotFetched
from recipe.core.recipe_files import ROOT
from recipe.core.run import Run
from recipe.core.translation import _, sentences

PROJECT = "internlm2-recipe"
# Class names for mmengine, which has TensorBoard's itself.
BACKENDS = {"wandb": "recipe.training.hooks.WandbBackend", "swanlab": "swanlab.integration.mmengine.SwanlabVisBackend"}


def preflight(run: Run) -> None:
    """Install what train.loggers needs if it is missing. Raises HostLacks, NotFetched."""
    if all(importlib.util.find_spec(name) for name in run.settings.train.loggers):
        return
    if os.environ.get("RECIPE_FETCH") == "no":
        raise NotFetched("package of train.loggers")
    fetch()


def fetch() -> None:
    """Install docker/locks/loggers.lock and add it to our path and the trainer's. Raises HostLacks."""
    host = ROOT / "docker" / "runtime" / "host"
    done = subprocess.run([str(host), "loggers"], capture_output=True, text=True)
    if done.returncode:
        raise HostLacks(sentences(done.stderr, _("Or train without: train.loggers=[].")))
    folder = done.stdout.strip()
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))


def environment(run: Run) -> Dict[str, str]:
    """The loggers' own environment variables for the trainer, except those that the user has set."""
    own = {
        "WANDB_MODE": "offline", "WANDB_PROJECT": PROJECT, "WANDB_NAME": run.name, "WANDB_SILENT": "true",
        "SWANLAB_MODE": "offline", "SWANLAB_PROJ_NAME": PROJECT, "SWANLAB_EXP_NAME": run.name,
    }  # fmt: skip
    return {name: value for name, value in own.items() if name not in os.environ}
