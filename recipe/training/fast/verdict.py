"""Reads the results of the fast step's comparisons (`check.py`) from the trainer's log. Does not import PyTorch."""

import json
import re
from typing import Any, Dict, Optional

MARK = "Fast step: "


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
        return f"The fast step is not recorded as a CUDA graph: {describe(figures)}."
    return f"The fast step differs from XTuner's own, which this run takes instead: {describe(figures)}."


def summary(found: Dict[str, Any]) -> str:
    """One line: which step the run trained with, and how it compared."""
    stock, recording = found["against_stock"], found.get("recording", {})
    if not stock["passed"]:
        return f"XTuner's own, because the fast one differs: {describe(stock)}"
    taken = "fast, recorded" if recording.get("passed") else "fast"
    refused = f"; not recorded: {describe(recording)}" if recording and not recording["passed"] else ""
    return f"{taken}, equal to XTuner's own within rounding: {describe(stock)}{refused}"


def describe(figures: Dict[str, Any]) -> str:
    """Why a comparison failed, or by how much the two differ."""
    if "error" in figures:
        return figures["error"]
    worst = figures.get("layer_difference", figures.get("gradient_difference"))
    loss, gradients = (_percent(one) for one in (figures["loss_difference"], worst))
    what = "a replay of the recording differs from the step: " if figures["compared"] == "recording" else ""
    return f"{what}loss off by {loss}, {figures['worst']} by {gradients}"


def _percent(value: Optional[float]) -> str:
    if value is None:
        return "nan"
    return f"{value:.2%}" if value >= 1e-4 else f"{value:.0e}"
