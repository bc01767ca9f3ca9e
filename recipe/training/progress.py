"""The bar of a training under way."""

import time
from typing import Any, Callable, Dict, Optional


class Progress:
    """Progress of training: a live bar on a terminal, a line every tenth of the run elsewhere.

    `tokens`: how many one iteration takes.
    """

    def __init__(self, total: int, tokens: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.total, self.tokens, self.began, self.said = total, tokens, time.monotonic(), -1
        self.first: Optional[int] = None
        self.last = 0
        done = TextColumn(
            "{task.completed}/{task.total}  loss {task.fields[loss]}  lr {task.fields[lr]}  {task.fields[speed]}"
        )
        columns = (TextColumn("  training"), BarColumn(), done, TimeElapsedColumn(), TextColumn("left"))
        self.bar = Progress(*columns, TimeRemainingColumn(), transient=True)

    def __enter__(self) -> Callable[..., None]:
        self.live = self.bar.console.is_terminal
        if self.live:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, loss="…", lr="…", speed="")
        return self.show

    def show(self, iteration: int, step: Dict[str, float]) -> None:
        """`step`: as `parse_iterations` gives it."""
        self.last = iteration
        lr, loss, seconds = step["lr"], step["loss"], step.get("seconds", 0.0)
        speed = f"{self.tokens / seconds:,.0f} tokens/s" if seconds else ""
        speed += f"  {step['memory_mb'] / 1024:.1f} GiB" if "memory_mb" in step else ""
        if self.first is None:  # a resumed run begins in the middle
            self.first, self.began = iteration - 1, time.monotonic() - seconds
        if self.live:
            self.bar.update(self.task, completed=iteration, loss=f"{loss:.4f}", lr=f"{lr:.2e}", speed=speed)
        elif iteration * 10 // self.total > self.said:
            self.said = iteration * 10 // self.total
            left = (time.monotonic() - self.began) / (iteration - self.first) * (self.total - iteration)
            shown = f"loss {loss:.4f}  lr {lr:.2e}  {speed}  {left:.0f} s left"
            print(f"  training {iteration}/{self.total}  {shown}", flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.bar.stop()
