"""Commands for a run that was started elsewhere: watch, stop."""

import sys
from typing import Optional

from recipe.cli.command import command, invocation, options, output_option, recipe_argument
from recipe.cli.run import shown_path

named = options(recipe_argument, output_option)


@command("watch coach", "watch output/coach", default="coach", runs=True)
@named
def watch(recipe: Optional[str], output: str) -> None:
    """Follow a run that was started with --detach or elsewhere; Ctrl-C leaves it alone."""
    from recipe.training import watch as watching

    typed = invocation(recipe, output)
    folder = watching.find_run_folder(typed.recipe, typed.folder)
    sys.exit(watching.watch(folder, shown_path(folder)))


@command("stop coach", "stop output/coach", default="coach", runs=True)
@named
def stop(recipe: Optional[str], output: str) -> None:
    """End a run as SIGTERM does: training saves, and the same command goes on from there."""
    from recipe.training import watch as watching

    typed = invocation(recipe, output)
    folder = watching.find_run_folder(typed.recipe, typed.folder)
    sys.exit(watching.stop(folder, shown_path(folder)))
