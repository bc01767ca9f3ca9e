"""Starts XTuner's own trainer in its own process, shows its progress, and believes only its checkpoint.

The `xtuner` command ends with 0 when its child crashed, so the trainer's file is started directly. Training
that was stopped goes on from its last checkpoint: checkpoints of other settings or data lie in another
folder (checkpoints/<key>), so they are never mixed.
"""

import contextlib
import ctypes
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import config, faults, model, preset
from .errors import HostLacks, RunFailed, Stopped
from .stages import Run, gpus, key_of

# mmengine's log line: Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  …  loss: 2.0068
LINE = re.compile(r"Iter\(train\) \[\s*(\d+)/(\d+)\].*?\blr: ([-+.\deE]+).*?\bloss: ([-+.\deE]+|nan|inf)")
# What we call what mmengine logs, in such a line and in scalars.json: seconds an iteration, MiB of GPU memory
NAMES = {"lr": "lr", "loss": "loss", "time": "seconds", "grad_norm": "grad_norm", "memory": "memory_mb"}
NAME = re.compile(r"iter_(\d+)(?:\.pth)?$")
SAVED = "Stopped by SIGTERM, saved: iteration "  # hooks.Checkpoint says it, with the iteration or "none"
SAVING = 30  # seconds that a stopped trainer gets before it is ended
PR_SET_PDEATHSIG = 1


def preflight(run: Run) -> None:
    """Raise HostLacks for a machine that cannot train this recipe: before the model is downloaded."""
    kind = config.dtype(run.settings)
    if kind == "fp32":
        return
    if not gpus():
        raise HostLacks(
            f"Recipe {run.name} trains in {kind} ({run.settings.train.method}) and needs an NVIDIA GPU; nvidia-smi "
            f"finds none. Without a GPU `just demo` runs everything on a tiny model."
        )


def folder(run: Run) -> Path:
    """Where this run's checkpoints lie: one folder for each config, data and base model."""
    return run.checkpoints / key_of(reads(run))[:12]


def last_checkpoint(place: Path) -> Optional[Path]:
    """The newest whole checkpoint, or None. One that was cut short or damaged does not count.

    The trainer's own note (last_checkpoint) bounds the search: a file newer than it may be half written.
    """
    note = place / "last_checkpoint"
    noted = NAME.search(note.read_text(encoding="utf-8", errors="replace").strip()) if note.is_file() else None
    found = {iteration_of(path): path for path in place.glob("iter_*") if NAME.search(path.name)}
    for iteration in sorted(found, reverse=True):
        if noted and iteration > int(noted[1]):
            continue
        if is_whole(found[iteration]):
            return found[iteration]
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether every part of a file of torch.save (a zip file) has its checksum; of DeepSpeed's folder, of all files."""
    files = sorted(checkpoint.glob("*.pt")) if checkpoint.is_dir() else [checkpoint]
    try:
        for path in files:
            with zipfile.ZipFile(str(path)) as archive:
                if archive.testzip() is not None:
                    return False
    except (zipfile.BadZipFile, OSError, EOFError):
        return False
    return bool(files)


def iteration_of(checkpoint: Path) -> int:
    """Iterations done at `checkpoint` (named iter_N.pth by the trainer)."""
    found = NAME.search(checkpoint.name)
    assert found, checkpoint
    return int(found[1])


def logged(text: str) -> Dict[int, Dict[str, float]]:
    """iteration → {lr, loss, seconds, grad_norm, memory_mb (each absent where it was not logged)}."""
    found = {}
    for line in text.splitlines():
        step = re.search(r"Iter\(train\) \[\s*(\d+)/\d+\]", line)
        if step:
            words = dict(re.findall(r"(\blr|\bloss|\btime|grad_norm|memory): +(\S+)", line))
            found[int(step[1])] = {NAMES[word]: float(value) for word, value in words.items()}
    return found


def read_log(text: str) -> List[Tuple[int, float, float]]:
    """(iteration, learning rate, loss) of every line in which mmengine logged them.

    The loss is mmengine's: the mean over the last 10 iterations. A resumed run logs some iterations again;
    the later line counts.
    """
    found = {int(m[1]): (int(m[1]), float(m[3]), float(m[4])) for m in LINE.finditer(text)}
    return [found[number] for number in sorted(found)]


def state(checkpoint: Path) -> Dict[str, Any]:
    """Iteration, seed and optimizer updates as the checkpoint itself records them."""
    import torch

    path = checkpoint
    if checkpoint.is_dir():  # DeepSpeed's: the first rank's model states carry mmengine's meta
        path = sorted(checkpoint.glob("*model_states.pt"))[0]
    saved = torch.load(str(path), map_location="cpu", weights_only=False)  # ours: mmengine's objects are in it
    if checkpoint.is_dir():
        made = saved["global_steps"]
    else:
        steps = [int(entry["step"]) for entry in saved["optimizer"]["state"].values()]
        made = max(steps, default=0)
    return {"iterations": saved["meta"]["iter"], "seed": saved["meta"]["seed"], "updates": made}


def reads(run: Run) -> Dict[str, Any]:
    place = model.folder(run)
    seed = json.loads(run.plan.read_text(encoding="utf-8"))["seed"]
    return {
        "config": run.config,
        "dataset": run.dataset,
        "model": model.fingerprint(place) if place.is_dir() else "absent",
        "deepspeed": run.settings.train.deepspeed,
        "seed": seed,
    }


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Train to the end. Figures: iterations, updates, peak rate, first and last loss, the checkpoint.

    Raises RunFailed with the trainer's own last words if it ends before the planned last iteration.
    """
    planned = json.loads(run.plan.read_text(encoding="utf-8"))
    place = folder(run)
    place.mkdir(parents=True, exist_ok=True)
    log = place / "train.log"
    start = last_checkpoint(place)
    if start is None or iteration_of(start) < planned["iterations"]:
        _train(run, place, log, start, planned)
    checkpoint = last_checkpoint(place)
    if checkpoint is None or iteration_of(checkpoint) != planned["iterations"]:
        at = f"stopped at {checkpoint.name}" if checkpoint else "left no checkpoint"
        raise RunFailed(f"The trainer {at}, but the plan has {planned['iterations']} iterations. Log: {run.shown(log)}")
    found = state(checkpoint)
    steps = read_log(log.read_text(encoding="utf-8", errors="replace") if log.exists() else "")
    return {
        "checkpoint": run.shown(checkpoint),
        "resumed_from": iteration_of(start) if start else 0,
        "iterations": found["iterations"],
        "updates": found["updates"],
        "seed": found["seed"],
        "lr_peak_logged": max((rate for _, rate, _ in steps), default=0.0),
        "loss_first": steps[0][2] if steps else None,
        "loss_last": steps[-1][2] if steps else None,
        "log": run.shown(log),
        "made": [str(checkpoint.relative_to(run.folder))],
    }


def command(run: Run, place: Path, start: Optional[Path], seed: int) -> List[str]:
    """The trainer's command line: what `xtuner train` starts, without its blind exit code."""
    words = [sys.executable, "-m", "xtuner.tools.train", run.shown(run.config), "--work-dir", run.shown(place)]
    if run.settings.train.deepspeed:
        words += ["--deepspeed", str(preset.deepspeed_config(run.settings.train.deepspeed))]
    if start is not None:
        words += ["--resume", run.shown(start)]
    elif run.settings.train.seed is None:
        words += ["--seed", str(seed)]
    return words


def environment(run: Run) -> Dict[str, str]:
    """For the trainer: what torchrun would tell a single process. Without it DeepSpeed asks MPI, which fails on a
    machine or in a container that has no network. And what cuBLAS needs to sum in the same order every time; and that
    the run's own checkpoints may be read, of which PyTorch 2.6 and newer read no more than tensors unless told.
    """
    own = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    if run.settings.train.deterministic:
        own["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if not run.settings.train.deepspeed or "RANK" in os.environ:
        return {**os.environ, **own}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**os.environ, **own, **alone}


def _die_with_parent() -> None:
    """In the child, before it starts: if we are killed, it must not train on into a folder we have lost."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _train(run: Run, place: Path, log: Path, start: Optional[Path], planned: Dict[str, Any]) -> None:
    words = command(run, place, start, planned["seed"])
    total, tokens = planned["iterations"], planned["tokens_kept"] / planned["iterations_per_epoch"]
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ {' '.join(words)}\n")
        stream.flush()
        killed = faults.oom_kills()
        child = subprocess.Popen(
            words, cwd=str(run.root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            universal_newlines=True, encoding="utf-8", errors="replace", bufsize=1, preexec_fn=_die_with_parent,
            env=environment(run),
        )  # fmt: skip
        wrong = []
        try:
            with _stopping(child) as asked, _progress(total, tokens) as show:
                for line in _lines(child, stream, run.settings.train.timeout * 60, asked):
                    step = LINE.search(line)
                    if step and int(step[2]) != total:
                        wrong.append(int(step[2]))
                        child.kill()
                        break
                    if step:
                        show(int(step[1]), logged(line)[int(step[1])])
            code = child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=SAVING)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise
    if wrong:
        raise RunFailed(
            f"The trainer is going to make {wrong[0]} iterations, the plan says {total}: stopped at "
            f"once. This is a fault of ours; please report it with {run.shown(log)}."
        )
    if asked:
        at = last_checkpoint(place)
        done = iteration_of(at) if at else 0
        if code or done != total:
            kept = f"The checkpoint of iteration {done} of {total} is kept" if at else "There is no checkpoint yet"
            raise Stopped(f"Stopped as asked (SIGTERM). {kept}: resume by typing the same command.")
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2]
        raise RunFailed(
            f"{faults.explain(code, said, run, planned, faults.oom_kills() > killed)} Full log: {run.shown(log)}. "
            f"Checkpoints are kept; the same command goes on from the last one."
        )


@contextlib.contextmanager
def _stopping(child: Any) -> Iterator[List[float]]:
    """SIGTERM to us is told to the trainer, which saves and ends. Yields a list that holds the time of it."""
    asked: List[float] = []

    def ask(*_: Any) -> None:
        if not asked:
            asked.append(time.time())
            child.terminate()

    if threading.current_thread() is not threading.main_thread():  # only there can signals be taken
        yield asked
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _lines(child: Any, copy: Any, patience: float, asked: List[float]) -> Iterator[str]:
    """The trainer's lines, copied to the log. Raises RunFailed after `patience` seconds without one; a trainer that
    was asked to stop and does not is ended.
    """
    lines: Any = queue.Queue()

    def read() -> None:
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    heard = time.time()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            if child.poll() is not None:
                return  # what it started may still hold the pipe
            if asked and time.time() - asked[0] > SAVING:
                child.kill()
            if time.time() - heard > patience:
                child.kill()
                raise RunFailed(
                    f"The trainer has said nothing for {patience / 60:.3g} minutes and was ended: a hung GPU, a lost "
                    f"disk or, on several GPUs, ranks that wait for each other. Checkpoints are kept, the same command "
                    f"goes on from the last one; train.timeout={patience / 30:.3g} waits twice as long."
                )
            continue
        if line is None:
            return
        heard = time.time()
        copy.write(line)
        copy.flush()
        yield line


class _progress:
    """Progress of training: a live bar on a terminal, a line every tenth of the run elsewhere.

    `tokens`: how many one iteration takes.
    """

    def __init__(self, total: int, tokens: float) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.total, self.tokens, self.began, self.said = total, tokens, time.time(), -1
        self.first: Optional[int] = None
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
        """`step`: as `logged` gives it."""
        lr, loss, seconds = step["lr"], step["loss"], step.get("seconds", 0.0)
        speed = f"{self.tokens / seconds:,.0f} tokens/s" if seconds else ""
        speed += f"  {step['memory_mb'] / 1024:.1f} GiB" if "memory_mb" in step else ""
        if self.first is None:  # a resumed run begins in the middle
            self.first, self.began = iteration - 1, time.time() - seconds
        if self.live:
            self.bar.update(self.task, completed=iteration, loss=f"{loss:.4f}", lr=f"{lr:.2e}", speed=speed)
        elif iteration * 10 // self.total > self.said:
            self.said = iteration * 10 // self.total
            left = (time.time() - self.began) / (iteration - self.first) * (self.total - iteration)
            shown = f"loss {loss:.4f}  lr {lr:.2e}  {speed}  {left:.0f} s left"
            print(f"  training {iteration}/{self.total}  {shown}", flush=True)

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.bar.stop()
