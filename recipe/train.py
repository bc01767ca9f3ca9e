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
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from . import config, families, faults, llava, loggers, model, ranks, tensor_files
from .errors import HostLacks, RunFailed, Stopped
from .fast import compiler, verdict
from .stages import Run, below, gpus, key_of, write_text

# mmengine's log line: Iter(train) [10/51]  lr: 1.8763e-09  eta: 0:00:49  time: 1.2010  …  loss: 2.0068
LINE = re.compile(r"Iter\(train\) \[\s*(\d+)/(\d+)\].*?\blr: ([-+.\deE]+).*?\bloss: ([-+.\deE]+|nan|inf)")
# What we call what mmengine logs, in such a line and in scalars.json: seconds an iteration, MiB of GPU memory
NAMES = {"lr": "lr", "loss": "loss", "time": "seconds", "grad_norm": "grad_norm", "memory": "memory_mb"}
BEAT = re.compile(ranks.BEAT.format(r"(\d+)", r"(\d+)"))
DEEPSPEED = "deepspeed.json"  # beside the checkpoints: what DeepSpeed is given
NAME = re.compile(r"iter_(\d+)(?:\.pth)?$")
SAVED = "Stopped by SIGTERM, saved: iteration "  # hooks.Checkpoint says it, with the iteration or "none"
WENT = "Seconds: "  # hooks.Clock says it, with what took how many
SAVING = 30  # seconds that a stopped trainer gets before it is ended
PR_SET_PDEATHSIG = 1


def preflight(run: Run) -> None:
    """Raise HostLacks for a machine that cannot train this recipe: before the model is downloaded."""
    loggers.preflight(run)
    kind = config.dtype(run.settings)
    if kind != "fp32" and not gpus():
        hidden = ", or CUDA_VISIBLE_DEVICES hides it" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        raise HostLacks(
            f"Recipe {run.name} trains in {kind} ({families.method(run.settings)}) and needs an NVIDIA GPU; nvidia-smi "
            f"finds none{hidden}. Without a GPU `just demo` runs everything on a tiny model."
        )
    if kind != "fp32" or run.settings.gpus > 1:
        ranks.enough(run.settings)


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
    """Whether every part of a file of torch.save (a zip file) has its checksum; of DeepSpeed's folder, of all files,
    and whether every rank's are there.
    """
    files = sorted(checkpoint.glob("*.pt")) if checkpoint.is_dir() else [checkpoint]
    try:
        for path in files:
            with zipfile.ZipFile(str(path)) as archive:
                if archive.testzip() is not None:
                    return False
    except (zipfile.BadZipFile, OSError, EOFError):
        return False
    return ranks.whole(checkpoint) if checkpoint.is_dir() else True


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


def went(text: str) -> Dict[str, float]:
    """Seconds of the trainer by what took them (start, answers, checkpoints, iterations), all its starts together; {}
    where its log does not tell. Of a start that was killed, those until its last checkpoint.
    """
    total: Dict[str, float] = {}
    for start in text.split("\n$ "):
        for line in re.findall(rf"{WENT}(.*)", start)[-1:]:
            for what, seconds in re.findall(r"(\w+) ([\d.]+)", line):
                total[what] = round(total.get(what, 0.0) + float(seconds), 2)
    return total


def state(checkpoint: Path) -> Dict[str, Any]:
    """Iteration, seed and optimizer updates as the checkpoint itself records them."""
    path = checkpoint
    if checkpoint.is_dir():  # DeepSpeed's: the first rank's model states carry mmengine's meta
        path = sorted(checkpoint.glob("*model_states.pt"))[0]
    saved = tensor_files.torch_file(path)  # of full fine-tuning it has 12 bytes a weight: nothing of them is read
    if checkpoint.is_dir():
        made = saved["global_steps"]
    else:
        steps = [entry["step"] for entry in saved["optimizer"]["state"].values()]  # bitsandbytes' are plain numbers
        made = max((int(step if isinstance(step, int) else step.read()) for step in steps), default=0)
    return {"iterations": saved["meta"]["iter"], "seed": saved["meta"]["seed"], "updates": made}


def reads(run: Run) -> Dict[str, Any]:
    """Where data and model lie is no part of it: what they hold is. So a folder that was moved goes on."""
    place = model.folder(run)
    seed = json.loads(run.plan.read_text(encoding="utf-8"))["seed"]
    return {
        **(llava.reads(run) if families.pictures(run.settings) else {}),
        "config": config.without_places(run.config.read_text(encoding="utf-8")),
        "dataset": run.dataset,
        "model": model.fingerprint(place) if place.is_dir() else "absent",
        "deepspeed": config.deepspeed_text(run.settings),
        "seed": seed,
        # A checkpoint has a part for each rank and goes on with as many.
        **({"ranks": ranks.count(run.settings)} if ranks.count(run.settings) > 1 else {}),
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
        _room(run, place, planned)
        _train(run, place, log, start, planned)
    checkpoint = last_checkpoint(place)
    if checkpoint is None or iteration_of(checkpoint) != planned["iterations"]:
        at = f"stopped at {checkpoint.name}" if checkpoint else "left no checkpoint"
        raise RunFailed(f"The trainer {at}, but the plan has {planned['iterations']} iterations. Log: {run.shown(log)}")
    found = state(checkpoint)
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    compared = verdict.of_log(said)
    return {
        "checkpoint": run.shown(checkpoint),
        "resumed_from": iteration_of(start) if start else 0,
        "iterations": found["iterations"],
        "updates": found["updates"],
        "seed": found["seed"],
        "ranks": ranks.count(run.settings),
        **({"pretrained_pth": llava.began_from(run)} if families.pictures(run.settings) else {}),
        **curve_figures(read_log(said)),
        "went": went(said),
        **({"fast_step": compared} if compared else {}),
        "log": run.shown(log),
        "made": [str(checkpoint.relative_to(run.folder))],
    }


def _room(run: Run, place: Path, planned: Dict[str, Any]) -> None:
    """Raise HostLacks if the disk cannot hold the checkpoints that the plan reckons with."""
    disk = (planned["memory"] or {}).get("disk")
    if not disk:
        return
    there = sum(file.stat().st_size for checkpoint in place.glob("iter_*") for file in below(checkpoint))
    needed, free = disk["checkpoints"] - there, shutil.disk_usage(str(place)).free
    if free < needed:
        raise HostLacks(
            f"The checkpoints need {needed / 1e9:.2f} GB in {place}, {disk['checkpoint'] / 1e9:.2f} GB each, and "
            f"{free / 1e9:.2f} GB are free. train.save_total_limit=1 keeps one and needs room for two, "
            f"train.save_steps={planned['iterations']} --force makes one at the end alone; else free some, or "
            "name another folder with --output."
        )


def curve_figures(steps: List[Tuple[int, float, float]]) -> Dict[str, Any]:
    """What the manifest holds of the log's lines."""
    return {
        "lr_peak_logged": max((rate for _, rate, _ in steps), default=0.0),
        "loss_first": steps[0][2] if steps else None,
        "loss_last": steps[-1][2] if steps else None,
    }


def command(run: Run, place: Path, start: Optional[Path], seed: int) -> List[str]:
    """The trainer's command line: what `xtuner train` starts, without its blind exit code; for several ranks under
    torchrun.
    """
    if ranks.count(run.settings) > 1:
        words = [sys.executable, "-m", *ranks.launcher(run.settings)]
    else:
        words = [sys.executable, "-m", "recipe.trainer"]
    words += [run.shown(run.config), "--work-dir", run.shown(place)]
    if ranks.count(run.settings) > 1:
        words += ["--launcher", "pytorch"]
    if config.deepspeed(run.settings):
        words += ["--deepspeed", run.shown(place / DEEPSPEED)]
    if start is not None:
        words += ["--resume", run.shown(start)]
    elif run.settings.train.seed is None:
        words += ["--seed", str(seed)]
    return words


# On a CPU tensors of hundreds of MB come and go in every iteration. Unless told to keep their memory, glibc gives it
# back to the kernel, which fills it with zeros again: half of an iteration's time where the vocabulary is InternLM2's
# (5.0 s and 2.4 s side by side). In exchange the heap has gaps: half as much memory again.
HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


def environment(run: Run) -> Dict[str, str]:
    """For the trainer: what torchrun would tell a single process. Without it DeepSpeed asks MPI, which fails on a
    machine or in a container that has no network. And what cuBLAS needs to sum in the same order every time; and that
    the run's own checkpoints may be read, of which PyTorch 2.6 and newer read no more than tensors unless told.
    """
    own = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    if not gpus():
        own.update(HEAP)
    if run.settings.train.deterministic:
        own["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if ranks.count(run.settings) > 1:
        # torchrun tells each rank the rest, and warns if it has to choose the number of threads
        threads = max(1, (os.cpu_count() or 1) // run.settings.gpus)
        return {"OMP_NUM_THREADS": str(threads), **os.environ, **own}
    if not config.deepspeed(run.settings) or "RANK" in os.environ:
        return {**os.environ, **own}
    port = str(ranks.free_port())
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **own, **alone}


def _die_with_parent() -> None:
    """In the child, before it starts: if we are killed, it must not train on into a folder we have lost."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _train(run: Run, place: Path, log: Path, start: Optional[Path], planned: Dict[str, Any]) -> None:
    words = command(run, place, start, planned["seed"])
    if config.deepspeed(run.settings):
        write_text(place / DEEPSPEED, config.deepspeed_text(run.settings))
    total, tokens = planned["iterations"], planned["tokens_kept"] / planned["iterations_per_epoch"]
    run.tell(log=str(log.relative_to(run.folder)))
    if config.speed(run.settings) != "stock" and gpus() and compiler.fault():
        print(compiler.notice(), file=sys.stderr, flush=True)
    wrong: List[int] = []

    progress = Progress(total, tokens)
    with progress as show:

        def look(line: str) -> bool:
            step, compared = LINE.search(line), verdict.of_line(line)
            if compared and not compared["passed"]:
                progress.say(f"  {verdict.failure(compared)}")
            if step and int(step[2]) != total:
                wrong.append(int(step[2]))
            elif step:
                show(int(step[1]), logged(line)[int(step[1])])
            return bool(wrong)

        try:
            code, asked, faulted = _started(run, words, log, look)
        except RunFailed as error:
            raise RunFailed(f"{error} {_kept(place)}")
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
        raise RunFailed(f"{_failed(run, code, log, planned, faulted)} {_kept(place)}")


def join(run: Run) -> str:
    """On a machine other than the first: train with it, by what it says; a word on how that ended.

    Nothing but this machine's log is written here: the first runs all stages, in a folder that both see.
    """
    preflight(run)
    here = ranks.node(run.settings)
    assert here is not None
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / f"node-{here.rank}.log"
    words = [sys.executable, "-m", *ranks.launcher(run.settings)]
    print(f"node     {here.rank} of {run.settings.nodes}: waits for {here.address}, port {here.port}", flush=True)
    if not _opens(run, here):
        return f"{here.address} has ended without training: nothing to join."
    said: List[Tuple[int, int]] = []

    def look(line: str) -> bool:
        found = BEAT.search(line)
        if found:
            now, total = int(found[1]), int(found[2])
            if not said or now * 10 // total > said[-1][0] * 10 // total:
                print(f"  iteration {now}/{total}", flush=True)
            said.append((now, total))
        return False

    code, asked, faulted = _started(run, words, log, look)
    reached = f"iteration {said[-1][0]} of {said[-1][1]}" if said else "no iteration"
    if asked:
        raise Stopped(f"Stopped as asked (SIGTERM) at {reached}: resume by typing the same command on all machines.")
    if code:
        raise RunFailed(_failed(run, code, log, {}, faulted))
    return f"Ended at {reached}. What became of it is said by {here.address}, which also makes the adapter."


def _opens(run: Run, here: ranks.Node) -> bool:
    """Wait until the first machine begins to train; False if it ended without. Raises RunFailed after train.timeout."""
    manifest = run.folder / "run.json"
    before = manifest.stat().st_mtime_ns if manifest.exists() else 0
    until = time.monotonic() + run.settings.train.timeout * 60
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((here.address, here.port), timeout=5):
            return True
        if manifest.exists() and manifest.stat().st_mtime_ns != before:  # it was at work since: is it still?
            with contextlib.suppress(HostLacks), run.open():
                return False
        time.sleep(2)
    raise RunFailed(
        f"{here.address} did not begin to train within {run.settings.train.timeout:g} minutes at port {here.port}. "
        f"Start it there, look whether that port is reached from here, or give both more time: train.timeout=120."
    )


def _failed(run: Run, code: int, log: Path, planned: Dict[str, Any], faulted: Tuple[bool, List[str]]) -> str:
    oom_killed, xids = faulted
    said = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2] + "".join(f"{x}\n" for x in xids)
    return f"{faults.explain(code, said, run, planned, oom_killed)} Full log: {run.shown(log)}."


def _kept(place: Path) -> str:
    """Where the same command goes on."""
    at = last_checkpoint(place)
    if at is None:
        return "There is no checkpoint yet: the same command starts from the beginning."
    return f"The checkpoint of iteration {iteration_of(at)} is kept; the same command goes on from it."


def _started(
    run: Run, words: List[str], log: Path, look: Callable[[str], bool]
) -> Tuple[int, List[float], Tuple[bool, List[str]]]:
    """Run the trainer to its end, its lines copied to `log`; it is ended when `look`, which gets each, says True.

    Returns its exit code, the time at which SIGTERM asked us to stop ([] if it did not), and of the kernel whether it
    ended a process for memory meanwhile and what it said of the GPU.
    """
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ {' '.join(words)}\n")
        stream.flush()
        killed, before = faults.oom_kills(), faults.xids()
        child = subprocess.Popen(
            words, cwd=str(run.root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            universal_newlines=True, encoding="utf-8", errors="replace", bufsize=1, preexec_fn=_die_with_parent,
            env={**environment(run), **loggers.environment(run)},
        )  # fmt: skip
        try:
            with _stopping(child) as asked:
                for line in _lines(child, stream, run.settings.train.timeout * 60, asked):
                    if run.settings.nodes > 1 and faults.RANK_ENDED.search(line):
                        # torchrun would wait 5 minutes for the other machines, and asked to end it may hang for good
                        child.kill()  # its ranks here end with it
                    if look(line):
                        child.kill()
                        break
            code = child.wait()
            return code, asked, (faults.oom_kills() > killed, [x for x in faults.xids() if x not in before])
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=SAVING)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


@contextlib.contextmanager
def _stopping(child: Any) -> Iterator[List[float]]:
    """SIGTERM to us is told to the trainer, which saves and ends. Yields a list that holds the time of it."""
    asked: List[float] = []

    def ask(*_: Any) -> None:
        if not asked:
            asked.append(time.monotonic())
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
    heard = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            if child.poll() is not None:
                return  # what it started may still hold the pipe
            if asked and time.monotonic() - asked[0] > SAVING:
                child.kill()
            if time.monotonic() - heard > patience:
                child.kill()
                raise RunFailed(
                    f"The trainer has said nothing for {patience / 60:.3g} minutes and was ended: a hung GPU, a lost "
                    f"disk or, on several GPUs or machines, ranks that wait for each other. "
                    f"train.timeout={patience / 30:.3g} waits twice as long."
                )
            continue
        if line is None:
            return
        heard = time.monotonic()
        copy.write(line)
        copy.flush()
        yield line


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
        """`step`: as `logged` gives it."""
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
