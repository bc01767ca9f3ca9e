"""Evaluate stage: measures base and tuned model on the conversations that were held out of training."""

import json
from pathlib import Path
from typing import Any, Dict

from recipe.core.files import write_text
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.core.stage import Stage, output_digest
from recipe.core.translation import stored
from recipe.inference import evaluate, loading
from recipe.xtuner import preset_facts


def inputs(run: Run) -> Dict[str, Any]:
    kind = loading.find_model(run).kind
    stage = {"merged": "merge", "adapter": "adapter"}[kind]
    # LLaVA's other parts lie beside the language model's adapter, also when that is merged.
    parts = {"parts": output_digest(run, "adapter", "adapter")} if preset_facts.has_images(run.settings) else {}
    return {
        **evaluate.base_inputs(run),
        "tuned": output_digest(run, stage, kind),
        "dataset": run.dataset,
        "stage": source(Path(__file__)),
        **parts,
    }


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write eval.json: losses, scores and the verdict (the figures), and the answers side by side.

    Raises InputWrong if nothing is held out, HostLacks if the model does not fit.
    """
    figures, samples = evaluate.measure(run)
    text = json.dumps({**figures, "samples": samples}, ensure_ascii=False, indent=1)
    write_text(output / "eval.json", text + "\n")
    return figures


def summary(figures: Dict[str, Any]) -> str:
    return stored(figures["summary"])


STAGE = Stage("eval", inputs, make, summary, outputs=("eval.json",))
