"""Stops a run that diverges."""

import json
import math
import statistics
from pathlib import Path
from typing import Any, List, Optional

from mmengine.hooks import Hook

from recipe.core import hardware
from recipe.intake.reader import IMAGE
from recipe.training.failure import TrainingError
from recipe.training.hooks.runner_state import compute_dtype, gradient_norm, is_loss_scale_at_minimum

# A loss or a gradient this many times the median of the last WINDOW iterations has left the run.
LOSS_SPIKE, GRADIENT_EXPLOSION, WINDOW = 3, 1000, 20
# Updates that fp16's loss scaling may skip in a row: from 2^16 it halves its scale once for each.
MAX_SKIPPED_UPDATES = 20


class DivergenceHook(Hook):
    """Stops within one iteration when loss or gradient is no number, or has left the run."""

    priority = "HIGH"  # before evaluation, which fails on weights that are no numbers, and before a checkpoint is made

    def __init__(self) -> None:
        self.losses: List[float] = []
        self.norms: List[float] = []
        self.skipped = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = float(outputs["loss"].detach())
        norm = gradient_norm(runner)
        self._look_at_loss(runner, loss, data_batch)
        self._look_at_gradient(runner, norm, data_batch)
        self.losses = [*self.losses, loss][-WINDOW:]
        if norm is not None and math.isfinite(norm):
            self.norms = [*self.norms, norm][-WINDOW:]

    def _look_at_loss(self, runner: Any, loss: float, batch: Any) -> None:
        if not math.isfinite(loss):
            raise TrainingError(self._text(runner, f"The loss is {loss}", batch))
        usual = statistics.median(self.losses) if len(self.losses) >= WINDOW // 2 else math.inf
        if loss > LOSS_SPIKE * usual and loss > usual + 2:
            raise TrainingError(self._text(runner, f"The loss jumped to {loss:.4g} from {usual:.4g}", batch))

    def _look_at_gradient(self, runner: Any, norm: Optional[float], batch: Any) -> None:
        if norm is None:
            return
        if not math.isfinite(norm):
            self.skipped += 1
            if (
                compute_dtype(runner) != "fp16"
                or self.skipped > MAX_SKIPPED_UPDATES
                or is_loss_scale_at_minimum(runner)
            ):
                times = f" in {self.skipped} updates in a row" if self.skipped > 1 else ""
                raise TrainingError(self._text(runner, f"The gradient is {norm}{times}", batch))
            return
        self.skipped = 0
        usual = statistics.median(self.norms) if len(self.norms) >= WINDOW // 2 else math.inf
        if norm > GRADIENT_EXPLOSION * usual and norm > 1:
            raise TrainingError(
                self._text(runner, f"The gradient exploded: its norm is {norm:.4g}, was {usual:.4g}", batch)
            )

    def _text(self, runner: Any, what: str, batch: Any) -> str:
        rate = max(max(values) for values in runner.optim_wrapper.get_lr().values())
        causes = []
        if compute_dtype(runner) == "fp16":
            has_bf16 = hardware.has_bf16()
            causes.append(
                "fp16 overflows above 65504, and this card has bf16: train.dtype=bf16"
                if has_bf16
                else "fp16 overflows above 65504, and this card has no bf16"
            )
        # The configured rate: the one of this iteration may be a warm-up's.
        causes.append(f"the learning rate is too high ({rate:.3g} now): train.lr={runner.cfg.lr / 4:.3g}")
        rows = dataset_lines(runner, batch)
        causes.append(f"these rows hold something odd: {rows}" if rows else "a row holds something odd")
        return (
            f"{what} at iteration {runner.iter + 1} of {runner.max_iters}. Likely: {'; or '.join(causes)}. "
            f"train.guard=false goes on regardless."
        )


def dataset_lines(runner: Any, batch: Any) -> str:
    """Which lines of the dataset stand in `batch` (packed, so often several), as text; "" if that cannot be told."""
    tokenizer = next((hook.tokenizer for hook in runner.hooks if hasattr(hook, "tokenizer")), None)
    path = Path(str(runner.cfg.get("data_path", "")))
    if tokenizer is None or not path.is_file():
        return ""
    # A sign below 0 stands for an image
    rows = [[token for token in ids if token >= 0] for ids in batch["data"]["input_ids"].tolist()]
    packs = ["".join(tokenizer.decode(ids).split()) for ids in rows]
    found = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            texts = [turn[side] for turn in json.loads(line)["conversation"] for side in ("input", "output")]
            whole = ["".join(text.replace(IMAGE, "").split()) for text in texts]
            if any(text and text in pack for text in whole for pack in packs):
                found.append(number)
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    return f"{', '.join(map(str, found[:20]))}{more} of {path}" if found else ""
