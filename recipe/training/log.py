"""What the trainer left behind: curves from mmengine's scalars, answers from XTuner's evaluation hook.

mmengine writes vis_data/scalars.json under a folder of the hour it started; a run that was stopped and went on has
several. Where those are gone, train.log has the same with four digits.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.training import checkpoints, log_lines
from recipe.training.log_lines import FIELDS, ITERATION

WINDOW = 10  # iterations: mmengine's log processor means loss and gradient norm over the last ten
HOOK_CALL = re.compile(r"(before_train|after_train_iter|after_train) in EvaluateChatHook")
# What transformers says of InternLM2's code whenever XTuner's hook switches recomputing off and on, between answers
RECOMPUTE_WARNING = "You are using an old version of the checkpointing format"
LOG_PREFIX = re.compile(r"^\d\d/\d\d \d\d:\d\d:\d\d - mmengine - ")
TEMPLATE_MARK = re.compile(r"<\|[^|<>]*\|>(?:assistant|bot|Bot)?:?")  # what a chat template puts around an answer

Step = Dict[str, float]  # lr, loss, seconds, grad_norm, memory_mb, each where it was logged


class Answers(NamedTuple):
    """What the model said at an iteration of training: (question, answer, whether it ended by itself)."""

    iteration: int
    said: List[Tuple[str, str, bool]]


def training_folder(run: Run) -> Optional[Path]:
    """Where the training's checkpoints and logs lie: the finished training's, else of one that was begun, else None."""
    done = run.figures("train").get("log")
    if done:
        # Below the run's own folder, which may have been copied here from another place than the manifest names.
        return run.checkpoints / Path(done).parent.name
    if not (run.figures("config") and run.config.is_file() and run.plan.is_file()):
        return None
    try:
        begun = checkpoints.folder(run)
    except (RecipeError, OSError, KeyError, ValueError):
        return None
    return begun if (begun / "train.log").is_file() else None


def read_iterations(folder: Path) -> Dict[int, Step]:
    """iteration → what was logged. A run that went on counts from where it did: what an earlier one had logged
    beyond its last checkpoint is not part of what became of the model.
    """
    found: Dict[int, Step] = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):
        part = {}
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                part[int(entry["step"])] = {name: float(entry[key]) for key, name in FIELDS.items() if key in entry}
            except (ValueError, TypeError, KeyError):
                continue  # the line that is just being written
        if part:
            found = {n: step for n, step in found.items() if n < min(part)}
            found.update(part)
    if not found and (folder / "train.log").is_file():
        found = log_lines.parse_iterations((folder / "train.log").read_text(encoding="utf-8", errors="replace"))
    return dict(sorted(found.items()))


def per_iteration(made: Dict[int, Step], name: str = "loss") -> Dict[int, float]:
    """Each iteration's own value, undone from the means over the last ten that mmengine logs; {} where it logged not
    every iteration.

    The mean of n ≤ 10 holds the first n values, later ones move on by one: ten times their difference is what came
    less what went. mmengine keeps its window in the checkpoint, so a resumed run does not begin a new one.
    """
    values: Dict[int, float] = {}
    for n in range(1, len(made) + 1):
        mean, before = made.get(n, {}).get(name, math.nan), made.get(n - 1, {}).get(name, 0.0)
        if not math.isfinite(mean):
            return {}
        if n <= WINDOW:
            values[n] = n * mean - (n - 1) * before
        else:
            values[n] = values[n - WINDOW] + WINDOW * (mean - before)
    return values


def read_answers(folder: Path, questions: Sequence[str], planned: Sequence[int]) -> List[Answers]:
    """What XTuner's evaluation hook wrote into train.log, by iteration; before training it asks for 50 tokens only.

    The log tells the iteration only where it logs a loss: between two of these the next one `planned` it was.
    """
    log = folder / "train.log"
    if not log.is_file():
        return []
    found: Dict[int, List[str]] = {}
    at, resumed = 0, False
    into: Optional[List[str]] = None  # the answers that the hook is writing
    open_block = False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        step = ITERATION.search(line)
        if line.startswith("$ "):  # the command line: training begins, or goes on from a checkpoint
            step = re.search(r"--resume \S*iter_(\d+)", line)
            resumed, at, into = bool(step), 0, None
        if step:
            at = int(step[1])
        if step or LOG_PREFIX.match(line):
            open_block = False
        hook = HOOK_CALL.search(line)
        if hook:
            # What a resumed run says at its start was said at that checkpoint already, in full.
            into = None if resumed and hook[1] == "before_train" else []
            if into is not None:
                found[next((n for n in planned if n >= at), at)] = into
        elif into is not None and line.endswith("Sample output:") and LOG_PREFIX.match(line):
            into.append("")
            open_block = True
        elif into and open_block and not line.startswith(RECOMPUTE_WARNING):
            into[-1] += line + "\n"
    return [
        Answers(n, [_split_answer(text, question) for text, question in zip(texts, questions)])
        for n, texts in sorted(found.items())
        if texts and questions
    ]


def _split_answer(text: str, question: str) -> Tuple[str, str, bool]:
    """(question, the answer alone, whether it ended): the hook writes prompt and answer, with the template's marks."""
    _, asked, rest = text.rpartition(question)
    rest = (rest if asked else text).strip()
    ended = bool(re.search(r"(?:<\|[^|<>]*\|>|</s>)$", rest))
    return question, TEMPLATE_MARK.sub("", re.sub(r"</?s>", "", rest)).strip(), ended


def curve_summary(made: Dict[int, Step]) -> Dict[str, Any]:
    """Figures of the curves: iterations logged, first and last mean loss, its fall, peaks, seconds of training."""
    losses = [step["loss"] for step in made.values() if "loss" in step]
    numbers = sorted(made)
    every = min((b - a for a, b in zip(numbers, numbers[1:])), default=1)
    whole = per_iteration(made, "seconds")
    seconds = sum(whole.values()) if whole else sum(step.get("seconds", 0) for step in made.values()) * every
    finite = bool(losses) and all(map(math.isfinite, losses))
    return {
        "reached": max(made, default=0),
        "every": every,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "finite": finite,
        "fall": 1 - losses[-1] / losses[0] if finite and losses[0] else None,
        "lr_peak": max((step["lr"] for step in made.values() if "lr" in step), default=None),
        "memory_mib": max((step["memory_mb"] for step in made.values() if "memory_mb" in step), default=None),
        "seconds": seconds or None,
    }
