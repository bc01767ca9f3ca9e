"""Commands that run the whole pipeline: demo, train, merge, reproduce."""

from typing import Any

import click

from recipe.cli.command import Invocation, command, console, exec_script, options, stage_options
from recipe.cli.run import check_before_detaching, join_other_nodes, load, run_stages
from recipe.core.commands import command_line
from recipe.core.errors import RunFailed
from recipe.core.translation import _

training_options = options(
    stage_options,
    click.option(
        "--detach",
        is_flag=True,
        help="Check, then go on in the background; follow it with `watch`, end it with `stop`.",
    ),
    click.option("--checks", is_flag=True, hidden=True),  # for docker/runtime/detach
)


def _train(typed: Invocation, detach: bool, checks: bool, show: Any) -> None:
    if detach:  # docker/runtime/run does this before it starts a container
        words = [typed.recipe, *typed.overrides, "--output", typed.output, *["--force"] * typed.force]
        exec_script("runtime/detach", [typed.command, *words, "--detach"])
    run = load(typed)
    if join_other_nodes(run):
        return
    if checks:
        check_before_detaching(run, typed.command)
    else:
        run_stages(run, typed.command, lambda run: show(run, typed), closing=True)


@command("demo", "demo data/mine.xlsx", default="demo")
@training_options
def demo(typed: Invocation, detach: bool, checks: bool) -> None:
    """Fine-tune a small pre-trained model on a sample workbook: no GPU, no Docker, a few minutes."""
    _train(typed, detach, checks, _show_demo)


def _show_demo(run: Any, typed: Invocation) -> None:
    from recipe.reporting import console as page

    page.show_samples(run, console())
    if "eval" in run.manifest["stages"]:
        click.echo("\n" + _("On what was held out, {verdict}", verdict=page.evaluation_verdict(run)))
    click.echo()
    click.echo(_("Next, to talk to it:       {command}", command=command_line("chat", typed.recipe_arguments)))
    click.echo(_("your own workbook:        {command}", command=command_line("demo", "data/mine.xlsx")))
    click.echo(_("on an NVIDIA GPU:         {command}", command=command_line("train")))


@command("train data/mine.xlsx", "train coach train.max_epochs=5 --detach")
@training_options
def train(typed: Invocation, detach: bool, checks: bool) -> None:
    """Fine-tune: data, plan, config, model, training, adapter. A stopped run resumes when typed again."""
    _train(typed, detach, checks, _show_train)


def _show_train(run: Any, typed: Invocation) -> None:
    from recipe.xtuner import preset_facts

    if preset_facts.method(run.settings) == "projector":
        word = f"model.pretrained_pth={run.relative(run.folder)}"
        click.echo("\n" + _("Next: the second stage's recipe, with {setting}", setting=word))
    else:
        click.echo("\n" + _("Next: {command}", command=command_line("merge", typed.arguments)))


@command("merge data/mine.xlsx", "merge coach --dry-run")
@training_options
@click.option("--dry-run", is_flag=True, help="Say what it would write, or refuse; write nothing.")
def merge(typed: Invocation, detach: bool, checks: bool, dry_run: bool) -> None:
    """Train, then join adapter and base into a model folder that loads anywhere, and evaluate it."""
    if not dry_run:
        _train(typed, detach, checks, _show_merge)
        return
    from recipe.weights import merge as merging

    run = load(typed)
    with run.open():
        print(*merging.dry_run(run), sep="\n")


def _show_merge(run: Any, typed: Invocation) -> None:
    click.echo("\n" + _("Next: {command}", command=command_line("chat", typed.recipe_arguments)))


@command("reproduce", "reproduce --output output/again", default="tutorial")
@stage_options
def reproduce(typed: Invocation) -> None:
    """Repeat the tutorial exactly and compare it line by line with its published log."""
    from recipe.stages import reproduce as tutorial

    typed.overrides[:] = tutorial.overrides(typed.overrides)

    def show(run: Any) -> None:
        if not tutorial.show(run, console()):
            raise RunFailed(_("At least one comparable line differs from the published run."))

    # A folder of its own: the tutorial's recipe may have been run with other settings.
    run_stages(load(typed, name="reproduce"), typed.command, show)
