"""Aborts diverged runs and names the likely causes, in English: the trainer's log carries them to the user."""

import functools
import json
import math
import statistics
from pathlib import Path
from typing import Any, List, Optional

from mmengine.hooks import Hook

from recipe.core import hardware
from recipe.core.translation import _, english
from recipe.intake.images import IMAGE_TOKEN
from recipe.training.failure import TrainingError
from recipe.training.hooks.runner_state import compute_dtype, gradient_norm, is_loss_scale_at_minimum

# A run has diverged at this multiple of the median loss or gradient norm of the last WINDOW iterations.
LOSS_SPIKE, GRADIENT_EXPLOSION, WINDOW = 3, 1000, 20
# fp16's loss scaling starts at 2^16 and halves at each skipped update, so some skips in a row are normal.
MAX_SKIPPED_UPDATES = 20
SHOWN_ROWS = 20


class DivergenceHook(Hook):
    """Raises TrainingError in the iteration whose loss or gradient is nan, inf or far above the recent ones."""

    priority = "HIGH"  # before evaluation, which fails on nan weights, and before a checkpoint is saved

    def __init__(self) -> None:
        self.losses: List[float] = []
        self.norms: List[float] = []
        self.skipped = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss, norm = float(outputs["loss"].detach()), gradient_norm(runner)
        with english():
            problem = self._check_loss(loss) or (self._check_gradient(runner, norm) if norm is not None else "")
            if problem:
                raise TrainingError(_message(runner, problem, data_batch))
        self.losses = [*self.losses, loss][-WINDOW:]
        if norm is not None and math.isfinite(norm):
            self.norms = [*self.norms, norm][-WINDOW:]

    def _check_loss(self, loss: float) -> str:
        """What is wrong with the loss, or ""."""
        if not math.isfinite(loss):
            return _("The loss is {loss}", loss=loss)
        usual = _median(self.losses)
        if loss > LOSS_SPIKE * usual and loss > usual + 2:
            return _("The loss jumped to {loss:.4g} from {usual:.4g}", loss=loss, usual=usual)
        return ""

    def _check_gradient(self, runner: Any, norm: float) -> str:
        """What is wrong with the gradient, or ""."""
        if not math.isfinite(norm):
            self.skipped += 1
            is_scaled = compute_dtype(runner) == "fp16" and not is_loss_scale_at_minimum(runner)
            if is_scaled and self.skipped <= MAX_SKIPPED_UPDATES:
                return ""
            if self.skipped > 1:
                return _("The gradient is {norm} in {updates} updates in a row", norm=norm, updates=self.skipped)
            return _("The gradient is {norm}", norm=norm)
        self.skipped = 0
        usual = _median(self.norms)
        if norm > GRADIENT_EXPLOSION * usual and norm > 1:
            return _("The gradient exploded: its norm is {norm:.4g}, was {usual:.4g}", norm=norm, usual=usual)
        return ""


def _median(values: List[float]) -> float:
    """The median, or inf while there are too few values to judge by."""
    return statistics.median(values) if len(values) >= WINDOW // 2 else math.inf


def _message(runner: Any, problem: str, batch: Any) -> str:
    causes = []
    if compute_dtype(runner) == "fp16":
        causes.append(
            _("fp16 overflows above 65504, and this card has bf16: train.dtype=bf16")
            if hardware.has_bf16()
            else _("fp16 overflows above 65504, and this card has no bf16")
        )
    rate = max(max(values) for values in runner.optim_wrapper.get_lr().values())
    # The remedy starts from the configured rate: the current one may belong to the warm-up.
    causes.append(
        _(
            "the learning rate is too high ({rate:.3g} now): train.lr={lower:.3g}",
            rate=rate,
            lower=runner.cfg.lr / 4,
        )
    )
    causes.append(_unusual_rows(runner, batch))
    return _(
        "{problem} at iteration {iteration} of {total}. Likely: {causes}. train.guard=false trains on regardless.",
        problem=problem,
        iteration=runner.iter + 1,
        total=runner.max_iters,
        causes=functools.reduce(lambda first, second: _("{first}; or {second}", first=first, second=second), causes),
    )


def _unusual_rows(runner: Any, batch: Any) -> str:
    """A cause that names the dataset's conversations in `batch` (several, if packed) by their line numbers, as far as
    they are known.
    """
    unknown = _("a row with unusual content")
    tokenizer: Optional[Any] = next((hook.tokenizer for hook in runner.hooks if hasattr(hook, "tokenizer")), None)
    path = Path(str(runner.cfg.get("data_path", "")))
    if tokenizer is None or not path.is_file():
        return unknown
    # Ids below 0 stand for images.
    packs = [[token for token in ids if token >= 0] for ids in batch["data"]["input_ids"].tolist()]
    contents = [_without_spaces(tokenizer.decode(ids)) for ids in packs]
    found = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            turns = json.loads(line)["conversation"]
            texts = [
                _without_spaces(turn[side].replace(IMAGE_TOKEN, "")) for turn in turns for side in ("input", "output")
            ]
            if any(text and text in content for text in texts for content in contents):
                found.append(number)
    if not found:
        return unknown
    rows = ", ".join(map(str, found[:SHOWN_ROWS]))
    if len(found) > SHOWN_ROWS:
        return _(
            "unusual content in these rows: {rows} and {more} more of {file}",
            rows=rows,
            more=len(found) - SHOWN_ROWS,
            file=path,
        )
    return _("unusual content in these rows: {rows} of {file}", rows=rows, file=path)


def _without_spaces(text: str) -> str:
    return "".join(text.split())
