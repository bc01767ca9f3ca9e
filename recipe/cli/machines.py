"""Commands about machines: cluster (job files), bench (a training step on this card)."""

import click

from recipe.cli.command import Invocation, command, run_options, stage_options
from recipe.cli.run import load
from recipe.cluster import TARGETS
from recipe.core import settings
from recipe.core.overrides import to_toml
from recipe.core.translation import _


@command("cluster slurm coach nodes=2 gpus=8", "cluster sky coach")
@click.argument("target", type=click.Choice(sorted(TARGETS)))
@stage_options
def cluster(typed: Invocation, target: str) -> None:
    """Write a job file for several machines, from the recipe."""
    from recipe import cluster as jobs

    run = load(typed)
    if run.source and "system" not in run.source:  # the machines may have no folder that remembers it
        typed.overrides.append(f"data.system={to_toml(run.settings.data.system)}")
    print(*jobs.write(run, target, typed.recipe, typed.overrides), sep="\n")


@command("bench", "bench coach train.batch_size=4")
@run_options
def bench(typed: Invocation) -> None:
    """Time a training step on this card, and say how near that is to what it can do (2 minutes)."""
    from recipe.training import bench as benching

    benching.run(settings.load(typed.recipe, typed.overrides, typed.folder)[1], typed.folder, click.echo)
    click.echo(_("plan and doctor use it: {file}", file=f"{typed.output}/bench.json"))
