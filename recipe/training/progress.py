"""Progress of training: a live bar on a terminal, a line every tenth of the run elsewhere."""

import time
from typing import Any, Optional

from recipe.core.translation import _
from recipe.training.log_lines import Step


class TrainingProgress:
    """`total`: iterations of the run; `tokens`: of one iteration."""

    def __init__(self, total: int, tokens: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.total, self.tokens = total, tokens
        self.first: Optional[int] = None  # iterations done before the first update: a resumed run starts in the middle
        self.tenth = -1
        self.bar = Progress(
            TextColumn("  " + _("training")), BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.description}"), TimeElapsedColumn(),
            TextColumn(_("left")), TimeRemainingColumn(), transient=True,
        )  # fmt: skip

    def __enter__(self) -> "TrainingProgress":
        self.is_live = self.bar.console.is_terminal
        if self.is_live:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total)
        return self

    def __exit__(self, *_error: Any) -> None:
        if self.is_live:
            self.bar.stop()

    def update(self, iteration: int, step: Step) -> None:
        seconds = step.get("seconds", 0.0)
        shown = f"loss {step['loss']:.4f}  lr {step['lr']:.2e}  "
        shown += f"{self.tokens / seconds:,.0f} tokens/s" if seconds else ""
        shown += f"  {step['memory_mb'] / 1024:.1f} GiB" if "memory_mb" in step else ""
        if self.first is None:
            self.first, self.started = iteration - 1, time.monotonic() - seconds
        if self.is_live:
            self.bar.update(self.task, completed=iteration, description=shown)
        elif iteration * 10 // self.total > self.tenth:
            self.tenth = iteration * 10 // self.total
            left = (time.monotonic() - self.started) / (iteration - self.first) * (self.total - iteration)
            progress = _(
                "training {iteration}/{total}  {figures}  {seconds:.0f} s left",
                iteration=iteration,
                total=self.total,
                figures=shown,
                seconds=left,
            )
            print(f"  {progress}", flush=True)

    def print(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
