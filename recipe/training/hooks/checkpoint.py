"""Checkpoints that are whole or absent."""

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook

from recipe.core.files import remove
from recipe.core.hashing import below
from recipe.training.failure import PEER_LOST, TrainingError
from recipe.training.hooks.runner_state import accumulation_steps
from recipe.training.log_lines import CHECKPOINT_NAME, SAVED

# Seconds after SIGTERM within which the accumulation under way is finished; spot instances give 30.
GRACE_SECONDS = 20


class AtomicCheckpointHook(CheckpointHook):
    """mmengine's, but written beside and renamed, pruned only when the new one stands, and made on SIGTERM too."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.asked: Optional[float] = None  # when SIGTERM came
        self.size = 0  # bytes of the last checkpoint

    def before_run(self, runner: Any) -> None:
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = self.asked or time.monotonic()

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        # Answers that evaluation is generating end with the next token when we are asked to stop.
        for hook in runner.hooks:
            getattr(hook, "stop_criteria", []).append(lambda ids, scores, **_: self.asked is not None)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        told = self._told()
        step = runner.iter + 1
        whole = step % accumulation_steps(runner) == 0  # gradients that wait for their update are in no checkpoint
        if not told or (not whole and told == 1):
            return
        if whole and self.last_ckpt != self._path(step):
            self._save_checkpoint(runner)
        runner.logger.info(f"{SAVED}{step if whole else 'none'}")
        raise SystemExit(0)

    def _path(self, step: int) -> str:
        return str(Path(self.out_dir, self.filename_tmpl.format(step)))

    def _told(self) -> int:
        """0: nobody was told to stop, 1: some rank was, 2: and the time to finish an accumulation is over. The same
        on all ranks, since all must do the same.
        """
        told = 0 if self.asked is None else 1 + (time.monotonic() - self.asked > GRACE_SECONDS)
        if get_world_size() == 1:
            return told
        most = torch.tensor(told, device="cuda" if torch.cuda.is_available() else "cpu")
        all_reduce(most, "max")
        if most.item():
            self._ask()
        return int(most.item())

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: Any) -> None:
        folder = Path(self.out_dir)
        name = self.filename_tmpl.format(step)
        part = folder / f".{name}.part"
        wanted = self.size or 16 * sum(
            getattr(p, "ds_numel", p.numel()) for p in runner.model.parameters() if p.requires_grad
        )
        free = shutil.disk_usage(str(folder)).free
        if free < 1.05 * wanted:
            raise TrainingError(
                f"The disk is full at iteration {step}: a checkpoint takes {_format_size(wanted)}, {_format_size(free)} are free in "
                f"{folder}. Free some."
            )
        if is_main_process():
            remove(part)
        barrier()
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir, part.name, None, save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
                backend_args=self.backend_args, **self.args,
            )  # fmt: skip
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk by a RuntimeError
            remove(part)
            if re.search(PEER_LOST, str(error)):  # DeepSpeed's ranks wait for each other here
                raise
            raise TrainingError(f"The checkpoint of iteration {step} could not be written to {folder}: {error}.")
        barrier()
        if not is_main_process():
            return
        self.size = _sync_to_disk(part)
        remove(folder / name)  # one that was damaged: a whole one would not have been made again
        os.replace(str(part), str(folder / name))
        note = folder / "last_checkpoint"
        note.with_name(".last_checkpoint.part").write_text(self.last_ckpt, encoding="utf-8")
        os.replace(str(note.with_name(".last_checkpoint.part")), str(note))
        if self.max_keep_ckpts > 0:
            made = sorted(
                (int(m[1]), path) for path in folder.glob("iter_*") for m in [CHECKPOINT_NAME.search(path.name)] if m
            )
            for _, path in made[: -self.max_keep_ckpts]:
                remove(path)


def _sync_to_disk(path: Path) -> int:
    """Bring a file or folder to the disk before it gets its name; its size in bytes."""
    total = 0
    for file in below(path):
        total += file.stat().st_size
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return total


def _format_size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
