"""Command line: python -m recipe STAGE [RECIPE] [key=value …]; what `just` calls in every runtime."""

import contextlib
import json
import os
import re
import shlex
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, List, Optional, Tuple

ROOT = Path.cwd()
JUST = os.environ.get("RECIPE_COMMAND", "just")  # as the user typed it: just or ./justw
CACHE = Path(os.environ.get("RECIPE_CACHE") or ROOT / ".cache")
# Before the libraries are imported: nothing but the model stage goes to the network, caches stay with us.
os.environ.setdefault("HF_HOME", str(CACHE / "huggingface"))
os.environ.setdefault("MODELSCOPE_CACHE", str(CACHE / "modelscope"))
os.environ.setdefault("XDG_CACHE_HOME", str(CACHE))  # of what these import
# A container's user may have no home, or one on a read-only root; libraries write there without asking.
if not os.access(os.path.expanduser("~"), os.W_OK):
    os.environ["HOME"] = str(CACHE / "home")
    with contextlib.suppress(OSError):  # who cannot write here either is told so by the stage that has to
        Path(os.environ["HOME"]).mkdir(parents=True, exist_ok=True)
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait by spinning slow training a hundredfold when anything else wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "FALSE")

import click  # noqa: E402

from . import settings  # noqa: E402
from .errors import HostLacks, InputWrong, NotFetched, PlanRefused, RecipeError, RunFailed, Stopped  # noqa: E402

STAGES = (
    "demo", "data", "data-report", "preview", "plan", "config", "model", "train", "adapter", "merge", "eval", "chat",
    "web", "export", "cluster", "report", "compare", "diff", "verify", "watch", "stop", "reproduce", "bench", "presets",
    "new",
)  # fmt: skip

OUTPUT = "output"
JOINED = ("train", "adapter", "merge", "demo")  # what is typed on every machine of a recipe with several nodes


def sort_arguments(stage: str, given: Optional[str], words: Tuple[str, ...]) -> Tuple[str, List[str], Optional[str]]:
    """(recipe name, overrides, question) from the words behind the stage: `key=value` are overrides, the
    first other word names the recipe, and for chat the next is the question, for preview the row, for compare and
    diff the other run; for export and cluster the word that is a target is that, wherever it stands. Raises InputWrong.
    """
    for word in words:  # what a Chinese keyboard types
        if re.match(rf"({'|'.join(settings.Settings.model_fields)})[\w.]*＝", word):
            raise InputWrong(f"{word}: ＝ is a full-width sign, as Chinese input types it. Type = in its place.")
    overrides = [word for word in words if re.match(r"[\w.]*=", word)]
    names = [word for word in words if word not in overrides]
    target = None
    if stage in ("export", "cluster"):
        if stage == "export":
            from .export import TARGETS
        else:
            from .cluster import TARGETS  # type: ignore[assignment]

        target = next((word for word in names if word in TARGETS), None)
        if target is None:
            wrong = f"{' '.join(names)}: no such target. " if names else ""
            raise InputWrong(f"{wrong}Usage: {JUST} {stage} TARGET [recipe]; targets: {', '.join(TARGETS)}.")
        names.remove(target)
    name = given or (names.pop(0) if names else {"demo": "demo", "reproduce": "tutorial"}.get(stage, "coach"))
    if stage == "preview" and not given and name.isdecimal():  # just preview 3
        names.insert(0, name)
        name = "coach"
    question = names.pop(0) if names and stage in ("chat", "preview", "compare", "diff") else None
    if stage in ("compare", "diff") and (question is None or names or overrides):
        raise InputWrong(f"Usage: {JUST} {stage} RUN RUN, each a recipe's name or a run folder.")
    if stage == "preview" and question and not (question.isdecimal() and int(question)):
        raise InputWrong(f"{question!r} is no number of a conversation. Usage: {JUST} preview [recipe] [row]")
    if names:
        more = {"chat": " ['question'] [model=base|adapter|merged] [image=FILE]", "preview": " [row]"}.get(stage, "")
        raise InputWrong(f"Too many words: {' '.join(names)}. Usage: {JUST} {stage} [recipe]{more} [key=value …]")
    return name, overrides, target or question


def _console() -> Any:
    """For tables. Importing it takes as long as reading some thousand rows: only where there is one to show."""
    from rich.console import Console

    return Console(soft_wrap=True)


@dataclass(frozen=True)
class Asked:
    """What was typed: the words as sort_arguments has them, and the options."""

    stage: str
    name: str
    overrides: List[str]
    question: Optional[str]
    output: str
    force: bool
    png: Optional[str]
    verify: bool
    tokenizer: bool
    yes: bool
    dry_run: bool
    checks: bool

    @property
    def quoted(self) -> str:
        """The recipe as the next command must name it, with --output where that was given."""
        return shlex.quote(self.name) + (f" --output {shlex.quote(self.output)}" if self.output != OUTPUT else "")

    @property
    def same(self) -> str:
        """Name and overrides, as the next command must repeat them."""
        return " ".join([self.quoted, *map(shlex.quote, self.overrides)])


def say(what: str, command: str) -> None:
    click.echo(f"{what} {command}")


def go(asked: Asked) -> None:
    """What looks at runs that are there, or the stages of a recipe."""
    output = ROOT / asked.output
    if asked.stage in ("watch", "stop", "verify") and asked.overrides:
        raise InputWrong(f"{asked.overrides[0]}: {asked.stage} takes no settings, the run is as it was started.")
    if asked.stage in ("watch", "stop"):
        from . import watch

        folder = watch.place_of(asked.name, output)
        shown = str(folder.relative_to(ROOT)) if ROOT in folder.parents else str(folder)
        sys.exit((watch.watch if asked.stage == "watch" else watch.stop)(folder, shown))
    elif asked.stage in ("report", "compare", "diff", "verify"):
        look(asked.stage, asked.name, asked.overrides, asked.question, output)
    elif asked.stage == "web":
        from .web import serve

        serve.start(asked.name, asked.overrides, ROOT, output)
    elif asked.stage == "bench":
        from . import bench

        bench.run(settings.load(asked.name, asked.overrides)[1], output, click.echo)
        say("plan and doctor reckon with it:", f"{asked.output}/bench.json")
    elif asked.stage == "chat":
        partner, words = partner_of(asked.overrides)
        follow(replace(asked, overrides=words), partner)
    else:
        follow(asked)


def partner_of(overrides: List[str]) -> Tuple[Tuple[str, str], List[str]]:
    """((model, image), overrides): chat's model=… and image=… name no setting but what to talk to, and about."""
    which, image = (
        next((word.partition("=")[2] for word in reversed(overrides) if word.startswith(f"{key}=")), "")
        for key in ("model", "image")
    )
    if which not in ("", "base", "adapter", "merged"):
        raise InputWrong(f"model={which}: talk to the base, the adapter or the merged model.")
    return (which, image), [word for word in overrides if not word.startswith(("model=", "image="))]


def follow(asked: Asked, partner: Tuple[str, str] = ("", "")) -> None:
    """Load the recipe and do with it what was asked; `partner` as partner_of has it."""
    from . import loggers, model, ranks, reproduce, train
    from .stages import Run

    stage = asked.stage
    if stage == "reproduce":
        asked = replace(asked, overrides=reproduce.overrides(asked.overrides))
    name, recipe = settings.load(asked.name, asked.overrides)
    if stage == "reproduce":
        name = "reproduce"  # a folder of its own: the tutorial's recipe may have been run otherwise
    run = Run(
        name=name, settings=recipe, root=ROOT, output=ROOT / asked.output, force=asked.force, verify=asked.verify,
        typed=asked.quoted,
    )  # fmt: skip
    fetch = os.environ.get("RECIPE_FETCH")
    # docker/run started this container for nothing else
    if fetch == "loggers":
        loggers.fetch()
        return
    if fetch == "tokenizer" or (fetch != "model" and stage == "model" and asked.tokenizer):
        for what, path in model.fetch_for_plan(run):
            say(what, run.shown(path))
        return
    if fetch == "model":
        asked = replace(asked, stage="model")
    elif stage == "cluster":
        from . import cluster

        print(*cluster.write(run, str(asked.question), shlex.quote(asked.name), asked.overrides), sep="\n")
        return
    here = ranks.node(recipe) if asked.stage in JOINED else None
    if here and here.rank:
        click.echo(train.join(run))
    elif not of_what_is_there(run, asked, partner):
        whole(run, asked)


# Settings that no training depends on.
FREE = ("eval.", "export.", "plan.", "cluster.", "merge.", "model.path", "model.tokenizer", "model.visual_encoder")


def take_trained(run: Any, asked: Asked) -> None:
    """Take the settings of the training that is there, with those overrides that it does not depend on.

    Raises InputWrong for an override that asks for another training: it would take hours of a card unasked.
    """
    wanted, other = run.settings, []
    run.recall()
    # How it is measured is as the recipe says now.
    run.settings = settings.replace(run.settings, "eval", wanted.eval.model_dump())
    for name in ("model.path", "model.tokenizer"):  # it may have been moved, and the recipe corrected
        old, new = settings.value(run.settings, name), settings.value(wanted, name)
        if old and new and not (ROOT / old).exists():
            run.settings = settings.replace(run.settings, name, new)
    for word in asked.overrides:
        name = word.partition("=")[0]
        new, old = settings.value(wanted, name), settings.value(run.settings, name)
        kept = run.settings.data
        # An exam in place of what is held out: only where nothing of the data was.
        if name.startswith(FREE) or (name == "data.eval_files" and (kept.eval_files or not kept.eval_share)):
            run.settings = settings.replace(run.settings, name, new)
        elif new != old:
            other.append(f"{name} was {json.dumps(old, ensure_ascii=False)}")
    if other:
        raise InputWrong(
            f"{asked.stage} never trains, and the model in {run.shown(run.folder)} was trained otherwise: "
            f"{', '.join(other)}. just {_makes(wanted)} {asked.same} trains it anew."
        )


def _makes(recipe: Any) -> str:
    """The command that makes a recipe's model: a projector is merged into nothing."""
    from . import families

    return "train" if families.method(recipe) == "projector" else "merge"


def of_what_is_there(run: Any, asked: Asked, partner: Tuple[str, str]) -> bool:
    """Do what runs no stage up to training, or only begins; False where that was not what was asked."""
    from . import merge, model, pipeline, talker, watch

    stage = asked.stage
    there = run.config.is_file() and (run.merged.is_dir() or run.adapter.is_dir())
    if stage in ("chat", "eval") and not there and partner[0] != "base":
        raise InputWrong(
            f"Nothing is trained in {run.shown(run.folder)} yet, and {stage} never trains: just "
            f"{_makes(run.settings)} {asked.same} does."
            + (" The base model can be talked to: model=base" if stage == "chat" else "")
        )
    if stage == "chat":
        from .chat import talk

        # Of what is there, whatever has changed since; the base needs no training.
        with run.open():
            if there and (partner[0] != "base" or not asked.overrides):
                take_trained(run, asked)
            if not model.folder(run).is_dir() and (partner[0] == "base" or talker.find(run, partner[0]).adapter):
                pipeline.run_stages(run, "model")
        talk(run, asked.question, *partner)
        return True
    if stage == "eval":
        from . import page

        with run.open():
            take_trained(run, asked)
            pipeline.measure(run)
            page.verdict(run, _console())
            for what, path in reported(run):
                say(f"{what:13}", path)
        return True
    if asked.dry_run and stage != "merge":
        raise InputWrong(f"--dry-run goes with merge, not with {stage}.")
    if stage == "export":
        # Of the model that is there, as it was made; only export's own settings can be given now.
        from . import export

        foreign = [word for word in asked.overrides if not word.startswith("export.")]
        if foreign:
            raise InputWrong(f"{foreign[0]}: the model is trained and merged; export takes only export.… settings.")
        asking = run.settings.export.model_dump()
        with run.open():
            run.recall()
            run.settings = settings.replace(run.settings, "export", asking)
            export.hand_over(run, str(asked.question), asked.quoted, asked.yes)
        return True
    if asked.dry_run:
        with run.open():
            print(*merge.dry_run(run), sep="\n")
        return True
    if asked.checks:  # what docker/detach does first; standard output is for the folder alone
        with run.open(), contextlib.redirect_stdout(sys.stderr):
            pipeline.run_stages(run, stage, pipeline.COMMANDS[stage][:4])
            watch.announce(run, stage)
        print(run.folder)
        return True
    return False


def whole(run: Any, asked: Asked) -> None:
    """Run the stages of a command, then show what was made."""
    from . import pipeline, watch

    with run.open(), watch.telling(run, asked.stage):
        try:
            pipeline.run_stages(run, asked.stage)
        except PlanRefused as refused:
            if asked.stage == "plan":
                from . import page

                page.show(refused.plan, _console())
            raise
        if not run.done_now:  # else the last stage's entry was written with everything
            run.save()
        if asked.stage in ("demo", "train", "merge"):
            from . import page

            click.echo()
            _console().print(page.closing(run))
            for what, path in [*pipeline.places(run), *reported(run)]:
                say(f"{what:13}", path)
        shows: Any = SHOWS.get(asked.stage)
        if shows:
            shows(run, asked)


def _show_demo(run: Any, asked: Asked) -> None:
    from . import page

    page.samples(run)
    if "eval" in run.manifest["stages"]:
        click.echo(f"\nOn what was held out, {page.judged(run)}")
    say("\nNext, to talk to it:      ", f"{JUST} chat {asked.quoted}")
    say("your own workbook:       ", f"{JUST} demo data.files=data/mine.xlsx")
    say("on an NVIDIA GPU:        ", f"{JUST} train")


def _show_train(run: Any, asked: Asked) -> None:
    from . import families

    if families.method(run.settings) == "projector":
        say("\nNext: the second stage's recipe, with", f"model.pretrained_pth={run.shown(run.folder)}")
    else:
        say("\nNext:", f"{JUST} merge {asked.same}")


def _show_merge(run: Any, asked: Asked) -> None:
    say("\nNext:", f"{JUST} chat {asked.quoted}")


def _show_plan(run: Any, asked: Asked) -> None:
    from . import page

    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    page.show(plan, _console())
    if asked.png:
        page.png(plan, Path(asked.png))
        say("\nCurve:", asked.png)
    say("\nNext:", f"{JUST} train {asked.same}")


def _show_reproduce(run: Any, asked: Asked) -> None:
    from . import reproduce

    if not reproduce.show(run, _console()):
        raise RunFailed("The run differs from the published one in a line that can be compared.")


def _show_data_report(run: Any, asked: Asked) -> None:
    from . import data_report

    say("\nThe same as a page:", run.shown(data_report.report(run, _console())))


def _show_preview(run: Any, asked: Asked) -> None:
    from . import data_report

    data_report.preview(run, int(asked.question or 1), _console())


def _show_config(run: Any, asked: Asked) -> None:
    click.echo((run.folder / "config.diff").read_text(encoding="utf-8"))


SHOWS = {
    "demo": _show_demo, "train": _show_train, "merge": _show_merge, "plan": _show_plan,
    "reproduce": _show_reproduce, "data-report": _show_data_report, "preview": _show_preview, "config": _show_config,
}  # fmt: skip


def reported(run: Any) -> List[Tuple[str, str]]:
    """Write the report at a run's end: ("report", path). The run is done; what hinders the report fails nothing."""
    from . import report

    try:
        return [("report", run.shown(report.write(run, working=False)))]
    except Exception as error:
        click.secho(f"The report could not be written: {type(error).__name__}: {error}", fg="yellow", err=True)
        return []


def look(stage: str, name: str, overrides: List[str], other: Optional[str], output: Path) -> None:
    """report, compare, diff, verify: of what is there; no stage runs in its folder, and none is held."""
    from . import compare, report

    run = report.find(name, ROOT, output)
    if stage == "verify":
        from . import verify

        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".verify-", dir=str(output)) as beside:
            equal = verify.show(verify.check(run, Path(beside)), _console())
        if not equal:
            raise RunFailed("What differs is not what this run made.")
        return
    if stage == "report":
        click.echo(f"report        {run.shown(report.write(run, price=settings.price(overrides)))}")
        return
    both = report.see(run), report.see(report.find(str(other), ROOT, output))
    compare.show(*both, _console())
    if stage == "compare":
        click.echo(f"page          {run.shown(compare.write(*both, output / 'compare'))}")


def begin(stage: str, words: Tuple[str, ...], base: Optional[str], write: bool) -> None:
    """presets, new: what XTuner ships, and a recipe file made of one of its presets."""
    from . import presets

    if stage == "presets":
        if write:
            click.echo(presets.write_table())
        else:
            presets.show(" ".join(words), _console())
        return
    if len(words) != 1 or not base:
        raise InputWrong(f"Usage: {JUST} new NAME --from PRESET ({JUST} presets lists them).")
    path = presets.new(words[0], base)
    click.echo(f"{path}: edit it, then: {JUST} plan {path}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("stage", type=click.Choice(STAGES))
@click.argument("words", nargs=-1)
@click.option("--recipe", "given", help="Recipe file: a name (tutorial, coach, demo) or the path of a .toml file.")
@click.option("--output", default=OUTPUT, show_default=True, help="Folder for results, one subfolder a recipe.")
@click.option("--force", is_flag=True, help="Go on although plan or merge refuses; recorded in run.json.")
@click.option("--dry-run", is_flag=True, help="merge: say what it would write, or refuse; write nothing.")
@click.option("--verify", is_flag=True, help="model: read every byte again and compare it with what was fetched.")
@click.option("--tokenizer", is_flag=True, help="model: fetch the tokenizer alone (1.5 MB), enough for plan.")
@click.option("--png", help="plan: also draw the learning-rate curve into this file.")
@click.option("--from", "base", help="new: XTuner's preset to begin with.")
@click.option("--write", is_flag=True, help="presets: make docs/presets.tsv again.")
@click.option("--checks", is_flag=True, hidden=True)  # for docker/detach
@click.option("--yes", is_flag=True, help="export upload: really send; without it only what would go is shown.")
def main(
    stage: str, words: Tuple[str, ...], given: Optional[str], output: str, force: bool, png: Optional[str],
    verify: bool, tokenizer: bool, yes: bool, dry_run: bool, checks: bool, base: Optional[str], write: bool,
) -> None:  # fmt: skip
    """Run STAGE of a recipe, and the stages before it that are not up to date.

    WORDS: the recipe's name, then overrides such as train.max_epochs=5.
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # an ASCII terminal loses signs, not runs
    try:
        if stage in ("presets", "new"):
            begin(stage, words, base, write)
            return
        if not output:
            raise InputWrong("--output= names no folder for the results.")
        sorted_words = sort_arguments(stage, given, words)
        go(Asked(stage, *sorted_words, output, force, png, verify, tokenizer, yes, dry_run, checks))
    except RecipeError as error:
        click.secho(str(error), fg=None if isinstance(error, (NotFetched, Stopped)) else "red", err=True)
        sys.exit(error.code)
    except KeyboardInterrupt:
        goes_on = {
            "chat": "",
            "model": ": what has arrived is kept, the same command goes on from there",
            "watch": " watching; the run goes on",
            "stop": " waiting",
        }.get(stage, ": the same command goes on from the last checkpoint, if there is one")
        click.secho(f"Stopped{goes_on}.", err=True)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            what = f"{error.strerror}: {error.filename or output}. Nothing made before is lost."
            click.secho(what, fg="red", err=True)
            sys.exit(HostLacks.code)
        # Not one of the failures we know: say so in a line, keep the details for a report. In a container /tmp is gone
        # with it.
        name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            (ROOT / output).mkdir(parents=True, exist_ok=True)
            report = Path(output, name)
            (ROOT / report).write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
        except OSError:
            report = Path(tempfile.gettempdir(), name)
            report.write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
        click.secho(f"Unexpected: {type(error).__name__}: {error}. Details for a report: {report}", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="just")
