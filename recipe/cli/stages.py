"""Commands of one stage: data, data-report, preview, plan, model, config, adapter."""

import json
from pathlib import Path
from typing import Any, Optional

import click

from recipe.cli.command import (  # fmt: skip
    command,
    console,
    force_option,
    invocation,
    options,
    output_option,
    recipe_argument,
    say,
)
from recipe.cli.run import Show, join_other_nodes, load, only_fetches, run_stages
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong

GROUP = "One stage"
stage_options = options(recipe_argument, output_option, force_option)


def _run(recipe: Optional[str], output: str, force: bool, show: Optional[Show] = None) -> None:
    typed = invocation(recipe, output, force)
    run = load(typed)
    if not only_fetches(run):
        run_stages(run, typed.command, show)


@command("data coach", "data coach data.files=data/mine.xlsx data.sha256=", group=GROUP, default="coach", settings=True)
@stage_options
def data(recipe: Optional[str], output: str, force: bool) -> None:
    """Turn workbook, CSV, JSON or Parquet into dataset.jsonl; list every fault by its row."""
    _run(recipe, output, force)


@command("data-report coach", "data-report demo", group=GROUP, default="coach", settings=True)
@stage_options
def data_report(recipe: Optional[str], output: str, force: bool) -> None:
    """Show what is in the data: lengths, likely mistakes, ten conversations as the model sees them."""
    from recipe.reporting import data_report as report

    _run(recipe, output, force, lambda run: say("\nThe same as a page:", run.shown(report.report(run, console()))))


@command("preview coach 3", "preview 3", group=GROUP, default="coach", settings=True)
@recipe_argument
@click.argument("row", required=False)
@output_option
@force_option
def preview(recipe: Optional[str], row: Optional[str], output: str, force: bool) -> None:
    """Show one conversation as the model will see it, its loss part marked. ROW counts from 1."""
    from recipe.reporting import data_report as report

    if recipe and recipe.isdecimal() and row is None:  # just preview 3
        recipe, row = None, recipe
    if row is not None and not (row.isdecimal() and int(row)):
        raise InputWrong(f"{row!r} is not a conversation number. Usage: {command_line('preview')} [recipe] [row]")
    _run(recipe, output, force, lambda run: report.preview(run, int(row or 1), console()))


@command("plan coach", "plan coach train.max_epochs=5 --png rate.png", group=GROUP, default="coach", settings=True)
@stage_options
@click.option("--png", metavar="FILE", help="Also draw the learning-rate curve into this file.")
def plan(recipe: Optional[str], output: str, force: bool, png: Optional[str]) -> None:
    """Predict a run: tokens, iterations, learning rate, memory, time and cost. Refuse one that cannot learn."""
    typed = invocation(recipe, output, force)

    def show(run: Any) -> None:
        from recipe.reporting import console as page

        made = json.loads(run.plan.read_text(encoding="utf-8"))
        page.show(made, console())
        if png:
            page.png(made, Path(png))
            say("\nCurve:", png)
        say("\nNext:", command_line("train", typed.same))

    _run(recipe, output, force, show)


@command("model coach", "model coach --verify", group=GROUP, default="coach", settings=True)
@stage_options
@click.option("--verify", is_flag=True, help="Read every byte again and compare it with what was fetched.")
@click.option("--tokenizer", is_flag=True, help="Fetch the tokenizer alone (1.5 MB), enough for plan.")
def model(recipe: Optional[str], output: str, force: bool, verify: bool, tokenizer: bool) -> None:
    """Fetch (or make) the base model, or check the one that is there."""
    typed = invocation(recipe, output, force)
    run = load(typed, verify=verify)
    if not only_fetches(run, tokenizer):
        run_stages(run, typed.command)


@command("config coach", "config coach lora.r=16", group=GROUP, default="coach", settings=True)
@stage_options
def config(recipe: Optional[str], output: str, force: bool) -> None:
    """Render the XTuner config from preset and recipe, and show the difference from the preset."""
    _run(recipe, output, force, lambda run: click.echo((run.folder / "config.diff").read_text(encoding="utf-8")))


@command("adapter coach", "adapter coach adapter.dtype=fp32", group=GROUP, default="coach", settings=True)
@stage_options
def adapter(recipe: Optional[str], output: str, force: bool) -> None:
    """Turn the last checkpoint into a PEFT adapter; train first where there is none."""
    typed = invocation(recipe, output, force)
    run = load(typed)
    if not (only_fetches(run) or join_other_nodes(run)):
        run_stages(run, typed.command)
