"""What the trainer does beyond XTuner's own: it repeats byte for byte, saves whole checkpoints, and stops early
where going on would be waste.

mmengine hooks, named by the rendered config and built by mmengine; only the trainer's process imports this.
"""

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any, Callable, List, Optional

import numpy
import torch
from mmengine.dist import all_reduce, barrier, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.visualization import WandbVisBackend
from xtuner.engine.hooks import EvaluateChatHook

from recipe.core import hardware
from recipe.core.distributed import HEARTBEAT
from recipe.core.files import remove
from recipe.core.hashing import below
from recipe.intake.reader import IMAGE
from recipe.training.failure import PEER_LOST
from recipe.training.fast import attention
from recipe.training.log_lines import CHECKPOINT_NAME, SAVED, TIME_BREAKDOWN

# Seconds after SIGTERM within which the accumulation under way is finished; spot instances give 30.
GRACE = 20
# A loss or a gradient this many times the median of the last WINDOW iterations has left the run.
SPIKE, EXPLOSION, WINDOW = 3, 1000, 20
# Updates that fp16's loss scaling may skip in a row: from 2^16 it halves its scale once for each.
SKIPPED = 20
# Attention repeats in newer PyTorch if that is strictly asked for: a warning alone leaves it as it is.
STRICT = attention.IS_DETERMINISTIC


class TrainingError(RuntimeError):
    """Training must not go on. The text is one line for the user: what, where, what to do."""


class DeterminismHook(Hook):
    """Makes each iteration's random numbers follow from seed, iteration and rank alone.

    So nothing has to be kept of the generators: a run that was stopped anywhere goes on with the numbers that it
    would have had, whatever was drawn meanwhile (evaluation samples its answers). Algorithms that sum in any order
    are replaced where PyTorch has others.
    """

    priority = "VERY_LOW"  # the last before the forward pass

    def before_run(self, runner: Any) -> None:
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        _determined(strictly=False)
        attention.restrict_kernels(deterministic=True)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        _determined(strictly=STRICT)
        drawn = hashlib.sha256(f"{runner.seed} {runner.iter} {get_rank()}".encode()).digest()
        random.seed(drawn)
        numpy.random.seed(int.from_bytes(drawn[:4], "big"))
        torch.manual_seed(int.from_bytes(drawn[8:16], "big") >> 1)  # every GPU's generator too


class RelaxDeterminismHook(Hook):
    """Between iterations what cannot be repeated is allowed again: the sampling of evaluation's answers, for one."""

    priority = "VERY_HIGH"  # the first after the iteration

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        _determined(strictly=False)


def _determined(strictly: bool) -> None:
    """PyTorch takes algorithms that repeat; what has none raises, or warns in the log."""
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    if hasattr(torch.utils, "deterministic"):  # since PyTorch 2.2: every new tensor would be filled first
        torch.utils.deterministic.fill_uninitialized_memory = False


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
        whole = step % _accumulation(runner) == 0  # gradients that wait for their update are in no checkpoint
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
        told = 0 if self.asked is None else 1 + (time.monotonic() - self.asked > GRACE)
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
                f"The disk is full at iteration {step}: a checkpoint takes {_size(wanted)}, {_size(free)} are free in "
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
        self.size = _settle(part)
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


class WandbBackend(WandbVisBackend):
    """mmengine's, but without the code: it would take every Python file below the working folder, environments too."""

    def add_config(self, config: Any, **_: Any) -> None:
        self.experiment.config.update(config.to_dict())


class ImageChatHook(EvaluateChatHook):
    """XTuner's questions about images, answered in the type that is trained in. Without DeepSpeed its projector is fp32
    and the frozen language model's output head is not, which meet in training's autocast alone.
    """

    def _generate_samples(self, runner: Any, *words: Any, **more: Any) -> None:
        kind = getattr(runner.optim_wrapper, "cast_dtype", None)
        device = next(runner.model.parameters()).device.type
        with torch.autocast(device, dtype=kind, enabled=kind is not None):
            super()._generate_samples(runner, *words, **more)


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
        self.began = time.monotonic() - _age()
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


def _age() -> float:
    """Seconds since this process began, to 0.01 (proc(5), field 22 of stat). Not by the time of day: the kernel tells
    in whole seconds when it booted, and what is reckoned from that is up to one second too old.
    """
    ticks = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


class DedupeEvalHook(Hook):
    """XTuner asks its questions after the last iteration, and at the end of training once more, of the same model: once
    will do. With 7 billion parameters that takes longer than many iterations.
    """

    priority = "VERY_LOW"  # what is asked before the first iteration does not count

    def before_train(self, runner: Any) -> None:
        for hook in runner.hooks:
            if hasattr(hook, "_generate_samples"):
                self._once(hook)

    def _once(self, hook: Any) -> None:
        generate, at_the_end, asked = hook._generate_samples, hook.after_train, []

        def noted(runner: Any, *words: Any, **more: Any) -> None:
            asked.append(runner.iter + 1)
            generate(runner, *words, **more)

        hook._generate_samples = noted
        hook.after_train = lambda runner: None if runner.iter in asked else at_the_end(runner)


class DivergenceHook(Hook):
    """Stops within one iteration when loss or gradient is no number, or has left the run."""

    priority = "HIGH"  # before evaluation, which fails on weights that are no numbers, and before a checkpoint is made

    def __init__(self) -> None:
        self.losses: List[float] = []
        self.norms: List[float] = []
        self.skipped = 0

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        loss = float(outputs["loss"].detach())
        norm = _gradient_norm(runner)
        self._look_at_loss(runner, loss, data_batch)
        self._look_at_gradient(runner, norm, data_batch)
        self.losses = [*self.losses, loss][-WINDOW:]
        if norm is not None and math.isfinite(norm):
            self.norms = [*self.norms, norm][-WINDOW:]

    def _look_at_loss(self, runner: Any, loss: float, batch: Any) -> None:
        if not math.isfinite(loss):
            raise TrainingError(self._text(runner, f"The loss is {loss}", batch))
        usual = statistics.median(self.losses) if len(self.losses) >= WINDOW // 2 else math.inf
        if loss > SPIKE * usual and loss > usual + 2:
            raise TrainingError(self._text(runner, f"The loss jumped to {loss:.4g} from {usual:.4g}", batch))

    def _look_at_gradient(self, runner: Any, norm: Optional[float], batch: Any) -> None:
        if norm is None:
            return
        if not math.isfinite(norm):
            self.skipped += 1
            if _kind(runner) != "fp16" or self.skipped > SKIPPED or _is_scale_spent(runner):
                times = f" in {self.skipped} updates in a row" if self.skipped > 1 else ""
                raise TrainingError(self._text(runner, f"The gradient is {norm}{times}", batch))
            return
        self.skipped = 0
        usual = statistics.median(self.norms) if len(self.norms) >= WINDOW // 2 else math.inf
        if norm > EXPLOSION * usual and norm > 1:
            raise TrainingError(
                self._text(runner, f"The gradient exploded: its norm is {norm:.4g}, was {usual:.4g}", batch)
            )

    def _text(self, runner: Any, what: str, batch: Any) -> str:
        rate = max(max(values) for values in runner.optim_wrapper.get_lr().values())
        causes = []
        if _kind(runner) == "fp16":
            has_bf16 = hardware.has_bf16()
            causes.append(
                "fp16 overflows above 65504, and this card has bf16: train.dtype=bf16"
                if has_bf16
                else "fp16 overflows above 65504, and this card has no bf16"
            )
        # The configured rate: the one of this iteration may be a warm-up's.
        causes.append(f"the learning rate is too high ({rate:.3g} now): train.lr={runner.cfg.lr / 4:.3g}")
        rows = rows_of(runner, batch)
        causes.append(f"these rows hold something odd: {rows}" if rows else "a row holds something odd")
        return (
            f"{what} at iteration {runner.iter + 1} of {runner.max_iters}. Likely: {'; or '.join(causes)}. "
            f"train.guard=false goes on regardless."
        )


def rows_of(runner: Any, batch: Any) -> str:
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


def _accumulation(runner: Any) -> int:
    """Iterations for an update."""
    engine = getattr(runner.model, "model", None)  # DeepSpeed's, in mmengine's wrapper
    if hasattr(engine, "gradient_accumulation_steps"):
        return int(engine.gradient_accumulation_steps())
    return int(runner.optim_wrapper._accumulative_counts)


def _gradient_norm(runner: Any) -> Optional[float]:
    """Norm of this iteration's gradient before clipping, None where there was no update."""
    if (runner.iter + 1) % _accumulation(runner):
        return None
    engine = getattr(runner.model, "model", None)
    if hasattr(engine, "get_global_grad_norm"):
        # DeepSpeed skips an update that overflows, and leaves the norm of the one before it, or 0.
        if getattr(engine.optimizer, "overflow", False):
            return math.inf
        norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm)
    log = runner.message_hub.log_scalars.get("train/grad_norm")
    return None if log is None else float(log.current())


def _is_scale_spent(runner: Any) -> bool:
    """Whether DeepSpeed's scale of the loss is at its minimum: it ends the run when the next update overflows too."""
    scaler = getattr(getattr(getattr(runner.model, "model", None), "optimizer", None), "loss_scaler", None)
    return hasattr(scaler, "min_scale") and float(scaler.cur_scale) <= scaler.min_scale


def _kind(runner: Any) -> str:
    """The compute type: fp16, bf16 or fp32."""
    engine = getattr(runner.model, "model", None)
    if hasattr(engine, "fp16_enabled"):
        return "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    if not hasattr(runner.optim_wrapper, "loss_scaler"):
        return "fp32"
    return "fp16" if "bfloat16" not in str(runner.cfg.optim_wrapper.get("dtype")) else "bf16"


def _settle(path: Path) -> int:
    """Bring a file or folder to the disk before it gets its name; its size in bytes."""
    total = 0
    for file in below(path):
        total += file.stat().st_size
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return total


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
