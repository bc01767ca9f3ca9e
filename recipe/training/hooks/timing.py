"""Where the trainer's seconds go."""

import os
import time
from pathlib import Path
from typing import Any, Callable

from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook

from recipe.core.distributed import HEARTBEAT
from recipe.training.log_lines import TIME_BREAKDOWN


class HeartbeatHook(Hook):
    """On machines other than the first: a word for each iteration. All that mmengine logs is rank 0's, and a trainer
    that says nothing counts as hung.
    """

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_rank() and os.environ.get("LOCAL_RANK") == "0":
            print(HEARTBEAT.format(runner.iter + 1, runner.max_iters), flush=True)


class TimingHook(Hook):
    """Says in the log where the trainer's seconds have gone since its process began: whenever a checkpoint stands, and
    at the end.
    """

    priority = "VERY_LOW"  # after evaluation's last answers

    def __init__(self) -> None:
        self.began = time.monotonic() - process_age()
        self.spent = {"start": 0.0, "answers": 0.0, "checkpoints": 0.0}

    def before_run(self, runner: Any) -> None:
        for hook in runner.hooks:
            if hasattr(hook, "_generate_samples"):  # XTuner's EvaluateChatHook
                hook._generate_samples = self._timed("answers", hook._generate_samples)
            if isinstance(hook, CheckpointHook):
                save = self._timed("checkpoints", hook._save_checkpoint)
                hook._save_checkpoint = lambda *words, save=save, **more: (save(*words, **more), self._say(runner))[0]

    def before_train(self, runner: Any) -> None:
        self.spent["start"] = time.monotonic() - self.began - self.spent["answers"]

    def after_train(self, runner: Any) -> None:
        self._say(runner)

    def _timed(self, what: str, does: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*words: Any, **more: Any) -> Any:
            before = time.monotonic()
            try:
                return does(*words, **more)
            finally:
                self.spent[what] += time.monotonic() - before

        return timed

    def _say(self, runner: Any) -> None:
        rest = time.monotonic() - self.began - sum(self.spent.values())
        breakdown = {**self.spent, "iterations": rest}
        runner.logger.info(
            f"{TIME_BREAKDOWN}{', '.join(f'{what} {seconds:.2f}' for what, seconds in breakdown.items())}"
        )


def process_age() -> float:
    """Seconds since this process began, to 0.01 (proc(5), field 22 of stat). Not by the time of day: the kernel tells
    in whole seconds when it booted, and what is reckoned from that is up to one second too old.
    """
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
