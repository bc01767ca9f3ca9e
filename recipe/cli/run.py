"""Loads a command's recipe and runs its stages."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import click

from recipe.cli import grammar
from recipe.cli.command import Invocation, console, root
from recipe.core import data_source, settings
from recipe.core.errors import PlanRefused
from recipe.core.recipe_files import find_recipe
from recipe.core.text_width import ljust
from recipe.core.translation import _, stored

Show = Callable[[Any], None]


TRAINING = ("demo", "train", "adapter", "merge")  # commands that may put a model into the run's folder


def load(typed: Invocation, verify: bool = False, name: str = "") -> Any:
    """The run of the recipe and overrides that were typed; `name`: its folder's, if not the recipe's.

    Ends the command if docker/runtime/run started it only to download something (RECIPE_FETCH).
    """
    from recipe.core.run import Run

    recipe = find_recipe(typed.recipe, default=typed.default, output=typed.folder)
    if recipe.data and typed.command in grammar.PROMPTED:
        data_source.check_owner(typed.folder / recipe.name, root(), recipe.data)
        data_source.ask_system(typed.folder / recipe.name, recipe.data, typed.overrides)
    recipe_name, chosen = settings.load(recipe, typed.overrides, typed.folder)
    run = Run(
        name=name or recipe_name, settings=chosen, root=root(), output=typed.folder, force=typed.force,
        verify=verify, recipe_file=None if recipe.data else recipe.path, recipe_arguments=typed.recipe_arguments,
    )  # fmt: skip
    if recipe.data:
        run.source = {"data": recipe.data}
        if typed.command in TRAINING:
            data_source.check_trainer(run.folder, root(), typed.default)
            run.source["recipe"] = typed.default
        if any(word.startswith("data.system=") for word in typed.overrides):
            run.source["system"] = chosen.data.system
            if typed.command in grammar.PROMPTED:  # it is remembered: the next command need not repeat it
                typed.overrides[:] = [word for word in typed.overrides if not word.startswith("data.system=")]
    wanted = os.environ.get("RECIPE_FETCH")
    if wanted in FETCHES:
        FETCHES[wanted](run)
        click.get_current_context().exit()
    return run


def fetch_tokenizer(run: Any) -> None:
    """Download what the plan needs of the base model."""
    from recipe.base_model.tokenizer import download_for_plan

    for what, path in download_for_plan(run):
        click.echo(f"{_(what)} {run.relative(path)}")


def _fetch_loggers(run: Any) -> None:
    from recipe.xtuner import loggers

    loggers.fetch()


def _fetch_workbook(run: Any) -> None:
    from recipe.intake import published

    published.ensure(run)


FETCHES = {
    "loggers": _fetch_loggers, "tokenizer": fetch_tokenizer, "workbook": _fetch_workbook,
    "model": lambda run: run_stages(run, "model"),
}  # fmt: skip


def run_stages(run: Any, command: str, show: Optional[Show] = None, closing: bool = False) -> None:
    """Run a command's stages, then `show` what was made; `closing`: with a table and the paths of all results."""
    from recipe.reporting import console as page
    from recipe.reporting import plan_table
    from recipe.stages import pipeline
    from recipe.training import watch

    with run.open(), watch.report_status(run, command):
        other = run.other_recipe()
        if other:
            click.secho(other, fg="yellow", err=True)
        _remember_source(run)
        try:
            pipeline.run_stages(run, command)
        except PlanRefused as refused:
            if command == "plan":
                plan_table.show_plan(refused.plan, console())
            raise
        if not run.performed:  # else the last stage has saved it
            run.save()
        if closing:
            click.echo()
            console().print(page.summary_table(run))
            for what, path in results(run):
                click.echo(f"{ljust(what, 13)} {path}")
            write_report(run)
        if show:
            show(run)


def _remember_source(run: Any) -> None:
    """Keep in the run's folder which data file it belongs to, and the system prompt that was typed."""
    if run.source:
        data_source.remember(run.folder, run.source)


def join_other_nodes(run: Any) -> bool:
    """Train as a further machine of a recipe with several nodes; False on the first one, which runs every stage."""
    from recipe.core import distributed
    from recipe.stages import train

    here = distributed.node(run.settings)
    if here and here.rank:
        click.echo(train.join(run))
        return True
    return False


def check_before_detaching(run: Any, command: str) -> None:
    """Run the stages before training in the foreground, for docker/runtime/detach. Prints only the run's folder."""
    from recipe.stages import pipeline
    from recipe.training import watch

    with run.open(), contextlib.redirect_stdout(sys.stderr):
        _remember_source(run)
        pipeline.run_stages(run, command, pipeline.PLANNED)
        watch.mark_starting(run, command)
    print(run.folder)


def results(run: Any) -> List[Tuple[str, str]]:
    """(what, path) of a trained run's results."""
    stages = run.manifest["stages"]
    found = [(_("checkpoint"), run.checkpoint)]
    found += [(_("adapter"), run.adapter)] * ("adapter" in stages)
    found += [(_("merged model"), run.merged)] * ("merge" in stages)
    return [(what, run.relative(path)) for what, path in [*found, (_("all figures"), run.folder / "run.json")]]


def write_report(run: Any) -> None:
    """Write the report at a run's end. A report that cannot be written does not fail the run."""
    from recipe.reporting import report

    try:
        click.echo(f"{ljust(_('report'), 13)} {run.relative(report.write(run, is_running=False))}")
    except Exception as error:
        what = f"{type(error).__name__}: {stored(str(error))}"
        click.secho(_("The report could not be written: {error}", error=what), fg="yellow", err=True)


def shown_path(path: Path) -> str:
    """`path` relative to the clone, if it lies below it."""
    return str(path.relative_to(root())) if root() in path.parents else str(path)
