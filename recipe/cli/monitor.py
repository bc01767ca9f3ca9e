"""Commands for a run that was started elsewhere: watch, stop."""

import sys
from typing import Callable

from recipe.cli.command import Invocation, command, run_options
from recipe.cli.run import shown_path


@command("watch coach", "watch output/coach", settings=False, runs=True)
@run_options
def watch(typed: Invocation) -> None:
    """Follow a run that was started with --detach or elsewhere; Ctrl-C leaves it alone."""
    from recipe.training.watch import watch

    _call(watch, typed)


@command("stop coach", "stop output/coach", settings=False, runs=True)
@run_options
def stop(typed: Invocation) -> None:
    """End a run as SIGTERM does: training saves, and the same command goes on from there."""
    from recipe.training.watch import stop

    _call(stop, typed)


def _call(action: Callable[..., int], typed: Invocation) -> None:
    from recipe.training.watch import find_started

    folder = find_started(typed.recipe, typed.folder)
    sys.exit(action(folder, shown_path(folder)))
