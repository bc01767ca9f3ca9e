"""Follows and stops runs that were started elsewhere, or detached: `just watch` and `just stop`.

A run's folder holds its status, .now.json, and a lock, which the kernel releases however the run ends. Both can be
read from another container, which does not see the run's processes.
"""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import click

from recipe.core.errors import InputWrong, NotFetched, RecipeError, Stopped
from recipe.core.files import remove, write_text
from recipe.core.recipe_files import find_run_folder
from recipe.core.run import Run, is_locked
from recipe.core.translation import _, listed, mark, sentences, stored
from recipe.training import checkpoints, process
from recipe.training import log as training_log
from recipe.training.log_lines import ITERATION, parse_iterations
from recipe.training.progress import TrainingProgress

STOP_FILE = ".stop"  # in a run's folder: asks the run to stop, as SIGTERM does
POLL_SECONDS = 0.5
STOPPED = mark("Stopped as asked: resume by typing the same command.")
# Longest time from one container of a run to its next: after one that found a model missing, or after the checks
# before a run is detached.
STARTUP_SECONDS = 60


@contextlib.contextmanager
def report_status(run: Run, command: str) -> Iterator[None]:
    """Keep the run's status up to date, and stop the run when its stop file appears."""
    if not _is_starting(read_status(run.folder)):  # else the stop file was meant for this run
        remove(run.folder / STOP_FILE)
    # A container that only downloads runs between two others of the same run: it keeps their status.
    fetching = os.environ.get("RECIPE_FETCH") in ("model", "tokenizer")
    run.status = read_status(run.folder) if fetching else {"command": command, "began": time.time()}
    run.update_status()
    ended = threading.Event()
    threading.Thread(target=_watch_for_stop, args=(run, ended), daemon=True).start()
    code, said = 0, ""
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, RecipeError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        said = str(error) if isinstance(error, RecipeError) else type(error).__name__
        raise
    finally:
        ended.set()
        if code or not fetching:
            run.update_status(code=code, said=said, ended=time.time(), starting=False)
        else:
            run.update_status()


def _watch_for_stop(run: Run, ended: threading.Event) -> None:
    while not ended.wait(POLL_SECONDS):
        if (run.folder / STOP_FILE).exists():
            remove(run.folder / STOP_FILE)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # no training is running: nothing to save
                run.update_status(code=Stopped.code, said=STOPPED)
            os.kill(os.getpid(), signal.SIGTERM)


def read_status(folder: Path) -> Dict[str, Any]:
    """The last status of the run in `folder`; {} if it has none."""
    try:
        return dict(json.loads((folder / ".now.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def mark_starting(run: Run, command: str) -> None:
    """Replace the status of the folder's previous run: on a slow machine the new one takes a while to set its own."""
    remove(run.folder / STOP_FILE)
    run.status = {"command": command, "began": time.time(), "starting": True}
    run.update_status()


def _is_starting(status: Dict[str, Any]) -> bool:
    """Whether the run's next container is expected to start soon."""
    expected = status.get("starting") or status.get("code") in NotFetched.CODES.values()
    return bool(expected) and time.time() - status.get("at", 0) < STARTUP_SECONDS


def is_active(folder: Path) -> bool:
    """Whether a command runs in `folder` or is about to start there."""
    return _is_starting(read_status(folder)) or is_locked(folder)


def find_started(word: str, output: Path) -> Path:
    """The folder of the run that `word` names: a recipe's name or file, a data file, or a run folder. Raises InputWrong
    if nothing was started there.
    """
    folder = find_run_folder(word, Path.cwd(), output)
    if (folder / ".now.json").is_file() or (folder / "run.json").is_file():
        return folder
    runs = sorted(path.parent.name for path in output.glob("*/run.json"))
    others = _("Existing runs: {names}.", names=listed(runs)) if runs else ""
    missing = _("There is no run {name!r}: nothing was started in {folder} yet.", name=word, folder=folder)
    raise InputWrong(sentences(missing, others))


def watch(folder: Path, shown: str) -> int:
    """Follow the run in `folder` until it ends; returns its exit code, 1 if it ended without one."""
    active, stage = is_active(folder), ""
    while active:
        status = read_status(folder)
        if status.get("stage", "") != stage:
            stage = status.get("stage", "")
            click.echo(
                _(
                    "{stage} since {time}",
                    stage=click.style(f"{stage:8}", bold=True),
                    time=_time_of_day(status.get("at")),
                )
            )
        if stage == "train" and status.get("log"):
            _follow_training(folder, folder / status["log"])
        time.sleep(POLL_SECONDS)
        active = is_active(folder)
    return _print_end(folder, shown)


def _follow_training(folder: Path, log: Path) -> None:
    """Show the training's progress and answers until that stage ends."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    asked = manifest["settings"]["train"]["evaluation_inputs"]
    drawn = manifest["stages"].get("config", {}).get("figures", {}).get("questions")
    questions, planned = drawn or asked or [], plan.get("evaluations", [])
    shown, pending, rest = -1, True, ""
    progress = TrainingProgress(plan["iterations"], plan["tokens_kept"] / plan["iterations_per_epoch"])
    with progress, log.open(encoding="utf-8", errors="replace") as stream:
        while True:
            has_ended = read_status(folder).get("stage") != "train" or not is_active(folder)
            lines, _newline, rest = (rest + stream.read()).rpartition("\n")
            steps = parse_iterations("\n".join(line for line in lines.splitlines() if ITERATION.search(line)))
            for iteration in list(steps)[-1:]:
                progress.update(iteration, steps[iteration])
            pending = pending or "Sample output:" in lines
            if pending and (steps or has_ended):  # an iteration after the answers means that they are complete
                pending = False
                for answers in training_log.read_answers(log.parent, questions, planned):
                    if answers.iteration > shown:
                        shown = answers.iteration
                        progress.print("  " + _("answers at {iteration}:", iteration=shown))
                        for question, answer, _ended in answers.replies:
                            progress.print(f"    {question}\n      {answer}")
            if has_ended:
                return
            time.sleep(POLL_SECONDS)


def _print_end(folder: Path, shown: str) -> int:
    """Print how the run in `folder` ended; returns its exit code."""
    status = read_status(folder)
    if not status:
        click.echo(_("No active run in {folder}. The report shows what was done.", folder=shown))
        return 0
    code: Optional[int] = status.get("code")
    if code is not None:
        click.echo(
            _(
                "{command} in {folder} ended at {time}, exit code {code}: {message}",
                command=status["command"],
                folder=shown,
                time=_time_of_day(status.get("ended", status["at"])),
                code=code,
                message=stored(status.get("said") or "") or _("done"),
            )
        )
        return code
    if status.get("starting"):
        click.echo(
            _(
                "{command} in {folder} should have started at {time} and has not reported since: {log} says why.",
                command=status["command"],
                folder=shown,
                time=_time_of_day(status["began"]),
                log=f"{shown}/detached.log",
            )
        )
        return 1
    log = folder / str(status.get("log", ""))
    kept = checkpoints.describe_last(log.parent) if log.is_file() else _("There is no checkpoint yet")
    click.echo(
        _(
            "{command} in {folder} ended without a message at stage {stage}: it was killed, or the machine went down. "
            "{kept}: the same command resumes the run.",
            command=status["command"],
            folder=shown,
            stage=status.get("stage", "data"),
            kept=kept,
        )
    )
    return 1


def stop(folder: Path, shown: str) -> int:
    """Ask the run in `folder` to stop, as SIGTERM does, and wait until it has; returns its exit code."""
    if not is_active(folder):
        click.echo(_("No active run in {folder}.", folder=shown))
        return 0
    write_text(folder / STOP_FILE, "")
    click.echo(
        _("Asked to stop. Training finishes its update and saves: {seconds} s at most.", seconds=process.STOP_TIMEOUT)
    )
    while is_active(folder):
        time.sleep(POLL_SECONDS)
    return _print_end(folder, shown)


def _time_of_day(at: Optional[float]) -> str:
    """The time of day, with the date unless it is today."""
    then = time.localtime(at)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M:%S", then)
