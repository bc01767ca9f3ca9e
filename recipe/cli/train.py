"""Commands that run the whole pipeline: demo, train, merge, reproduce."""

from typing import Any, Optional

import click

from recipe.cli.command import (  # fmt: skip
    OUTPUT,
    checks_option,
    command,
    console,
    detach_option,
    exec_script,
    force_option,
    invocation,
    options,
    output_option,
    recipe_argument,
    say,
)
from recipe.cli.run import Show, check_before_detaching, join_other_nodes, load, only_fetches, run_stages
from recipe.core.commands import command_line
from recipe.core.errors import RunFailed

trains = options(recipe_argument, output_option, force_option, detach_option, checks_option)


def _train(recipe: Optional[str], output: str, force: bool, detach: bool, checks: bool, show: Any) -> None:
    typed = invocation(recipe, output, force)
    if detach:  # docker/runtime/run does this before it starts a container
        words = [typed.recipe, *typed.overrides, "--output", output, *["--force"] * force]
        exec_script("runtime/detach", [typed.command, *words, "--detach"])
    run = load(typed)
    if only_fetches(run) or join_other_nodes(run):
        return
    if checks:
        check_before_detaching(run, typed.command)
    else:
        run_stages(run, typed.command, lambda run: show(run, typed), closing=True)


@command("demo", "demo data.files=data/mine.xlsx", default="demo", settings=True)
@trains
def demo(recipe: Optional[str], output: str, force: bool, detach: bool, checks: bool) -> None:
    """Run everything on a tiny model: no GPU, no Docker, a few minutes."""
    _train(recipe, output, force, detach, checks, _show_demo)


def _show_demo(run: Any, typed: Any) -> None:
    from recipe.reporting import console as page

    page.samples(run)
    if "eval" in run.manifest["stages"]:
        click.echo(f"\nOn what was held out, {page.judged(run)}")
    say("\nNext, to talk to it:      ", command_line("chat", typed.quoted))
    say("your own workbook:       ", command_line("demo data.files=data/mine.xlsx"))
    say("on an NVIDIA GPU:        ", command_line("train"))


@command("train", "train coach train.max_epochs=5 --detach", default="coach", settings=True)
@trains
def train(recipe: Optional[str], output: str, force: bool, detach: bool, checks: bool) -> None:
    """Fine-tune: data, plan, config, model, training, adapter. A stopped run resumes when typed again."""
    _train(recipe, output, force, detach, checks, _show_train)


def _show_train(run: Any, typed: Any) -> None:
    from recipe.xtuner import preset_facts

    if preset_facts.method(run.settings) == "projector":
        say("\nNext: the second stage's recipe, with", f"model.pretrained_pth={run.shown(run.folder)}")
    else:
        say("\nNext:", command_line("merge", typed.same))


@command("merge", "merge coach --dry-run", default="coach", settings=True)
@trains
@click.option("--dry-run", is_flag=True, help="Say what it would write, or refuse; write nothing.")
def merge(recipe: Optional[str], output: str, force: bool, detach: bool, checks: bool, dry_run: bool) -> None:
    """Train, then join adapter and base into a model folder that loads anywhere, and evaluate it."""
    if not dry_run:
        _train(recipe, output, force, detach, checks, _show_merge)
        return
    from recipe.weights import merge as merging

    run = load(invocation(recipe, output, force))
    if not only_fetches(run):
        with run.open():
            print(*merging.dry_run(run), sep="\n")


def _show_merge(run: Any, typed: Any) -> None:
    say("\nNext:", command_line("chat", typed.quoted))


@command("reproduce", "reproduce --output output/again", default="tutorial", settings=True)
@options(recipe_argument, output_option, force_option)
def reproduce(recipe: Optional[str], output: str = OUTPUT, force: bool = False) -> None:
    """Repeat the tutorial exactly and compare it line by line with its published log."""
    from recipe.stages import reproduce as tutorial

    typed = invocation(recipe, output, force)
    typed.overrides[:] = tutorial.overrides(typed.overrides)
    run = load(typed, name="reproduce")  # a folder of its own: the tutorial's recipe may have been run otherwise

    def show(run: Any) -> None:
        if not tutorial.show(run, console()):
            raise RunFailed("The run differs from the published one in a line that can be compared.")

    shows: Show = show
    if not only_fetches(run):
        run_stages(run, typed.command, shows)
