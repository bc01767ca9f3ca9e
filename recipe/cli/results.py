"""Commands that look at finished runs: report, verify, compare, diff. No stage runs in a run's folder."""

import tempfile
from pathlib import Path
from typing import Any, Optional, Tuple

import click

from recipe.cli.command import command, console, invocation, options, output_option, recipe_argument, root
from recipe.core.errors import RunFailed
from recipe.core.overrides import price


@command("report coach", "report coach plan.price_per_hour=1.5", default="coach", settings=True, runs=True)
@options(recipe_argument, output_option)
def report(recipe: Optional[str], output: str) -> None:
    """Write what happened on one page: verdict, curves, answers, provenance. Works at every stage."""
    from recipe.reporting import collect
    from recipe.reporting import report as reporting

    typed = invocation(recipe, output)
    run = collect.find(typed.recipe, root(), typed.folder)
    click.echo(f"report        {run.shown(reporting.write(run, price=price(typed.overrides)))}")


@command("verify coach", "verify output/coach", default="coach", runs=True)
@options(recipe_argument, output_option)
def verify(recipe: Optional[str], output: str) -> None:
    """Check a finished run again: every file; data, plan, config and adapter made anew."""
    from recipe.reporting import collect
    from recipe.reporting import verify as verifying

    typed = invocation(recipe, output)
    run = collect.find(typed.recipe, root(), typed.folder)
    typed.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=str(typed.folder)) as beside:
        equal = verifying.show(verifying.check(run, Path(beside)), console())
    if not equal:
        raise RunFailed("What differs is not what this run made.")


def _both(first: str, second: str, output: str) -> Tuple[Any, Any]:
    from recipe.reporting import collect

    folder = invocation(None, output).folder
    return (
        collect.see(collect.find(first, root(), folder)),
        collect.see(collect.find(second, root(), folder)),
    )


@command("compare coach tutorial", "compare output/coach old/coach")
@click.argument("run")
@click.argument("other", metavar="RUN")
@output_option
def compare(run: str, other: str, output: str) -> None:
    """Put two runs on a page, with both curves. Each is a recipe's name or a run folder."""
    from recipe.reporting import compare as comparing

    both = _both(run, other, output)
    comparing.show(*both, console())
    click.echo(f"page          {both[0].run.shown(comparing.write(*both, root() / output / 'compare'))}")


@command("diff coach tutorial", "diff output/coach old/coach")
@click.argument("run")
@click.argument("other", metavar="RUN")
@output_option
def diff(run: str, other: str, output: str) -> None:
    """Print what differs between two runs: result, recipe, data, versions, machine."""
    from recipe.reporting import compare as comparing

    comparing.show(*_both(run, other, output), console())
