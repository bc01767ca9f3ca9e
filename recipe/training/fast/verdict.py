"""Reads the results of the fast step's comparisons (`check.py`) from the trainer's log. Does not import PyTorch."""

import json
import re
from typing import Any, Dict, Optional

from recipe.core.translation import _, mark, stored

MARK = "Fast step: "

# Errors and places that the comparisons write into the log and run.json, in English
FOUND_BEFORE = mark("found when this run began")
FOUND_BY_OTHER = mark("found by another rank")
LAYER_OUTPUT = mark("layer {layer}, output")
LAYER_INPUT = mark("layer {layer}, input's gradient")
LAYER_WEIGHT = mark("layer {layer}, {weight}")


def parse_line(line: str) -> Optional[Dict[str, Any]]:
    """The figures in a line of the trainer's log, or None."""
    found = re.search(rf"{MARK}(\{{.*\}})\s*$", line)
    return json.loads(found[1]) if found else None


def parse_log(text: str) -> Dict[str, Any]:
    """{against_stock: figures, recording: figures} of the trainer's last start that has them; {} if none has."""
    found: Dict[str, Any] = {}
    for start in text.split("\n$ "):
        figures = {one["compared"]: one for one in map(parse_line, start.splitlines()) if one}
        found = figures or found
    return found


def failure_message(figures: Dict[str, Any]) -> str:
    """One line about a failed comparison, and which step the run uses instead."""
    if figures["compared"] == "recording":
        return _("The fast step is not recorded as a CUDA graph: {reason}.", reason=describe(figures))
    return _(
        "The fast step differs from XTuner's own, which this run takes instead: {reason}.",
        reason=describe(figures),
    )


def summary(found: Dict[str, Any]) -> str:
    """One line: which step the run trained with, and how it compared."""
    stock, recording = found["against_stock"], found.get("recording", {})
    if not stock["passed"]:
        return _("XTuner's own, because the fast one differs: {differences}", differences=describe(stock))
    differences = describe(stock)
    if recording.get("passed"):
        return _(
            "fast, recorded, equal to XTuner's own within rounding: {differences}",
            differences=differences,
        )
    if recording:
        return _(
            "fast, equal to XTuner's own within rounding: {differences}; not recorded: {reason}",
            differences=differences,
            reason=describe(recording),
        )
    return _("fast, equal to XTuner's own within rounding: {differences}", differences=differences)


def describe(figures: Dict[str, Any]) -> str:
    """Why a comparison failed, or by how much the two differ."""
    if "error" in figures:
        return stored(figures["error"])
    worst = figures.get("layer_difference", figures.get("gradient_difference"))
    loss, gradients = (_percent(one) for one in (figures["loss_difference"], worst))
    where = stored(figures["worst"])
    if figures["compared"] == "recording":
        return _(
            "a replay of the recording differs from the step: loss off by {loss}, {where} by {difference}",
            loss=loss,
            where=where,
            difference=gradients,
        )
    return _("loss off by {loss}, {where} by {difference}", loss=loss, where=where, difference=gradients)


def _percent(value: Optional[float]) -> str:
    if value is None:
        return "nan"
    return f"{value:.2%}" if value >= 1e-4 else f"{value:.0e}"
