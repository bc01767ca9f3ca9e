"""Merge stage: adapter and base become a model folder."""

from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder, model_code
from recipe.core.hashing import digest, key_of, source, stamp
from recipe.core.run import Run
from recipe.core.stage import Stage, is_current
from recipe.weights.merge import PART, adapters, checkpoint, checksum_digest, merge, model_card, plan_merge, summary
from recipe.weights.merge_plan import CODE


def inputs(run: Run) -> Dict[str, Any]:
    return {
        "adapters": [[digest(place), weight] for place, weight in adapters(run)],
        **({"checkpoint": stamp(checkpoint(run))} if checkpoint(run) else {}),  # type: ignore[arg-type]
        "base": folder.fingerprint(folder.folder(run)),
        "settings": run.settings.merge.model_dump(exclude={"adapters", "weights", "device"}),
        "stop_words": run.figures("config").get("stop_words", []),
        "code": source(Path(__file__), *CODE, *model_code.FILES),
    }


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write merged/; see `merge`."""
    figures = merge(
        plan_merge(run), output / "merged", run.folder / PART, run.figures("config").get("stop_words", []),
        lambda figures: model_card(run, figures), run.settings.merge.device,
    )  # fmt: skip
    return {**figures, "digests": {"merged": checksum_digest(output / "merged")}}


STAGE = Stage("merge", inputs, make, summary, outputs=("merged",))


def is_outdated(run: Run) -> bool:
    """Whether the merged model is of an earlier training than the adapter or checkpoint beside it."""
    finished = {name: entry.get("finished", "") for name, entry in run.manifest.get("stages", {}).items()}
    is_later = any(finished.get(name, "") > finished.get("merge", "") for name in ("train", "adapter"))
    return is_later and not is_current(run, STAGE, key_of(inputs(run)))
