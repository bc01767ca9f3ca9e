"""Loads a command's recipe and runs its stages."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import click

from recipe.cli.command import Invocation, console, root, say
from recipe.core import settings
from recipe.core.errors import PlanRefused

Show = Callable[[Any], None]


def load(invocation: Invocation, verify: bool = False, name: str = "") -> Any:
    """The run of the recipe and overrides that were typed; `name`: of its folder, if that is not the recipe's."""
    from recipe.core.run import Run

    recipe_name, recipe = settings.load(invocation.recipe, invocation.overrides)
    return Run(
        name=name or recipe_name, settings=recipe, root=root(), output=invocation.folder, force=invocation.force,
        verify=verify, typed=invocation.quoted,
    )  # fmt: skip


def only_fetches(run: Any, tokenizer: bool = False) -> bool:
    """Fetch what docker/runtime/run started this process for (RECIPE_FETCH), or the tokenizer; False: do more."""
    from recipe.base_model import download
    from recipe.xtuner import loggers

    wanted = os.environ.get("RECIPE_FETCH")
    if wanted == "loggers":
        loggers.fetch()
    elif wanted == "tokenizer" or (wanted != "model" and tokenizer):
        for what, path in download.fetch_for_plan(run):
            say(what, run.shown(path))
    elif wanted == "model":
        run_stages(run, "model")
    else:
        return False
    return True


def run_stages(run: Any, command: str, show: Optional[Show] = None, closing: bool = False) -> None:
    """Run a command's stages, then `show` what was made; `closing`: with the table and the places of all results."""
    from recipe.reporting import console as page
    from recipe.stages import pipeline
    from recipe.training import watch

    with run.open(), watch.report_status(run, command):
        try:
            pipeline.run_stages(run, command)
        except PlanRefused as refused:
            if command == "plan":
                page.show(refused.plan, console())
            raise
        if not run.done_now:  # else the last stage's entry was written with everything
            run.save()
        if closing:
            click.echo()
            console().print(page.closing(run))
            for what, path in [*results(run), *reported(run)]:
                say(f"{what:13}", path)
        if show:
            show(run)


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
    """What docker/runtime/detach does in front of the user: the stages before training. Prints the run's folder."""
    from recipe.stages import pipeline
    from recipe.training import watch

    with run.open(), contextlib.redirect_stdout(sys.stderr):
        pipeline.run_stages(run, command, pipeline.PLANNED)
        watch.mark_starting(run, command)
    print(run.folder)


def results(run: Any) -> List[Tuple[str, str]]:
    """Where the results lie: (what, path)."""
    stages = run.manifest["stages"]
    found = [("checkpoint", run.checkpoint)]
    found += [("adapter", run.adapter)] * ("adapter" in stages)
    found += [("merged model", run.merged)] * ("merge" in stages)
    return [(what, run.shown(path)) for what, path in [*found, ("all figures", run.folder / "run.json")]]


def reported(run: Any) -> List[Tuple[str, str]]:
    """Write the report at a run's end: ("report", path). A report that cannot be written fails nothing."""
    from recipe.reporting import report

    try:
        return [("report", run.shown(report.write(run, working=False)))]
    except Exception as error:
        click.secho(f"The report could not be written: {type(error).__name__}: {error}", fg="yellow", err=True)
        return []


def shown_path(path: Path) -> str:
    """A path from the clone's folder where it lies below that."""
    return str(path.relative_to(root())) if root() in path.parents else str(path)
