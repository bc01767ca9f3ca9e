"""Command line: python -m recipe STAGE [RECIPE] [key=value …]; what `just` calls in every runtime."""

import json
import os
import re
import shlex
import sys
import tempfile
import traceback
from pathlib import Path
from typing import List, Optional, Tuple

ROOT = Path.cwd()
JUST = os.environ.get("RECIPE_COMMAND", "just")  # as the user typed it: just or ./justw
# Before the libraries are imported: nothing but the model stage goes to the network, caches stay with us.
os.environ.setdefault("HF_HOME", str(ROOT / ".cache" / "huggingface"))
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait by spinning slow training a hundredfold when anything else wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "FALSE")

import click  # noqa: E402
from rich.console import Console  # noqa: E402

from . import settings  # noqa: E402
from .errors import HostLacks, InputWrong, PlanRefused, RecipeError, RunFailed  # noqa: E402

STAGES = (
    "demo", "data", "data-report", "preview", "plan", "config", "model", "train", "adapter", "merge", "chat",
    "reproduce",
)  # fmt: skip


def sort_arguments(stage: str, given: Optional[str], words: Tuple[str, ...]) -> Tuple[str, List[str], Optional[str]]:
    """(recipe name, overrides, question) from the words behind the stage: `key=value` are overrides, the
    first other word names the recipe, and for chat the next is the question, for preview the row. Raises InputWrong.
    """
    overrides = [word for word in words if re.match(r"[\w.]*=", word)]
    names = [word for word in words if word not in overrides]
    name = given or (names.pop(0) if names else {"demo": "demo", "reproduce": "tutorial"}.get(stage, "coach"))
    if stage == "preview" and not given and name.isdigit():  # just preview 3
        names.insert(0, name)
        name = "coach"
    question = names.pop(0) if names and stage in ("chat", "preview") else None
    if stage == "preview" and question and not (question.isdigit() and int(question)):
        raise InputWrong(f"{question!r} is no number of a conversation. Usage: {JUST} preview [recipe] [row]")
    if names:
        more = {"chat": " ['question']", "preview": " [row]"}.get(stage, "")
        raise InputWrong(f"Too many words: {' '.join(names)}. Usage: {JUST} {stage} [recipe]{more} [key=value …]")
    return name, overrides, question


def go(
    stage: str,
    name: str,
    overrides: List[str],
    question: Optional[str],
    output: str,
    force: bool,
    png: Optional[str],
    dry_run: bool,
) -> None:
    """Load the recipe, hold its folder, run the stages, show the result."""
    console = Console(soft_wrap=True)
    from . import merge, page, pipeline, reproduce
    from .chat import talk
    from .stages import Run

    def say(what: str, command: str) -> None:
        console.print(f"{what} {command}", markup=False, highlight=False)

    if stage == "reproduce":
        overrides = reproduce.overrides(overrides)
    given_name = shlex.quote(name)
    name, recipe = settings.load(name, overrides)
    if stage == "reproduce":
        name = "reproduce"  # a folder of its own: the tutorial's recipe may have been run otherwise
    run = Run(name=name, settings=recipe, root=ROOT, output=ROOT / output, force=force)
    same = " ".join([given_name, *map(shlex.quote, overrides)])  # what the next command must repeat
    if stage == "chat" and not overrides and run.merged.is_dir() and run.config.is_file():
        # Talking never trains: the merged model is there, whatever has changed since.
        with run.open():
            pass
        run.recall()
        talk(run, question)
        return
    if dry_run and stage != "merge":
        raise InputWrong(f"--dry-run goes with merge, not with {stage}.")
    with run.open():
        if dry_run:
            print(*merge.dry_run(run), sep="\n")
            return
        try:
            pipeline.run_stages(run, stage, console)
        except PlanRefused as refused:
            if stage == "plan":
                page.show(refused.plan, console)
            raise
        run.save()
        if stage in ("demo", "train", "merge"):
            console.print()
            console.print(pipeline.closing_table(run))
            for what, path in pipeline.places(run):
                say(f"{what:13}", path)
        if stage == "demo":
            pipeline.show_samples(run, console)
            say("\nNext, to talk to it:      ", f"{JUST} chat {given_name}")
            say("your own workbook:       ", f"{JUST} demo data.files=data/mine.xlsx")
            say("on an NVIDIA GPU:        ", f"{JUST} train")
        elif stage == "train":
            say("\nNext:", f"{JUST} merge {same}")
        elif stage == "merge":
            say("\nNext:", f"{JUST} chat {given_name}")
        elif stage == "plan":
            plan = json.loads(run.plan.read_text(encoding="utf-8"))
            page.show(plan, console)
            if png:
                page.png(plan, Path(png))
                say("\nCurve:", png)
            say("\nNext:", f"{JUST} train {same}")
        elif stage == "reproduce":
            if not reproduce.show(run, console):
                raise RunFailed("The run differs from the published one in a line that can be compared.")
        elif stage == "data-report":
            from . import data_report

            say("\nThe same as a page:", run.shown(data_report.report(run, console)))
        elif stage == "preview":
            from . import data_report

            data_report.preview(run, int(question or 1), console)
        elif stage == "config":
            console.print((run.folder / "config.diff").read_text(encoding="utf-8"), markup=False, highlight=False)
    if stage == "chat":
        talk(run, question)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("words", nargs=-1)
@click.option("--recipe", "given", help="Recipe file: a name (tutorial, coach, demo) or the path of a .toml file.")
@click.option("--output", default="output", show_default=True, help="Folder for results, one subfolder a recipe.")
@click.option("--force", is_flag=True, help="Go on although plan or merge refuses; recorded in run.json.")
@click.option("--dry-run", is_flag=True, help="merge: say what it would write, or refuse; write nothing.")
@click.option("--png", help="plan: also draw the learning-rate curve into this file.")
def main(
    stage: str,
    words: Tuple[str, ...],
    given: Optional[str],
    output: str,
    force: bool,
    png: Optional[str],
    dry_run: bool,
) -> None:
    """Run STAGE of a recipe, and the stages before it that are not up to date.

    WORDS: the recipe's name, then overrides such as train.max_epochs=5.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an ASCII terminal loses signs, not runs
    try:
        go(stage, *sort_arguments(stage, given, words), output, force, png, dry_run)
    except RecipeError as error:
        click.secho(str(error), fg="red", err=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        goes_on = ": the same command goes on from the last checkpoint, if there is one" if stage != "chat" else ""
        click.secho(f"Stopped{goes_on}.", err=True)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            what = f"{error.strerror}: {error.filename or output}. Nothing made before is lost."
            click.secho(what, fg="red", err=True)
            sys.exit(HostLacks.code)
        # Not one of the failures we know: say so in a line, keep the details for a report.
        report = Path(tempfile.gettempdir()) / f"recipe-error-{os.getpid()}.log"
        report.write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
        click.secho(f"Unexpected: {type(error).__name__}: {error}. Details for a report: {report}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="just")
