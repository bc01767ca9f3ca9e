"""Adapter stage: turns the last checkpoint into a PEFT adapter, without the base model or a GPU."""

from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder, licence
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.core.stage import Stage, output_digest
from recipe.weights import adapter, checkpoint_reader
from recipe.weights.adapter import base_checksum, card, summary, write_adapter


def inputs(run: Run) -> Dict[str, Any]:
    return {
        "checkpoint": output_digest(run, "train", *run.manifest["stages"]["train"]["outputs"]),
        "config": run.config,
        "base": base_checksum(folder.folder(run)),
        "licence": licence.of(run),
        "settings": run.settings.adapter.model_dump(),
        "code": source(
            Path(__file__), Path(adapter.__file__), Path(checkpoint_reader.__file__), Path(licence.__file__)
        ),
    }


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write adapter/ (adapter_config.json, adapter_model.safetensors in adapter.dtype, README.md).

    Figures: tensors, parameters, and `underflow_share`, the share of trained lora_B values that adapter.dtype rounds
    to zero. Raises RunFailed for values that are not finite.
    """
    base = folder.folder(run)
    metadata = {"base_model": run.relative(base), "base_sha256": base_checksum(base)}
    figures = write_adapter(run, output / "adapter", run.settings.adapter.dtype, metadata)
    (output / "adapter" / "README.md").write_text(card(run, figures, output / "adapter"), encoding="utf-8")
    return figures


STAGE = Stage("adapter", inputs, make, summary, outputs=("adapter",))
