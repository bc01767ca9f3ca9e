"""Commands that read finished runs: report, verify, compare, diff. No stage runs in a run's folder."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import click

from recipe.cli.command import Invocation, command, console, options, output_option, root, run_options
from recipe.core.errors import RunFailed
from recipe.core.overrides import price
from recipe.core.text_width import ljust
from recipe.core.translation import _

two_runs = options(click.argument("run"), click.argument("other", metavar="RUN"), output_option)
compares = functools.partial(command, default="", settings=False)


def _find(run: str, typed: Invocation) -> Any:
    from recipe.reporting import run_view

    return run_view.find_run(run, root(), typed.folder)


@command("report coach", "report coach plan.price_per_hour=1.5", runs=True)
@run_options
def report(typed: Invocation) -> None:
    """Write what happened on one page: verdict, curves, answers, provenance. Works at every stage."""
    from recipe.reporting import report as reporting

    run = _find(typed.recipe, typed)
    written = reporting.write(run, price=price(typed.overrides))
    click.echo(f"{ljust(_('report'), 13)} {run.relative(written)}")


@command("verify coach", "verify output/coach", settings=False, runs=True)
@run_options
def verify(typed: Invocation) -> None:
    """Check a finished run again: every file; data, plan, config and adapter made anew."""
    from recipe.reporting import verify as verifying

    run = _find(typed.recipe, typed)
    typed.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=str(typed.folder)) as beside:
        equal = verifying.show(verifying.check_run(run, Path(beside)), console())
    if not equal:
        raise RunFailed(_("Some results differ from what this run made."))


@compares("compare coach tutorial", "compare output/coach old/coach")
@two_runs
def compare(typed: Invocation, run: str, other: str) -> None:
    """Put two runs on a page, with both curves. Each is a recipe's name or a run folder."""
    from recipe.reporting import compare as comparing

    first, second = _show_differences(typed, run, other)
    page = comparing.write(first, second, typed.folder / "compare")
    click.echo(f"{ljust(_('page'), 13)} {first.run.relative(page)}")


@compares("diff coach tutorial", "diff output/coach old/coach")
@two_runs
def diff(typed: Invocation, run: str, other: str) -> None:
    """Print what differs between two runs: result, recipe, data, versions, machine."""
    _show_differences(typed, run, other)


def _show_differences(typed: Invocation, run: str, other: str) -> Any:
    from recipe.reporting import compare as comparing
    from recipe.reporting import run_view

    first, second = (run_view.read_run(_find(name, typed)) for name in (run, other))
    comparing.show(first, second, console())
    return first, second
