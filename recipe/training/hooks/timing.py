"""Logs progress of machines other than the first, and where the trainer's time goes."""

import os
import time
from pathlib import Path
from typing import Any, Callable

from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, Hook

from recipe.core.distributed import HEARTBEAT
from recipe.training.log_lines import TIME_BREAKDOWN
from recipe.training.process import STARTED


class HeartbeatHook(Hook):
    """Prints a line per iteration on the other machines, where mmengine logs nothing and silence counts as a hang."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if get_rank() and os.environ.get("LOCAL_RANK") == "0":
            print(HEARTBEAT.format(runner.iter + 1, runner.max_iters), flush=True)


class TimingHook(Hook):
    """Logs the seconds since the process started, by what took them, at every checkpoint and at the end."""

    priority = "VERY_LOW"  # after the last evaluation

    def __init__(self) -> None:
        self.started = time.monotonic() - training_age()
        self.seconds = {"start": 0.0, "answers": 0.0, "checkpoints": 0.0}

    def before_run(self, runner: Any) -> None:
        for hook in runner.hooks:
            if hasattr(hook, "_generate_samples"):  # XTuner's EvaluateChatHook
                hook._generate_samples = self._timed("answers", hook._generate_samples)
            if isinstance(hook, CheckpointHook):
                hook._save_checkpoint = self._logged(runner, self._timed("checkpoints", hook._save_checkpoint))

    def before_train(self, runner: Any) -> None:
        self.seconds["start"] = time.monotonic() - self.started - self.seconds["answers"]

    def after_train(self, runner: Any) -> None:
        self._log(runner)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            before = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.monotonic() - before

        return timed

    def _logged(self, runner: Any, save: Callable[..., Any]) -> Callable[..., None]:
        def logged(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            self._log(runner)

        return logged

    def _log(self, runner: Any) -> None:
        rest = time.monotonic() - self.started - sum(self.seconds.values())
        parts = {**self.seconds, "iterations": rest}
        runner.logger.info(TIME_BREAKDOWN + ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items()))


def training_age() -> float:
    """Seconds since this process started, or since it was given its arguments."""
    given = os.environ.get(STARTED)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - float(given) if given else process_age()


def process_age() -> float:
    """Seconds since this process started, to 0.01 (field 22 of /proc/self/stat).

    Not from the wall clock: the kernel gives its boot time in whole seconds, so that would be up to a second off.
    """
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
