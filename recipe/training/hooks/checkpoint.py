"""Saves checkpoints atomically, and once more when the trainer is asked to stop."""

import os
import re
import shutil
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional, Tuple

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook

from recipe.core.files import remove, write_text
from recipe.core.hashing import below
from recipe.core.translation import _, english
from recipe.training.failure import PEER_LOST, TrainingError
from recipe.training.hooks.runner_state import accumulation_steps
from recipe.training.log_lines import CHECKPOINT_NAME, SAVED

# Seconds after SIGTERM in which the current update may still be finished; spot instances give 30.
GRACE_SECONDS = 20
OPTIMIZER_BYTES = 16  # per trained parameter: an estimate until the first checkpoint has been saved


class AtomicCheckpointHook(CheckpointHook):
    """mmengine's hook, but it renames a finished checkpoint into place, prunes older ones only then, and saves on
    SIGTERM. Its errors are English: the trainer's log carries them to the user.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop_requested_at: Optional[float] = None
        self.size = 0  # bytes of the last checkpoint
        self._writer = ThreadPoolExecutor(1)
        self._pending: Optional[Future[None]] = None

    def before_run(self, runner: Any) -> None:
        signal.signal(signal.SIGTERM, self._request_stop)

    def _request_stop(self, *_signal: Any) -> None:
        self.stop_requested_at = self.stop_requested_at or time.monotonic()

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        # An evaluation in progress ends at its next token when a stop is requested.
        for hook in runner.hooks:
            getattr(hook, "stop_criteria", []).append(lambda ids, scores, **_more: self.stop_requested_at is not None)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self._pending and self._pending.done():
            self._wait()  # a full disk ends the training here, not at the next checkpoint
        is_requested, is_overdue = self._stop_state()
        step = runner.iter + 1
        # A checkpoint does not hold accumulated gradients: it is only saved after an update.
        is_updated = step % accumulation_steps(runner) == 0
        if not is_requested or not (is_updated or is_overdue):
            return
        if is_updated and self.last_ckpt != self._path(step):
            self._save_checkpoint(runner)
        self._wait()
        runner.logger.info(f"{SAVED}{step if is_updated else 'none'}")
        raise SystemExit(0)

    def after_train(self, runner: Any) -> None:
        super().after_train(runner)
        self._wait()

    def _path(self, step: int) -> str:
        return str(Path(self.out_dir, self.filename_tmpl.format(step)))

    def _stop_state(self) -> Tuple[bool, bool]:
        """(whether any rank was asked to stop, whether its grace period is over), the same on all ranks."""
        state = 0 if self.stop_requested_at is None else 1 + (time.monotonic() - self.stop_requested_at > GRACE_SECONDS)
        if get_world_size() > 1:
            highest = torch.tensor(state, device="cuda" if torch.cuda.is_available() else "cpu")
            all_reduce(highest, "max")
            state = int(highest.item())
            if state:
                self._request_stop()
        return state > 0, state > 1

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: Any) -> None:
        folder = Path(self.out_dir)
        name = self.filename_tmpl.format(step)
        part = folder / f".{name}.part"
        self._wait()
        barrier()  # the first rank has pruned: no other finds the disk full before
        self._check_disk(runner, step)
        if is_main_process():
            for left in folder.glob(".iter_*.part"):  # of a trainer that was killed
                remove(left)
        barrier()
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir, part.name, None, save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
                backend_args=self.backend_args, **self.args,
            )  # fmt: skip
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError when the disk is full
            remove(part)
            if re.search(PEER_LOST, str(error)):  # DeepSpeed's ranks synchronize while saving
                raise
            with english():
                raise TrainingError(
                    _(
                        "The checkpoint of iteration {iteration} could not be written to {folder}: {error}",
                        iteration=step,
                        folder=folder,
                        error=f"{error}.",
                    )
                )
        barrier()
        if is_main_process():
            # Training goes on while the disk writes. Until then the checkpoint does not bear its name.
            self._pending = self._writer.submit(self._publish, part, folder / name)

    def _publish(self, part: Path, place: Path) -> None:
        """Flush a checkpoint to disk and give it its name."""
        self.size = _sync_to_disk(part)
        remove(place)  # it must be damaged: training would have resumed from an intact one
        os.replace(str(part), str(place))
        write_text(place.parent / "last_checkpoint", str(place))
        self._prune(place.parent)

    def _wait(self) -> None:
        """Wait for the last checkpoint. Raises what its writing raised."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _check_disk(self, runner: Any, step: int) -> None:
        trained = (parameter for parameter in runner.model.parameters() if parameter.requires_grad)
        # Under ZeRO-3 a parameter is empty and has its size in ds_numel.
        needed = self.size or OPTIMIZER_BYTES * sum(getattr(one, "ds_numel", one.numel()) for one in trained)
        free = shutil.disk_usage(self.out_dir).free
        if free < 1.05 * needed:
            with english():
                raise TrainingError(
                    _(
                        "The disk is full at iteration {iteration}: a checkpoint needs {needed}, and {folder} has "
                        "{free} free. Free some space.",
                        iteration=step,
                        needed=_format_size(needed),
                        folder=self.out_dir,
                        free=_format_size(free),
                    )
                )

    def _prune(self, folder: Path) -> None:
        if self.max_keep_ckpts > 0:
            named = [(CHECKPOINT_NAME.search(path.name), path) for path in folder.glob("iter_*")]
            saved = sorted((int(match[1]), path) for match, path in named if match)
            for _iteration, path in saved[: -self.max_keep_ckpts]:
                remove(path)


def _sync_to_disk(path: Path) -> int:
    """Flush a file or folder to disk before it is renamed; returns its size in bytes."""
    total = 0
    for file in below(path):
        total += file.stat().st_size
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return total


def _format_size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
