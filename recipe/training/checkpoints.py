"""Which checkpoints a training left, and which of them are whole."""

import json
import zipfile
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.base_model import folder as model
from recipe.core import distributed
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.training.log_lines import CHECKPOINT_NAME
from recipe.weights import llava
from recipe.xtuner import config, preset_facts, step_choice


def folder(run: Run) -> Path:
    """Where this run's checkpoints lie: one folder for each config, data and base model."""
    return run.checkpoints / key_of(inputs(run))[:12]


def last_checkpoint(place: Path) -> Optional[Path]:
    """The newest whole checkpoint, or None. One that was cut short or damaged does not count.

    The trainer's own note (last_checkpoint) bounds the search: a file newer than it may be half written.
    """
    note = place / "last_checkpoint"
    noted = (
        CHECKPOINT_NAME.search(note.read_text(encoding="utf-8", errors="replace").strip()) if note.is_file() else None
    )
    found = {iteration_of(path): path for path in place.glob("iter_*") if CHECKPOINT_NAME.search(path.name)}
    for iteration in sorted(found, reverse=True):
        if noted and iteration > int(noted[1]):
            continue
        if is_complete(found[iteration]):
            return found[iteration]
    return None


def is_complete(checkpoint: Path) -> bool:
    """Whether every part of a file of torch.save (a zip file) has its checksum; of DeepSpeed's folder, of all files,
    and whether every rank's are there.
    """
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
    """Iterations done at `checkpoint` (named iter_N.pth by the trainer)."""
    found = CHECKPOINT_NAME.search(checkpoint.name)
    assert found, checkpoint
    return int(found[1])


def inputs(run: Run) -> Dict[str, Any]:
    """Where data and model lie is no part of it: what they hold is. So a folder that was moved goes on."""
    place = model.folder(run)
    seed = json.loads(run.plan.read_text(encoding="utf-8"))["seed"]
    return {
        **(llava.inputs(run) if preset_facts.pictures(run.settings) else {}),
        "config": config.without_places(run.config.read_text(encoding="utf-8")),
        "dataset": run.dataset,
        "model": model.fingerprint(place) if place.is_dir() else "absent",
        "deepspeed": step_choice.deepspeed_text(run.settings),
        "seed": seed,
        # A checkpoint has a part for each rank and goes on with as many.
        **({"ranks": distributed.count(run.settings)} if distributed.count(run.settings) > 1 else {}),
    }
