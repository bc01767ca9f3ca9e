"""The trainer's log, line by line: the patterns that hooks write and readers search for."""

import re
from typing import Any, Dict

from recipe.core import distributed

Step = Dict[str, float]  # lr, loss, seconds, grad_norm, memory_mb, as far as they were logged

# mmengine's log line: Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  …  loss: 2.0068
ITERATION = re.compile(r"Iter\(train\) \[\s*(\d+)/(\d+)\].*?\blr: .*?\bloss: ")
# mmengine's field, in such a line and in scalars.json → ours (seconds per iteration, MiB of GPU memory)
FIELDS = {"lr": "lr", "loss": "loss", "time": "seconds", "grad_norm": "grad_norm", "memory": "memory_mb"}

HEARTBEAT = re.compile(distributed.HEARTBEAT.format(r"(\d+)", r"(\d+)"))

CHECKPOINT_NAME = re.compile(r"iter_(\d+)(?:\.pth)?$")

SAVED = "Stopped by SIGTERM, saved: iteration "  # AtomicCheckpointHook adds the iteration, or "none"

TIME_BREAKDOWN = "Seconds: "  # TimingHook adds "start 2.00, answers 1.50, …"


def parse_iterations(text: str) -> Dict[int, Step]:
    """iteration → what was logged. A resumed run logs some iterations again; the later line counts."""
    found = {}
    for line in text.splitlines():
        iteration = re.search(r"Iter\(train\) \[\s*(\d+)/\d+\]", line)
        if iteration:
            fields = re.findall(r"(\blr|\bloss|\btime|grad_norm|memory): +(\S+)", line)
            found[int(iteration[1])] = {FIELDS[name]: float(value) for name, value in fields}
    return dict(sorted(found.items()))


def time_breakdown(text: str) -> Dict[str, float]:
    """Seconds of start, answers, checkpoints and iterations, summed over all starts of the trainer; {} if not logged.

    A start that was killed counts up to its last checkpoint.
    """
    total: Dict[str, float] = {}
    for start in text.split("\n$ "):
        for line in re.findall(rf"{TIME_BREAKDOWN}(.*)", start)[-1:]:
            for name, seconds in re.findall(r"(\w+) ([\d.]+)", line):
                total[name] = round(total.get(name, 0.0) + float(seconds), 2)
    return total


def curve_figures(steps: Dict[int, Step]) -> Dict[str, Any]:
    """Peak learning rate, first and last loss, for the manifest. mmengine logs the mean loss of 10 iterations."""
    losses = [step["loss"] for step in steps.values() if "loss" in step]
    return {
        "lr_peak_logged": max((step["lr"] for step in steps.values() if "lr" in step), default=0.0),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
    }
