"""What the commands' declarations share: a click command whose words may hold settings, and the options of all."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import click

from recipe.cli import grammar
from recipe.core.errors import InputWrong

OUTPUT = "output"


def root() -> Path:
    """The clone, from which relative paths count: the folder in which commands are typed."""
    return Path.cwd()


def say(what: str, command: str) -> None:
    click.echo(f"{what} {command}")


def console() -> Any:
    """For tables. Importing it takes as long as reading some thousand rows: only where there is one to show."""
    from rich.console import Console

    return Console(soft_wrap=True)


@dataclass(frozen=True)
class Invocation:
    """A command as it was typed, for the stages and for the commands that messages name."""

    command: str
    recipe: str
    overrides: List[str]
    output: str
    force: bool = False

    @property
    def folder(self) -> Path:
        """The folder for results."""
        return root() / self.output

    @property
    def quoted(self) -> str:
        """The recipe as the next command must name it, with --output where that was given."""
        return shlex.quote(self.recipe) + (f" --output {shlex.quote(self.output)}" if self.output != OUTPUT else "")

    @property
    def same(self) -> str:
        """Recipe, overrides and --force, as the next command must repeat them."""
        return " ".join([self.quoted, *map(shlex.quote, self.overrides), *["--force"] * self.force])


class Command(click.Command):
    """A command whose words may hold settings (key=value) wherever they stand; grammar.py sorts them.

    `group` and `examples` are for help, `default` is the recipe where none is named ("": the command takes none),
    `settings` whether it takes settings, `runs` whether a run's folder may be named in place of a recipe.
    """

    def __init__(
        self, *given: Any, group: str, examples: Sequence[str], default: str = "", settings: bool = False,
        runs: bool = False, **more: Any,
    ) -> None:  # fmt: skip
        super().__init__(*given, **more)
        self.group, self.examples, self.default, self.settings, self.runs = group, examples, default, settings, runs

    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        words: Sequence[str] = args
        if not {"-h", "--help"} & set(args):
            from recipe.core import settings

            grammar.check_full_width(args, settings.known_keys())
            found = grammar.sort_words(describe(self, str(ctx.info_name)), args)
            if found.settings and not self.settings:
                raise InputWrong(
                    f"{found.settings[0]}: {ctx.info_name} takes no settings, the run is as it was started."
                )
            ctx.meta["settings"] = found.settings
            words = [*found.options, "--", *found.arguments]
        return super().parse_args(ctx, list(words))

    def collect_usage_pieces(self, ctx: click.Context) -> List[str]:
        pieces = super().collect_usage_pieces(ctx)
        return [*pieces, "[KEY=VALUE]..."] if self.settings else pieces

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{grammar.JUST} {example}\n")


class Keyword(click.Option):
    """An option that is mostly typed as key=value: port=8502 for --port 8502."""


def help_context(command: Command, name: str) -> click.Context:
    """For help that is the same on every terminal and by every version of click."""
    return click.Context(
        command,
        info_name=f"{grammar.JUST} {name}",
        max_content_width=100,
        terminal_width=100,
        **command.context_settings,
    )


def describe(command: Command, name: str) -> Dict[str, Any]:
    """What grammar.py needs to know of a command."""
    options = [one for one in command.params if isinstance(one, click.Option)]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    context = help_context(command, name)
    return {
        "name": name,
        "group": command.group,
        "summary": command.get_short_help_str(100),
        "usage": " ".join([f"{grammar.JUST} {name}", *command.collect_usage_pieces(context)]),
        "recipe": command.default,
        "settings": command.settings,
        "runs": command.runs,
        "arguments": [
            {
                "name": (one.metavar or str(one.name).upper()).strip("[]."),
                "required": one.required,
                "many": one.nargs == -1,
                "choices": list(one.type.choices) if isinstance(one.type, click.Choice) else [],
            }
            for one in arguments
        ],
        "options": [
            {
                "names": [*one.opts, *one.secondary_opts],
                "value": not one.is_flag,
                "keyword": isinstance(one, Keyword),
                "hidden": one.hidden,
            }
            for one in options
        ]
        + [{"names": ["--help", "-h"], "value": False, "keyword": False, "hidden": False}],
    }


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
detach_option = click.option(
    "--detach", is_flag=True, help="Check, then go on in the background; follow it with `watch`, end it with `stop`."
)
checks_option = click.option("--checks", is_flag=True, hidden=True)  # for docker/runtime/detach


def invocation(recipe: Optional[str] = None, output: str = OUTPUT, force: bool = False) -> Invocation:
    """The current command as it was typed."""
    context = click.get_current_context()
    command = context.command
    assert isinstance(command, Command)
    if not output:
        raise InputWrong("--output= names no folder for the results.")
    return Invocation(
        str(context.info_name), recipe or command.default, list(context.meta.get("settings", [])), output, force
    )


def command(
    *examples: str, group: str = "Start", default: str = "", settings: bool = False, runs: bool = False
) -> Callable[[Any], Command]:
    """Declare a command: its examples (without `just`), and what Command has."""

    def decorate(function: Any) -> Command:
        made: Command = click.command(
            cls=Command, group=group, examples=examples, default=default, settings=settings, runs=runs,
            context_settings={"help_option_names": ["-h", "--help"]},
        )(function)  # fmt: skip
        return made

    return decorate


def exec_script(script: str, words: Sequence[str]) -> None:
    """Hand over to a script under docker/, which does this command's work."""
    path = root() / "docker" / script
    sys.stdout.flush()
    os.execv(str(path), [str(path), *words])
