"""A run seen from elsewhere: `just watch` follows one that was started elsewhere or detached, `just stop` ends one.

What a run is doing stands in its folder, in .now.json. Whether it still is, its lock tells: the kernel lets go of that
however a run ends. Both work from another container, which sees none of the run's processes.
"""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import click

from recipe.core.errors import InputWrong, NotFetched, RecipeError, Stopped
from recipe.core.files import remove, write_text
from recipe.core.run import Run, is_held
from recipe.training import checkpoints, log_lines, process
from recipe.training import log as training_log
from recipe.training.log_lines import ITERATION
from recipe.training.progress import Progress

STOP_FILE = ".stop"  # asks the run in whose folder it lies to stop, as SIGTERM does
POLL_SECONDS = 0.5  # seconds between two looks
STARTUP_SECONDS = (
    60  # seconds that a container may take to come after one that found a model missing, or after detach's checks
)


@contextlib.contextmanager
def report_status(run: Run, command: str) -> Iterator[None]:
    """While this lasts the run says what it is doing, ends when `just stop` asks it to, and says how it ended."""
    if not _is_starting(read_status(run.folder)):  # else it is this run that was asked to stop
        remove(run.folder / STOP_FILE)
    # A container that only fetches stands between two of the run that is being watched.
    fetching = os.environ.get("RECIPE_FETCH") in ("model", "tokenizer")
    run.now = read_status(run.folder) if fetching else {"command": command, "began": time.time()}
    run.tell()
    over = threading.Event()
    threading.Thread(target=_watch_for_stop, args=(run, over), daemon=True).start()
    code, said = 0, ""
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, RecipeError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        said = str(error) if isinstance(error, RecipeError) else type(error).__name__
        raise
    finally:
        over.set()
        if code or not fetching:
            run.tell(code=code, said=said, ended=time.time(), starting=False)
        else:
            run.tell()


def _watch_for_stop(run: Run, over: threading.Event) -> None:
    while not over.wait(POLL_SECONDS):
        if (run.folder / STOP_FILE).exists():
            remove(run.folder / STOP_FILE)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # no training is under way: nothing to save
                run.tell(code=Stopped.code, said="Stopped as asked: resume by typing the same command.")
            os.kill(os.getpid(), signal.SIGTERM)


def read_status(folder: Path) -> Dict[str, Any]:
    """What the run in `folder` said last; {} if it never did."""
    try:
        return dict(json.loads((folder / ".now.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def mark_starting(run: Run, command: str) -> None:
    """Say that a run is being started: until it is at work, which takes a slow machine longer than a user's next
    command, what the last one said is out of date.
    """
    remove(run.folder / STOP_FILE)
    run.now = {"command": command, "began": time.time(), "starting": True}
    run.tell()


def _is_starting(state: Dict[str, Any]) -> bool:
    expected = state.get("starting") or state.get("code") in NotFetched.CODES.values()
    return bool(expected) and time.time() - state.get("at", 0) < STARTUP_SECONDS


def is_active(folder: Path) -> bool:
    """Whether a command is at work there, or is just being started, or one that fetches what it lacks is."""
    return _is_starting(read_status(folder)) or is_held(folder)


def find_run_folder(word: str, output: Path) -> Path:
    """The folder of the run that `word` names: a recipe's name or file, or a run folder. Raises InputWrong."""
    name = Path(word).stem if word.endswith(".toml") else word
    for folder in (output / name, Path(word)):
        if (folder / ".now.json").is_file() or (folder / "run.json").is_file():
            return folder
    there = sorted(path.parent.name for path in output.glob("*/run.json"))
    others = f" Runs that are there: {', '.join(there)}." if there else ""
    raise InputWrong(f"There is no run {word!r}: nothing was started in {output / name} yet.{others}")


def watch(folder: Path, shown: str) -> int:
    """Follow the run in `folder` until it ends; returns its exit code (1 if it ended without a word)."""
    at_work, stage = is_active(folder), ""
    while at_work:
        state = read_status(folder)
        if state.get("stage", "") != stage:
            stage = state.get("stage", "")
            click.echo(f"{click.style(f'{stage:8}', bold=True)} since {_time_of_day(state.get('at'))}")
        if stage == "train" and state.get("log"):
            _follow_training(folder, folder / state["log"])
        time.sleep(POLL_SECONDS)
        at_work = is_active(folder)
    return _print_end(folder, shown)


def _follow_training(folder: Path, log: Path) -> None:
    """Show the training's progress and answers until that stage is over."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]["train"]
    questions = settings["evaluation_inputs"] or []
    bar = Progress(plan["iterations"], plan["tokens_kept"] / plan["iterations_per_epoch"])
    answered, pending = -1, True
    with bar as show, log.open(encoding="utf-8", errors="replace") as stream:
        rest = ""
        while True:
            over = read_status(folder).get("stage") != "train" or not is_active(folder)
            text = rest + stream.read()
            lines, _, rest = text.rpartition("\n")
            steps: List[Any] = [step for line in lines.splitlines() for step in [ITERATION.search(line)] if step]
            for step in steps[-1:]:
                show(int(step[1]), log_lines.parse_iterations(step[0])[int(step[1])])
            pending = pending or "Sample output:" in lines
            if pending and (steps or over):  # the next logged iteration tells that what was said is whole
                pending = False
                for answers in training_log.read_answers(log.parent, questions, plan.get("evaluations", [])):
                    if answers.iteration > answered:
                        answered = answers.iteration
                        bar.say(f"  answers at {answers.iteration}:")
                        for question, answer, _ in answers.said:
                            bar.say(f"    {question}\n      {answer}")
            if over:
                return
            time.sleep(POLL_SECONDS)


def _print_end(folder: Path, shown: str) -> int:
    state = read_status(folder)
    code: Optional[int] = state.get("code")
    if not state:
        click.echo(f"Nothing is at work in {shown}. The report tells what was done.")
        return 0
    if code is None and state.get("starting"):
        click.echo(
            f"{state['command']} in {shown} was to start at {_time_of_day(state['began'])} and has said nothing since: "
            f"{shown}/detached.log tells why."
        )
        return 1
    if code is None:
        log = folder / str(state.get("log", ""))
        kept = checkpoints.last_checkpoint(log.parent) if log.is_file() else None
        at = (
            f"The checkpoint of iteration {checkpoints.iteration_of(kept)} is kept"
            if kept
            else "There is no checkpoint yet"
        )
        click.echo(
            f"{state['command']} in {shown} ended without a word at stage {state.get('stage', 'data')}: it was killed, "
            f"or the machine went down. {at}: the same command goes on."
        )
        return 1
    said = state.get("said") or "done"
    click.echo(
        f"{state['command']} in {shown} ended at {_time_of_day(state.get('ended', state['at']))}, "
        f"exit code {code}: {said}"
    )
    return code


def stop(folder: Path, shown: str) -> int:
    """Ask the run in `folder` to stop, as SIGTERM does, and wait until it has; returns its exit code."""
    if not is_active(folder):
        click.echo(f"Nothing is at work in {shown}.")
        return 0
    write_text(folder / STOP_FILE, "")
    click.echo(f"Asked. Training finishes its update and saves: {process.STOP_TIMEOUT} s at most.")
    while is_active(folder):
        time.sleep(POLL_SECONDS)
    return _print_end(folder, shown)


def _time_of_day(at: Optional[float]) -> str:
    """The time of day, with the date unless it is today's."""
    then = time.localtime(at)
    return time.strftime("%H:%M:%S" if then[:3] == time.localtime()[:3] else "%Y-%m-%d %H:%M:%S", then)
