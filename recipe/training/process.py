"""Starts XTuner's own trainer in its own process, shows its progress, and believes only its checkpoint.

The `xtuner` command ends with 0 when its child crashed, so the trainer's file is started directly. Training
that was stopped goes on from its last checkpoint: checkpoints of other settings or data lie in another
folder (checkpoints/<key>), so they are never mixed.
"""

import contextlib
import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from recipe.core import compiler, distributed
from recipe.core.errors import HostLacks, RunFailed, Stopped
from recipe.core.files import write_text
from recipe.core.host import gpus
from recipe.core.run import Run
from recipe.training import failure
from recipe.training.checkpoints import iteration_of, last_checkpoint
from recipe.training.fast import verdict
from recipe.training.log_lines import ITERATION, parse_iterations
from recipe.training.progress import Progress
from recipe.xtuner import loggers, step_choice

DEEPSPEED_FILE = "deepspeed.json"  # beside the checkpoints: what DeepSpeed is given

STOP_TIMEOUT = 30  # seconds that a stopped trainer gets before it is ended

PR_SET_PDEATHSIG = 1


def command(run: Run, place: Path, start: Optional[Path], seed: int) -> List[str]:
    """The trainer's command line: what `xtuner train` starts, without its blind exit code; for several ranks under
    torchrun.
    """
    if distributed.count(run.settings) > 1:
        words = [sys.executable, "-m", *distributed.launcher(run.settings)]
    else:
        words = [sys.executable, "-m", "recipe.training.entry"]
    words += [run.shown(run.config), "--work-dir", run.shown(place)]
    if distributed.count(run.settings) > 1:
        words += ["--launcher", "pytorch"]
    if step_choice.deepspeed(run.settings):
        words += ["--deepspeed", run.shown(place / DEEPSPEED_FILE)]
    if start is not None:
        words += ["--resume", run.shown(start)]
    elif run.settings.train.seed is None:
        words += ["--seed", str(seed)]
    return words


# On a CPU tensors of hundreds of MB come and go in every iteration. Unless told to keep their memory, glibc gives it
# back to the kernel, which fills it with zeros again: half of an iteration's time where the vocabulary is InternLM2's
# (5.0 s and 2.4 s side by side). In exchange the heap has gaps: half as much memory again.
MALLOC_SETTINGS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


def environment(run: Run) -> Dict[str, str]:
    """For the trainer: what torchrun would tell a single process. Without it DeepSpeed asks MPI, which fails on a
    machine or in a container that has no network. And what cuBLAS needs to sum in the same order every time; and that
    the run's own checkpoints may be read, of which PyTorch 2.6 and newer read no more than tensors unless told.
    """
    own = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    if not gpus():
        own.update(MALLOC_SETTINGS)
    if run.settings.train.deterministic:
        own["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if distributed.count(run.settings) > 1:
        # torchrun tells each rank the rest, and warns if it has to choose the number of threads
        threads = max(1, (os.cpu_count() or 1) // run.settings.gpus)
        return {"OMP_NUM_THREADS": str(threads), **os.environ, **own}
    if not step_choice.deepspeed(run.settings) or "RANK" in os.environ:
        return {**os.environ, **own}
    port = str(distributed.free_port())
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**os.environ, **own, **alone}


def _die_with_parent() -> None:
    """In the child, before it starts: if we are killed, it must not train on into a folder we have lost."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_trainer(run: Run, place: Path, log: Path, start: Optional[Path], planned: Dict[str, Any]) -> None:
    words = command(run, place, start, planned["seed"])
    if step_choice.deepspeed(run.settings):
        write_text(place / DEEPSPEED_FILE, step_choice.deepspeed_text(run.settings))
    total, tokens = planned["iterations"], planned["tokens_kept"] / planned["iterations_per_epoch"]
    run.tell(log=str(log.relative_to(run.folder)))
    if step_choice.speed(run.settings) != "stock" and gpus() and compiler.fault():
        print(compiler.notice(), file=sys.stderr, flush=True)
    wrong: List[int] = []

    progress = Progress(total, tokens)
    with progress as show:

        def on_line(line: str) -> bool:
            step, compared = ITERATION.search(line), verdict.parse_line(line)
            if compared and not compared["passed"]:
                progress.say(f"  {verdict.failure_message(compared)}")
            if step and int(step[2]) != total:
                wrong.append(int(step[2]))
            elif step:
                show(int(step[1]), parse_iterations(line)[int(step[1])])
            return bool(wrong)

        try:
            code, asked, faulted = run_process(run, words, log, on_line)
        except RunFailed as error:
            raise RunFailed(f"{error} {_resume_hint(place)}")
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
        raise RunFailed(f"{failure_message(run, code, log, planned, faulted)} {_resume_hint(place)}")


def wait_for_first_node(run: Run, here: distributed.Node) -> bool:
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


def failure_message(run: Run, code: int, log: Path, planned: Dict[str, Any], faulted: Tuple[bool, List[str]]) -> str:
    oom_killed, xids = faulted
    said = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2] + "".join(f"{x}\n" for x in xids)
    return f"{failure.explain(code, said, run, planned, oom_killed)} Full log: {run.shown(log)}."


def _resume_hint(place: Path) -> str:
    """Where the same command goes on."""
    at = last_checkpoint(place)
    if at is None:
        return "There is no checkpoint yet: the same command starts from the beginning."
    return f"The checkpoint of iteration {iteration_of(at)} is kept; the same command goes on from it."


def run_process(
    run: Run, words: List[str], log: Path, on_line: Callable[[str], bool]
) -> Tuple[int, List[float], Tuple[bool, List[str]]]:
    """Run the trainer to its end, its lines copied to `log`; it is ended when `on_line`, which gets each, says True.

    Returns its exit code, the time at which SIGTERM asked us to stop ([] if it did not), and of the kernel whether it
    ended a process for memory meanwhile and what it said of the GPU.
    """
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"\n$ {' '.join(words)}\n")
        stream.flush()
        killed, before = failure.oom_kills(), failure.xids()
        child = subprocess.Popen(
            words, cwd=str(run.root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            universal_newlines=True, encoding="utf-8", errors="replace", bufsize=1, preexec_fn=_die_with_parent,
            env={**environment(run), **loggers.environment(run)},
        )  # fmt: skip
        try:
            with _forward_sigterm(child) as asked:
                for line in _read_lines(child, stream, run.settings.train.timeout * 60, asked):
                    if run.settings.nodes > 1 and failure.RANK_ENDED.search(line):
                        # torchrun would wait 5 minutes for the other machines, and asked to end it may hang for good
                        child.kill()  # its ranks here end with it
                    if on_line(line):
                        child.kill()
                        break
            code = child.wait()
            return code, asked, (failure.oom_kills() > killed, [x for x in failure.xids() if x not in before])
        except BaseException:
            child.terminate()
            try:
                child.wait(timeout=STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


@contextlib.contextmanager
def _forward_sigterm(child: Any) -> Iterator[List[float]]:
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


def _read_lines(child: Any, copy: Any, patience: float, asked: List[float]) -> Iterator[str]:
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
            if asked and time.monotonic() - asked[0] > STOP_TIMEOUT:
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
