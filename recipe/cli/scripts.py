"""Commands that scripts under docker/ carry out. They are declared here for help and to check their words."""

from typing import Tuple

import click

from recipe.cli.command import Invocation, command, exec_script, run_options


@command("doctor", "doctor coach train.batch_size=4 --json")
@run_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(typed: Invocation, as_json: bool) -> None:
    """Tell what this machine can and cannot do, before anything is downloaded."""
    exec_script("runtime/doctor", [typed.recipe, *typed.overrides, "--output", typed.output, *["--json"] * as_json])


ACTIONS = ("build", "check", "pull", "push", "save", "load", "manifest", "sizes", "name")


@command("image", "image save internlm2-recipe.tar.gz", default="", settings=False)
@click.argument("action", type=click.Choice(ACTIONS), default="build", metavar="[ACTION]")
@click.argument("words", nargs=-1, metavar="[WHAT]")
def image(action: str, words: Tuple[str, ...]) -> None:
    """Build the container image, check it, publish it, or carry it in a file.

    \b
    build [final|devel|bare]   the default
    check                      packages, programs, a demo
    pull, push REPOSITORY      from or to a registry
    save, load FILE            one .tar.gz
    manifest, sizes, name      what is in it, how large, its name
    """
    exec_script("image", [action, *words])


@command("shell", "shell <commands.sh", default="", settings=False)
def shell() -> None:
    """Open a shell where the tutorial's own folders resolve: paste the page's commands."""
    exec_script("runtime/host", ["shell"])
