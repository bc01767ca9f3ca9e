"""Commands of one stage: data, data-report, preview, plan, model, config, adapter."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Optional

import click

from recipe.cli import command as cli
from recipe.cli.command import Invocation, console, force_option, output_option, recipe_argument, stage_options
from recipe.cli.run import fetch_tokenizer, join_other_nodes, load, run_stages
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.translation import _, mark, sentences

command = functools.partial(cli.command, group=mark("One stage"))


@command("data coach", "data data/mine.xlsx")
@stage_options
def data(typed: Invocation) -> None:
    """Turn workbook, CSV, JSON or Parquet into dataset.jsonl; list every fault by its row."""
    run_stages(load(typed), typed.command)


@command("data-report coach", "data-report data/mine.xlsx")
@stage_options
def data_report(typed: Invocation) -> None:
    """Show what is in the data: lengths, likely mistakes, ten conversations as the model sees them."""
    from recipe.reporting import data_report as report

    def show(run: Any) -> None:
        click.echo("\n" + _("The same as a page: {file}", file=run.relative(report.write(run, console()))))

    run_stages(load(typed), typed.command, show)


@command("preview coach 3", "preview 3")
@recipe_argument
@click.argument("row", required=False)
@output_option
@force_option
def preview(typed: Invocation, row: Optional[str]) -> None:
    """Show one conversation as the model will see it, its loss part marked. ROW counts from 1."""
    from recipe.reporting import data_report as report

    if typed.recipe.isdecimal() and row is None:  # preview 3
        typed, row = dataclasses.replace(typed, recipe="coach"), typed.recipe
    if row is not None and not (row.isdecimal() and int(row)):
        usage = f"{command_line('preview')} [recipe] [row]"
        raise InputWrong(
            sentences(_("{row!r} is not a conversation number.", row=row), _("Usage: {usage}", usage=usage))
        )
    run_stages(load(typed), typed.command, lambda run: report.preview(run, int(row or 1), console()))


@command("plan coach", "plan data/mine.xlsx train.max_epochs=5 --png rate.png")
@stage_options
@click.option("--png", metavar="FILE", help="Also draw the learning-rate curve into this file.")
def plan(typed: Invocation, png: Optional[str]) -> None:
    """Predict a run: tokens, iterations, learning rate, memory, time and cost. Refuse one that cannot learn."""

    def show(run: Any) -> None:
        from recipe.reporting import charts, plan_table

        made = json.loads(run.plan.read_text(encoding="utf-8"))
        plan_table.show_plan(made, console())
        if png:
            charts.save_learning_rate(made, Path(png))
            click.echo("\n" + _("Curve: {file}", file=png))
        click.echo("\n" + _("Next: {command}", command=command_line("train", typed.arguments)))

    run_stages(load(typed), typed.command, show)


@command("model coach", "model coach --verify")
@stage_options
@click.option("--verify", is_flag=True, help="Read every byte again and compare it with what was fetched.")
@click.option("--tokenizer", is_flag=True, help="Fetch the tokenizer alone (1.5 MB), enough for plan.")
def model(typed: Invocation, verify: bool, tokenizer: bool) -> None:
    """Fetch (or make) the base model, or check the one that is there."""
    run = load(typed, verify=verify)
    if tokenizer:
        fetch_tokenizer(run)
    else:
        run_stages(run, typed.command)


@command("config coach", "config coach lora.r=16")
@stage_options
def config(typed: Invocation) -> None:
    """Render the XTuner config from preset and recipe, and show the difference from the preset."""

    def show(run: Any) -> None:
        click.echo((run.folder / "config.diff").read_text(encoding="utf-8"))

    run_stages(load(typed), typed.command, show)


@command("adapter coach", "adapter coach adapter.dtype=fp32")
@stage_options
def adapter(typed: Invocation) -> None:
    """Turn the last checkpoint into a PEFT adapter; train first where there is none."""
    run = load(typed)
    if not join_other_nodes(run):
        run_stages(run, typed.command)
