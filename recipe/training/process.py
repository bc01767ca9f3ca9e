"""Runs XTuner's trainer as a process: its command line, its output, its end.

The `xtuner` command exits with 0 even when its child crashed, so the trainer's module is started directly.
"""

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

from recipe.core import compiler, distributed, hardware
from recipe.core.errors import HostLacks, RunFailed, Stopped
from recipe.core.files import write_text
from recipe.core.host import gpus
from recipe.core.run import Run
from recipe.core.translation import _, sentences
from recipe.training import failure
from recipe.training.checkpoints import describe_last, iteration_of, last_checkpoint
from recipe.training.fast import verdict
from recipe.training.log_lines import ITERATION, parse_iterations
from recipe.training.progress import TrainingProgress
from recipe.xtuner import loggers, step_choice

TRAINER = [sys.executable, "-m", "recipe.training.entry"]
DEEPSPEED_FILE = "deepspeed.json"  # DeepSpeed's configuration, beside the checkpoints

STARTED = "RECIPE_TRAINING_STARTED"  # when a waiting trainer was given its arguments, in seconds of CLOCK_BOOTTIME

LARGE_CARD = 40000  # MiB that are free

COMPILE_TIMEOUT = 120  # seconds

STOP_TIMEOUT = 30  # seconds from asking the trainer to stop until it is killed

PR_SET_PDEATHSIG = 1

# On a CPU, every iteration allocates and frees tensors of hundreds of MB. By default glibc returns that memory to the
# kernel, which zeroes it again: with InternLM2's vocabulary half of an iteration's time (5.0 s instead of 2.4 s).
# Keeping it fragments the heap, which takes half as much memory again.
MALLOC_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


class TrainerEnd(NamedTuple):
    """How the trainer's process ended."""

    code: int  # negative: killed by that signal
    is_stopped: bool  # whether we got SIGTERM and passed it on
    oom_killed: bool  # whether the kernel killed a process for memory meanwhile
    xids: List[str]  # the kernel's new messages about GPU faults


def command(run: Run, place: Path, start: Optional[Path], seed: int) -> List[str]:
    """The trainer's command line, through torchrun for several ranks. `start`: the checkpoint to resume from."""
    several = distributed.count(run.settings) > 1
    words = [sys.executable, "-m", *distributed.launcher(run.settings)] if several else [*TRAINER]
    words += [run.relative(run.config), "--work-dir", run.relative(place)]
    if several:
        words += ["--launcher", "pytorch"]
    if step_choice.deepspeed(run.settings):
        words += ["--deepspeed", run.relative(place / DEEPSPEED_FILE)]
    if start is not None:
        words += ["--resume", run.relative(start)]
    elif run.settings.train.seed is None:
        words += ["--seed", str(seed)]
    return words


def environment(run: Run) -> Dict[str, str]:
    """The trainer's environment variables."""
    # PyTorch 2.6 and newer read only tensors from a checkpoint by default; these checkpoints are the run's own.
    # Programs read its log, which is English; what users see of it is translated when it is shown.
    own = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "RECIPE_LANG": "en"}
    if not gpus():
        own.update(MALLOC_SETTINGS)
    if run.settings.train.deterministic:
        own["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if distributed.count(run.settings) > 1:
        # torchrun sets the rest for each rank, and warns if it has to choose the number of threads.
        threads = max(1, (os.cpu_count() or 1) // run.settings.gpus)
        return {"OMP_NUM_THREADS": str(threads), **os.environ, **own}
    if step_choice.deepspeed(run.settings) and "RANK" not in os.environ:
        # What torchrun would set. Without it DeepSpeed asks MPI, which fails without a network. Port 0 is whichever is
        # free when PyTorch takes it: one chosen here could be taken by another trainer until then.
        own.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    return {**os.environ, **own}


class EarlyTrainer(NamedTuple):
    """A trainer that was started before its arguments were known. `own`: the variables that were set for it;
    `compiler`: the process that compiles its kernels.
    """

    child: "subprocess.Popen[str]"
    own: Dict[str, str]
    compiler: "Optional[subprocess.Popen[str]]"


_early: Dict[Path, EarlyTrainer] = {}  # by the run's folder


@contextlib.contextmanager
def started_early(
    run: Run, words: List[str], expected: Dict[str, Any], compiling: Sequence[str] = ()
) -> Iterator[None]:
    """Within the block, `words` runs and waits for a trainer's arguments; `run_trainer` gives them to it.

    `expected`: a line of JSON that it gets first, and so does `compiling`, which compiles kernels meanwhile.
    """
    variables = _environment(run)
    child = compiler = None
    try:
        with contextlib.suppress(OSError):  # the training will start its own, or say why it cannot
            child = _start(run, words, variables, subprocess.PIPE)
            _send(child, expected)
            if compiling:
                compiler = _start(run, list(compiling), variables, subprocess.PIPE, subprocess.DEVNULL)
                _send(compiler, expected)
        if child:
            _early[run.folder] = EarlyTrainer(child, _own(variables), compiler)
        yield
    finally:
        if _early.pop(run.folder, None) and child:
            _end(child)
        if compiler:
            _end(compiler)


def _send(child: "subprocess.Popen[str]", line: Dict[str, Any]) -> bool:
    """Write a line of JSON to a waiting trainer; False if it has ended."""
    assert child.stdin
    try:
        child.stdin.write(json.dumps(line) + "\n")
        child.stdin.flush()
    except OSError:
        return False
    return True


def _end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.wait()
    for stream in filter(None, (child.stdin, child.stdout)):
        with contextlib.suppress(OSError):
            stream.close()


def _take_early(run: Run, words: List[str], variables: Dict[str, str]) -> "Optional[subprocess.Popen[str]]":
    """The trainer that was started early, now with its arguments; None if there is none for these words."""
    trainer = _early.pop(run.folder, None)
    if trainer is None:
        return None
    is_taken = False
    try:
        if trainer.compiler:
            _wait_for_card(trainer.compiler)
        if words[:3] == TRAINER and _own(variables) == trainer.own and trainer.child.poll() is None:
            given = {"arguments": words[3:], "sent": time.clock_gettime(time.CLOCK_BOOTTIME)}
            is_taken = _send(trainer.child, given)
    finally:
        if not is_taken:
            _end(trainer.child)
    return trainer.child if is_taken else None


def _wait_for_card(compiler: "subprocess.Popen[str]") -> None:
    """Wait until the kernels are compiled, where the card may not do for both processes. Ends what takes too long."""
    if compiler.poll() is not None:
        return
    card = next(iter(hardware.visible(hardware.query()[0])), None)
    if card is None or (card.free or 0) < LARGE_CARD or card.mode != "Default":
        try:
            compiler.wait(timeout=COMPILE_TIMEOUT)
        except subprocess.TimeoutExpired:
            _end(compiler)


def _start(
    run: Run, words: List[str], variables: Dict[str, str], stdin: int, stdout: int = subprocess.PIPE
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words, cwd=str(run.root), stdout=stdout, stderr=subprocess.STDOUT, stdin=stdin,
        universal_newlines=True, encoding="utf-8", errors="replace", bufsize=1, preexec_fn=_die_with_parent,
        env=variables,
    )  # fmt: skip


def _environment(run: Run) -> Dict[str, str]:
    return {**environment(run), **loggers.environment(run)}


def _own(variables: Dict[str, str]) -> Dict[str, str]:
    """Those that are not this process's, to which imports add some."""
    return {name: value for name, value in variables.items() if os.environ.get(name) != value}


def run_trainer(run: Run, place: Path, log: Path, start: Optional[Path], planned: Dict[str, Any]) -> None:
    """Train from `start` to the end, or stop on SIGTERM. `planned`: plan.json.

    Raises RunFailed with the cause, Stopped if asked to stop before the last iteration.
    """
    total = planned["iterations"]
    words = command(run, place, start, planned["seed"])
    if step_choice.deepspeed(run.settings):
        write_text(place / DEEPSPEED_FILE, step_choice.deepspeed_text(run.settings))
    run.update_status(log=str(log.relative_to(run.folder)))
    if step_choice.speed(run.settings) != "stock" and gpus() and compiler.fault():
        print(compiler.notice(), file=sys.stderr, flush=True)
    with TrainingProgress(total, planned["tokens_kept"] / planned["iterations_per_epoch"]) as progress:

        def on_line(line: str) -> None:
            iteration, compared = ITERATION.search(line), verdict.parse_line(line)
            if compared and not compared["passed"]:
                progress.print(f"  {verdict.failure_message(compared)}")
            if iteration and int(iteration[2]) != total:
                raise RunFailed(
                    _(
                        "The trainer would run {found} iterations, but the plan has {planned}: stopped. This is a bug "
                        "in this project; please report it with {log}.",
                        found=iteration[2],
                        planned=total,
                        log=run.relative(log),
                    )
                )
            if iteration:
                progress.update(int(iteration[1]), parse_iterations(line)[int(iteration[1])])

        try:
            end = run_process(run, words, log, on_line)
        except SilentTrainer as error:
            raise RunFailed(sentences(str(error), _resume_message(place)))
    if end.is_stopped:
        last = last_checkpoint(place)
        if end.code or last is None or iteration_of(last) != total:
            raise Stopped(
                _(
                    "Stopped as asked (SIGTERM). {kept}: resume by typing the same command.",
                    kept=describe_last(place),
                )
            )
    if end.code:
        raise RunFailed(sentences(failure_message(run, end, log, planned), _resume_message(place)))


def _resume_message(place: Path) -> str:
    return _("{kept}: the same command resumes the run.", kept=describe_last(place))


def wait_for_first_node(run: Run, here: distributed.Node) -> bool:
    """Wait until the first machine starts training; False if it ended before. Raises RunFailed after train.timeout."""
    manifest = run.folder / "run.json"
    before = manifest.stat().st_mtime_ns if manifest.exists() else 0
    deadline = time.monotonic() + run.settings.train.timeout * 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((here.address, here.port), timeout=5):
            return True
        if manifest.exists() and manifest.stat().st_mtime_ns != before:  # it has started: is it still running?
            with contextlib.suppress(HostLacks), run.open():
                return False
        time.sleep(2)
    raise RunFailed(
        _(
            "{address} did not start training within {minutes:g} minutes at port {port}. Start it there, check that "
            "this machine reaches that port, or give both more time: train.timeout=120.",
            address=here.address,
            minutes=run.settings.train.timeout,
            port=here.port,
        )
    )


def failure_message(run: Run, end: TrainerEnd, log: Path, planned: Dict[str, Any]) -> str:
    """Why the trainer failed, and where its log is. `planned`: plan.json, {} on the other machines."""
    said = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2] + "".join(
        f"{xid}\n" for xid in end.xids
    )
    explanation = failure.explain(end.code, said, run, planned, end.oom_killed)
    return sentences(explanation, _("Full log: {log}.", log=run.relative(log)))


def run_process(run: Run, words: List[str], log: Path, on_line: Callable[[str], None]) -> TrainerEnd:
    """Run the trainer to its end. Its output goes to `log` and, line by line, to `on_line`.

    Raises SilentTrainer, and what `on_line` raises. The trainer has ended then: a RunFailed kills it, else it may save.
    """
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ {' '.join(words)}\n")
        stream.flush()
        kills, xids = failure.oom_kills(), failure.xids()
        variables = _environment(run)
        child = _take_early(run, words, variables) or _start(run, words, variables, stdin=subprocess.DEVNULL)
        try:
            with _forward_sigterm(child) as stopped_at:
                for line in _read_lines(child, stream, run.settings.train.timeout * 60, stopped_at):
                    if run.settings.nodes > 1 and failure.RANK_ENDED.search(line):
                        # torchrun would wait 5 minutes for the other machines and may hang when asked to stop. Killing
                        # it ends its ranks here too.
                        child.kill()
                    on_line(line)
            code = child.wait()
        except RunFailed:
            child.kill()
            child.wait()
            raise
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise
        new = [xid for xid in failure.xids() if xid not in xids]
        return TrainerEnd(code, bool(stopped_at), failure.oom_kills() > kills, new)


def _die_with_parent() -> None:
    """In the child: end when this process is killed, since nobody would hold the run folder's lock any more."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _forward_sigterm(child: "subprocess.Popen[str]") -> Iterator[List[float]]:
    """Pass SIGTERM on to the trainer, which then saves and ends. Yields a list that gets the time of the first one."""
    stopped_at: List[float] = []

    def forward(*_signal: Any) -> None:
        if not stopped_at:
            stopped_at.append(time.monotonic())
            child.terminate()

    if threading.current_thread() is not threading.main_thread():  # Python handles signals only there
        yield stopped_at
        return
    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield stopped_at
    finally:
        signal.signal(signal.SIGTERM, before)


class SilentTrainer(RunFailed):
    """The trainer wrote nothing for train.timeout minutes."""


def _read_lines(
    child: "subprocess.Popen[str]", log: IO[str], patience: float, stopped_at: List[float]
) -> Iterator[str]:
    """The trainer's lines, copied to `log`. Kills a trainer that was asked to stop and does not.

    Raises SilentTrainer after `patience` seconds without a line.
    """
    lines: queue.Queue[Optional[str]] = queue.Queue()

    def read() -> None:
        assert child.stdout
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            if child.poll() is not None:
                return  # its own children may still hold the pipe open
            if stopped_at and time.monotonic() - stopped_at[0] > STOP_TIMEOUT:
                child.kill()
            if time.monotonic() - last > patience:
                child.kill()
                raise SilentTrainer(
                    _(
                        "The trainer printed nothing for {minutes:.3g} minutes and was killed: a hung GPU, a lost disk "
                        "or, on several GPUs or machines, ranks that wait for each other. train.timeout={double:.3g} "
                        "waits twice as long.",
                        minutes=patience / 60,
                        double=patience / 30,
                    )
                )
            continue
        if line is None:
            return
        last = time.monotonic()
        log.write(line)
        log.flush()
        yield line
