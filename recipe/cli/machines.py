"""Commands about machines: cluster (job files), bench (a training step on this card)."""

import shlex
from typing import Optional

import click

from recipe.cli.command import command, force_option, invocation, options, output_option, recipe_argument, say
from recipe.cli.run import load, only_fetches
from recipe.cluster import TARGETS
from recipe.core import settings


@command("cluster slurm coach nodes=2 gpus=8", "cluster sky coach", default="coach", settings=True)
@click.argument("target", type=click.Choice(sorted(TARGETS)))
@options(recipe_argument, output_option, force_option)
def cluster(target: str, recipe: Optional[str], output: str, force: bool) -> None:
    """Write a job file for several machines, from the recipe."""
    from recipe import cluster as jobs

    typed = invocation(recipe, output, force)
    run = load(typed)
    if not only_fetches(run):
        print(*jobs.write(run, target, shlex.quote(typed.recipe), typed.overrides), sep="\n")


@command("bench", "bench coach train.batch_size=4", default="coach", settings=True)
@options(recipe_argument, output_option)
def bench(recipe: Optional[str], output: str) -> None:
    """Time a training step on this card, and say how near that is to what it can do (2 minutes)."""
    from recipe.training import bench as benching

    typed = invocation(recipe, output)
    benching.run(settings.load(typed.recipe, typed.overrides)[1], typed.folder, click.echo)
    say("plan and doctor use it:", f"{output}/bench.json")
