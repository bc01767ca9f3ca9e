"""Finds the checkpoints of a training and checks that they are complete."""

import json
import zipfile
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.base_model import folder as model
from recipe.core import distributed
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.core.translation import _
from recipe.training.log_lines import CHECKPOINT_NAME
from recipe.weights import llava
from recipe.xtuner import config, preset_facts, step_choice


def folder(run: Run) -> Path:
    """Where this run's checkpoints are: one folder for each config, data and base model."""
    return run.checkpoints / key_of(inputs(run))[:12]


def last_checkpoint(place: Path) -> Optional[Path]:
    """The newest complete checkpoint in `place`, or None.

    The trainer's last_checkpoint file is an upper bound: a newer checkpoint may be half written.
    """
    note = place / "last_checkpoint"
    last = (
        CHECKPOINT_NAME.search(note.read_text(encoding="utf-8", errors="replace").strip()) if note.is_file() else None
    )
    found = {iteration_of(path): path for path in place.glob("iter_*") if CHECKPOINT_NAME.search(path.name)}
    for iteration in sorted(found, reverse=True):
        if (not last or iteration <= int(last[1])) and is_complete(found[iteration]):
            return found[iteration]
    return None


def describe_last(place: Path) -> str:
    """A clause on what is left to resume from."""
    last = last_checkpoint(place)
    if last is None:
        return _("There is no checkpoint yet")
    return _("The checkpoint of iteration {iteration} is kept", iteration=iteration_of(last))


def is_complete(checkpoint: Path) -> bool:
    """Whether every zip file of torch.save is intact and, in DeepSpeed's folder, every rank's file exists."""
    files = sorted(checkpoint.glob("*.pt")) if checkpoint.is_dir() else [checkpoint]
    try:
        for path in files:
            with zipfile.ZipFile(str(path)) as archive:
                if archive.testzip() is not None:
                    return False
    except (zipfile.BadZipFile, OSError, EOFError):
        return False
    return distributed.is_complete(checkpoint) if checkpoint.is_dir() else True


def iteration_of(checkpoint: Path) -> int:
    """The number in the name, iter_N.pth or iter_N."""
    found = CHECKPOINT_NAME.search(checkpoint.name)
    assert found, checkpoint
    return int(found[1])


def inputs(run: Run) -> Dict[str, Any]:
    """What the training depends on: the contents of data and model, not their paths, so a run folder can be moved."""
    place = model.folder(run)
    ranks = distributed.count(run.settings)
    return {
        **(llava.inputs(run) if preset_facts.has_images(run.settings) else {}),
        "config": config.without_paths(run.config.read_text(encoding="utf-8")),
        "dataset": run.dataset,
        "model": model.fingerprint(place) if place.is_dir() else "absent",
        "deepspeed": step_choice.deepspeed_text(run.settings),
        "seed": json.loads(run.plan.read_text(encoding="utf-8"))["seed"],
        # A checkpoint of several ranks can only be resumed with the same number.
        **({"ranks": ranks} if ranks > 1 else {}),
    }
