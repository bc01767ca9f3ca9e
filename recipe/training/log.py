"""Reads a training's curves from mmengine's scalars, and its answers from the log of XTuner's evaluation hook.

mmengine writes vis_data/scalars.json into a folder per start, so a resumed run has several. Without them train.log
has the same values with four digits.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.training import checkpoints
from recipe.training.log_lines import FIELDS, ITERATION, Step, parse_iterations

WINDOW = 10  # mmengine logs means of loss, gradient norm and time over the last 10 iterations
HOOK_CALL = re.compile(r"(before_train|after_train_iter|after_train) in EvaluateChatHook")
# transformers logs it between two answers, whenever XTuner's hook switches gradient checkpointing
RECOMPUTE_WARNING = "You are using an old version of the checkpointing format"
LOG_PREFIX = re.compile(r"^\d\d/\d\d \d\d:\d\d:\d\d - mmengine - ")
TEMPLATE_MARK = re.compile(r"<\|[^|<>]*\|>(?:assistant|bot|Bot)?:?")  # what a chat template puts around an answer


class Answers(NamedTuple):
    """The model's replies at an iteration: (question, answer, whether it ended by itself) each."""

    iteration: int
    replies: List[Tuple[str, str, bool]]


def training_folder(run: Run) -> Optional[Path]:
    """The folder with the checkpoints and logs of the run's finished training, else of an unfinished one, else None."""
    log = run.figures("train").get("log")
    if log:
        # Looked up in the run's own folder, which may have been copied from the path in the manifest.
        return run.checkpoints / Path(log).parent.name
    if not (run.figures("config") and run.config.is_file() and run.plan.is_file()):
        return None
    try:
        folder = checkpoints.folder(run)
    except (RecipeError, OSError, KeyError, ValueError):
        return None
    return folder if (folder / "train.log").is_file() else None


def read_iterations(folder: Path) -> Dict[int, Step]:
    """iteration → what was logged, without iterations that were lost because a resumed run made them again."""
    found: Dict[int, Step] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        part = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                part[int(entry["step"])] = {name: float(entry[key]) for key, name in FIELDS.items() if key in entry}
            except (ValueError, TypeError, KeyError):
                continue  # a line that is being written
        if part:
            found = {n: step for n, step in found.items() if n < min(part)}
            found.update(part)
    if not found and (folder / "train.log").is_file():
        return parse_iterations((folder / "train.log").read_text(encoding="utf-8", errors="replace"))
    return dict(sorted(found.items()))


def per_iteration(steps: Dict[int, Step], name: str = "loss") -> Dict[int, float]:
    """Each iteration's own value, from mmengine's means over the last 10; {} unless every iteration was logged.

    The mean of iteration n ≤ 10 is over n values. After that, 10 times the change of the mean is the new value minus
    the one that left the window. The window is kept in checkpoints, so this holds for resumed runs too.
    """
    values: Dict[int, float] = {}
    for n in range(1, len(steps) + 1):
        mean, before = steps.get(n, {}).get(name, math.nan), steps.get(n - 1, {}).get(name, 0.0)
        if not math.isfinite(mean):
            return {}
        if n <= WINDOW:
            values[n] = n * mean - (n - 1) * before
        else:
            values[n] = values[n - WINDOW] + WINDOW * (mean - before)
    return values


def read_answers(folder: Path, questions: Sequence[str], planned: Sequence[int]) -> List[Answers]:
    """The answers in train.log by iteration. Before training, XTuner's hook asks for 50 tokens only.

    The log names an iteration only where it logs a loss: in between, it is the next of `planned`.
    """
    log = folder / "train.log"
    if not log.is_file():
        return []
    texts: Dict[int, List[str]] = {}
    iteration, is_resumed = 0, False
    current: Optional[List[str]] = None  # the texts of the evaluation that is being read
    in_text = False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        step = ITERATION.search(line)
        if line.startswith("$ "):  # the command line of a start
            step = re.search(r"--resume \S*iter_(\d+)", line)
            is_resumed, iteration, current = bool(step), 0, None
        if step:
            iteration = int(step[1])
        if step or LOG_PREFIX.match(line):
            in_text = False
        hook = HOOK_CALL.search(line)
        if hook:
            # The answers at the start of a resumed run are already there, from that checkpoint's iteration.
            current = None if is_resumed and hook[1] == "before_train" else []
            if current is not None:
                texts[next((n for n in planned if n >= iteration), iteration)] = current
        elif current is not None and line.endswith("Sample output:") and LOG_PREFIX.match(line):
            current.append("")
            in_text = True
        elif current and in_text and not line.startswith(RECOMPUTE_WARNING):
            current[-1] += line + "\n"
    return [
        Answers(n, [_split_answer(text, question) for text, question in zip(found, questions)])
        for n, found in sorted(texts.items())
        if found and questions
    ]


def _split_answer(text: str, question: str) -> Tuple[str, str, bool]:
    """(question, answer, whether it ended), from the hook's text: prompt and answer with the chat template's marks."""
    _, asked, rest = text.rpartition(question)
    rest = (rest if asked else text).strip()
    ended = bool(re.search(r"(?:<\|[^|<>]*\|>|</s>)$", rest))
    return question, TEMPLATE_MARK.sub("", re.sub(r"</?s>", "", rest)).strip(), ended


def curve_summary(steps: Dict[int, Step]) -> Dict[str, Any]:
    """The last iteration, the interval between logged ones, first and last loss, peaks, seconds of all iterations."""
    losses = [step["loss"] for step in steps.values() if "loss" in step]
    numbers = sorted(steps)
    every = min((b - a for a, b in zip(numbers, numbers[1:])), default=1)
    exact = per_iteration(steps, "seconds")
    seconds = sum(exact.values()) if exact else sum(step.get("seconds", 0) for step in steps.values()) * every
    finite = bool(losses) and all(map(math.isfinite, losses))
    return {
        "reached": max(steps, default=0),
        "every": every,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "finite": finite,
        "fall": 1 - losses[-1] / losses[0] if finite and losses[0] else None,
        "lr_peak": max((step["lr"] for step in steps.values() if "lr" in step), default=None),
        "memory_mib": max((step["memory_mb"] for step in steps.values() if "memory_mb" in step), default=None),
        "seconds": seconds or None,
    }
