"""Weights & Biases and SwanLab beside TensorBoard's files: train.loggers = ["wandb", "swanlab"].

Both write below the checkpoints (vis_data/) and send nothing: containers have no network while training.
`wandb sync` and `swanlab sync` send it later; WANDB_MODE=online and SWANLAB_MODE=cloud do at once, on a host.
"""

import importlib.util
import os
import subprocess
import sys
from typing import Dict

from recipe.core.errors import HostLacks, NotFetched
from recipe.core.recipe_files import ROOT
from recipe.core.run import Run

PROJECT = "internlm2-recipe"
# mmengine builds these by their names; TensorBoard's is its own.
BACKENDS = {"wandb": "recipe.training.hooks.WandbBackend", "swanlab": "swanlab.integration.mmengine.SwanlabVisBackend"}


def preflight(run: Run) -> None:
    """Have what train.loggers needs, fetched when it is first asked for. Raises HostLacks where that cannot be."""
    if all(importlib.util.find_spec(name) for name in run.settings.train.loggers):
        return
    if os.environ.get("RECIPE_FETCH") == "no":
        raise NotFetched("package of train.loggers")
    fetch()


def fetch() -> None:
    """The packages of docker/locks/loggers.lock, beside the environment; on our path and the trainer's."""
    host = ROOT / "docker" / "runtime" / "host"
    done = subprocess.run([str(host), "loggers"], capture_output=True, text=True)
    if done.returncode:
        raise HostLacks(f"{done.stderr.strip()} Or train without: train.loggers=[].")
    folder = done.stdout.strip()
    sys.path.append(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), folder]))


def environment(run: Run) -> Dict[str, str]:
    """For the trainer: names and modes, by the loggers' own variables, where the user has set none."""
    own = {
        "WANDB_MODE": "offline", "WANDB_PROJECT": PROJECT, "WANDB_NAME": run.name, "WANDB_SILENT": "true",
        "SWANLAB_MODE": "offline", "SWANLAB_PROJ_NAME": PROJECT, "SWANLAB_EXP_NAME": run.name,
    }  # fmt: skip
    return {name: value for name, value in own.items() if name not in os.environ}
