"""Lines of the trainer's log: what hooks write into it and what is read from it."""

import re
from typing import Any, Dict, List, Tuple

from recipe.core import distributed

# mmengine's log line: Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  …  loss: 2.0068
ITERATION = re.compile(r"Iter\(train\) \[\s*(\d+)/(\d+)\].*?\blr: ([-+.\deE]+).*?\bloss: ([-+.\deE]+|nan|inf)")

# What we call what mmengine logs, in such a line and in scalars.json: seconds an iteration, MiB of GPU memory
FIELDS = {"lr": "lr", "loss": "loss", "time": "seconds", "grad_norm": "grad_norm", "memory": "memory_mb"}

HEARTBEAT = re.compile(distributed.HEARTBEAT.format(r"(\d+)", r"(\d+)"))

CHECKPOINT_NAME = re.compile(r"iter_(\d+)(?:\.pth)?$")

SAVED = "Stopped by SIGTERM, saved: iteration "  # hooks.AtomicCheckpointHook says it, with the iteration or "none"

TIME_BREAKDOWN = "Seconds: "  # hooks.TimingHook says it, with what took how many


def parse_iterations(text: str) -> Dict[int, Dict[str, float]]:
    """iteration → {lr, loss, seconds, grad_norm, memory_mb (each absent where it was not logged)}."""
    found = {}
    for line in text.splitlines():
        step = re.search(r"Iter\(train\) \[\s*(\d+)/\d+\]", line)
        if step:
            words = dict(re.findall(r"(\blr|\bloss|\btime|grad_norm|memory): +(\S+)", line))
            found[int(step[1])] = {FIELDS[word]: float(value) for word, value in words.items()}
    return found


def read_log(text: str) -> List[Tuple[int, float, float]]:
    """(iteration, learning rate, loss) of every line in which mmengine logged them.

    The loss is mmengine's: the mean over the last 10 iterations. A resumed run logs some iterations again;
    the later line counts.
    """
    found = {int(m[1]): (int(m[1]), float(m[3]), float(m[4])) for m in ITERATION.finditer(text)}
    return [found[number] for number in sorted(found)]


def time_breakdown(text: str) -> Dict[str, float]:
    """Seconds of the trainer by what took them (start, answers, checkpoints, iterations), all its starts together; {}
    where its log does not tell. Of a start that was killed, those until its last checkpoint.
    """
    total: Dict[str, float] = {}
    for start in text.split("\n$ "):
        for line in re.findall(rf"{TIME_BREAKDOWN}(.*)", start)[-1:]:
            for what, seconds in re.findall(r"(\w+) ([\d.]+)", line):
                total[what] = round(total.get(what, 0.0) + float(seconds), 2)
    return total


def curve_figures(steps: List[Tuple[int, float, float]]) -> Dict[str, Any]:
    """What the manifest holds of the log's lines."""
    return {
        "lr_peak_logged": max((rate for _, rate, _ in steps), default=0.0),
        "loss_first": steps[0][2] if steps else None,
        "loss_last": steps[-1][2] if steps else None,
    }
