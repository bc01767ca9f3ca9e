"""What commands share: how they are declared, settings among their words, common options."""

import functools
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

import click

from recipe.cli import grammar
from recipe.core.errors import InputWrong
from recipe.core.translation import _

OUTPUT = "output"


def root() -> Path:
    """The clone, which relative paths start from: commands run in it."""
    return Path.cwd()


def console() -> Any:
    """rich's console. Importing rich is slow, so only commands that print tables do it."""
    from rich.console import Console

    return Console(soft_wrap=True)


@dataclass(frozen=True)
class Invocation:
    """A command as it was typed."""

    command: str
    recipe: str
    overrides: List[str]
    output: str
    force: bool = False
    default: str = "coach"  # the recipe that a data file stands for

    @property
    def folder(self) -> Path:
        """The folder for results."""
        return root() / self.output

    @property
    def recipe_arguments(self) -> str:
        """The recipe, and --output if it was given, for the next command."""
        return shlex.quote(self.recipe) + (f" --output {shlex.quote(self.output)}" if self.output != OUTPUT else "")

    @property
    def arguments(self) -> str:
        """Recipe, overrides and --force, for the next command."""
        return " ".join([self.recipe_arguments, *map(shlex.quote, self.overrides), *["--force"] * self.force])


class Command(click.Command):
    """A command that takes settings (key=value) anywhere among its words.

    `group` and `examples` are for help. `default` is the recipe if none is named ("": the command takes none),
    `settings` whether it takes settings, `runs` whether a run's folder may be named instead of a recipe.
    """

    def __init__(
        self, *given: Any, group: str, examples: Sequence[str], default: str, settings: bool, runs: bool, **more: Any
    ) -> None:
        super().__init__(*given, **more)
        self.group, self.examples, self.default, self.settings, self.runs = group, examples, default, settings, runs

    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        words: Sequence[str] = args
        if not {"-h", "--help"} & set(args):
            known = grammar.load()
            grammar.check_full_width(args, list(known["settings"]))
            found = grammar.sort_words(known["commands"][ctx.info_name], args)
            if found.settings and not self.settings:
                raise InputWrong(
                    _(
                        "{setting}: {command} takes no settings: it uses those the run was started with.",
                        setting=found.settings[0],
                        command=ctx.info_name,
                    )
                )
            ctx.meta["settings"] = found.settings
            words = [*found.options, "--", *found.arguments]
        return super().parse_args(ctx, list(words))

    def collect_usage_pieces(self, ctx: click.Context) -> List[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces, "[KEY=VALUE]..."] if self.settings else pieces

    def get_help(self, ctx: click.Context) -> str:
        return grammar.help_text(grammar.load()["commands"][str(ctx.info_name)])


class Keyword(click.Option):
    """An option that may be typed as key=value: port=8502 for --port 8502."""


def command(
    *examples: str, group: str = "Start", default: str = "coach", settings: bool = True, runs: bool = False
) -> Callable[[Any], Command]:
    """Declare a command: its examples (without `just`), and what Command has.

    A command with --output gets an Invocation in place of recipe, --output and --force.
    """

    def decorate(function: Any) -> Command:
        @functools.wraps(function)
        def call(**given: Any) -> None:
            if "output" in given:
                typed = _invocation(given.pop("recipe", None), given.pop("output"), given.pop("force", False))
                function(typed, **given)
            else:
                function(**given)

        made: Command = click.command(
            cls=Command, group=group, examples=examples, default=default, settings=settings, runs=runs,
            context_settings={"help_option_names": ["-h", "--help"]},
        )(call)  # fmt: skip
        return made

    return decorate


def _invocation(recipe: Optional[str], output: str, force: bool) -> Invocation:
    context = click.get_current_context()
    command = context.command
    assert isinstance(command, Command)
    if not output:
        raise InputWrong(_("--output= is empty: name a folder for the results."))
    overrides = list(context.meta.get("settings", []))
    return Invocation(str(context.info_name), recipe or command.default, overrides, output, force, command.default)


def options(*wanted: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators as one, the first outermost."""

    def decorate(function: Any) -> Any:
        for one in reversed(wanted):
            function = one(function)
        return function

    return decorate


recipe_argument = click.argument("recipe", required=False)
output_option = click.option(
    "--output", default=OUTPUT, show_default=True, metavar="FOLDER", help="Folder for results, one subfolder a recipe."
)
force_option = click.option("--force", is_flag=True, help="Go on although plan or merge refuses; recorded in run.json.")
run_options = options(recipe_argument, output_option)
stage_options = options(recipe_argument, output_option, force_option)


def exec_script(script: str, words: Sequence[str]) -> None:
    """Replace this process by a script under docker/, which does the command's work."""
    path = root() / "docker" / script
    sys.stdout.flush()
    os.execv(str(path), [str(path), *words])
