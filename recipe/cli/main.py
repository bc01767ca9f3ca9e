"""The command line: finds a command's module, runs it, and turns every failure into one paragraph and an exit code."""

import contextlib
import importlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import click

from recipe.cli import grammar
from recipe.cli.command import OUTPUT
from recipe.core.commands import program
from recipe.core.errors import HostLacks, InputWrong, NotFetched, RecipeError, Stopped, reason
from recipe.core.translation import _, mark, prepare_streams, stored

# command → module of this package. A command is the module's function of its name, with _ for -.
COMMANDS: Dict[str, str] = {
    "demo": "train",
    "doctor": "scripts",
    "train": "train",
    "merge": "train",
    "eval": "use",
    "chat": "use",
    "watch": "monitor",
    "stop": "monitor",
    "web": "use",
    "report": "results",
    "verify": "results",
    "compare": "results",
    "diff": "results",
    "export": "use",
    "cluster": "machines",
    "reproduce": "train",
    "image": "scripts",
    "bench": "machines",
    "presets": "presets",
    "new": "presets",
    "shell": "scripts",
    "data": "stages",
    "data-report": "stages",
    "preview": "stages",
    "plan": "stages",
    "model": "stages",
    "config": "stages",
    "adapter": "stages",
}
# What Ctrl-C leaves, where it is not a training.
INTERRUPTED = {
    "chat": mark("Stopped."),
    "model": mark("Stopped: what has arrived is kept, the same command goes on from there."),
    "watch": mark("Stopped watching; the run goes on."),
    "stop": mark("Stopped waiting."),
}
STOPPED = mark("Stopped: the same command continues from the last checkpoint, if any.")
# What click says of words that grammar.py lets pass.
CLICK_MESSAGES = (
    mark("Invalid value for {option}: {problem}"),
    mark("{value} is not one of {choices}."),
    mark("Missing option {option}."),
    mark("Missing argument {argument}."),
    mark("Missing parameter: {name}"),
    mark("Option {option} requires an argument."),
    mark("Option {option} does not take a value."),
    mark("No such option: {option}"),
    mark("Got unexpected extra argument ({words})"),
    mark("Got unexpected extra arguments ({words})"),
)


class Commands(click.Group):
    """The commands, imported when one is asked for."""

    def list_commands(self, ctx: click.Context) -> List[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{COMMANDS[cmd_name]}", __package__)
        name = cmd_name.replace("-", "_")
        found: click.Command = getattr(module, name, None) or getattr(module, f"{name}_")
        return found

    def resolve_command(self, ctx: click.Context, args: List[str]) -> Any:
        if args[0] not in COMMANDS:
            raise grammar.unknown_command(args[0], list(COMMANDS))
        return super().resolve_command(ctx, args)

    def main(self, args: Optional[Sequence[str]] = None, prog_name: Optional[str] = None, **more: Any) -> Any:
        """Run a command line (default: this process's) and exit with its code."""
        words = sys.argv[1:] if args is None else list(args)
        prepare_streams()
        command = words[0] if words else "help"
        output = grammar.value_of(words, "--output", OUTPUT)
        try:
            text = grammar.answer(words)
            if text is not None:
                click.echo(text)
                return
            color = False if os.environ.get("NO_COLOR") else None
            super().main(args=words, prog_name=program(), standalone_mode=False, color=color)
        except RecipeError as error:
            click.secho(str(error), fg=None if isinstance(error, (NotFetched, Stopped)) else "red", err=True)
            sys.exit(error.code)
        except click.UsageError as error:
            told = _("{place}: {problem}", place=command, problem=stored(error.format_message()))
            click.secho(told, fg="red", err=True)
            sys.exit(InputWrong.code)
        except (KeyboardInterrupt, click.Abort):
            click.secho(_(INTERRUPTED.get(command, STOPPED)), err=True)
            sys.exit(130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                place = error.filename or output
                what = _("{reason}: {path}. Nothing made before is lost.", reason=reason(error), path=place)
                click.secho(what, fg="red", err=True)
                sys.exit(HostLacks.code)
            # Not one of the failures we know: say so in a line, keep the details for a report. In a container /tmp is
            # gone with it.
            name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
            details = traceback.format_exc()
            report = Path(output, name)
            try:
                Path(output).mkdir(parents=True, exist_ok=True)
                report.write_text(details, encoding="utf-8", errors="replace")
            except OSError:
                report = Path(tempfile.gettempdir(), name)
                report.write_text(details, encoding="utf-8", errors="replace")
            what = f"{type(error).__name__}: {error}"
            said = _("Unexpected: {error}. Details for a report: {file}", error=what, file=report)
            click.secho(said, fg="red", err=True)
            sys.exit(1)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Workbook in, fine-tuned InternLM2-chat-7B out."""


def prepare_process(root: Path) -> None:
    """Set what libraries read when imported: caches stay in our folder, only the model stage uses a network."""
    cache = Path(os.environ.get("RECIPE_CACHE") or root / ".cache")
    os.environ.setdefault("HF_HOME", str(cache / "huggingface"))
    os.environ.setdefault("MODELSCOPE_CACHE", str(cache / "modelscope"))
    os.environ.setdefault("XDG_CACHE_HOME", str(cache))  # of what these import
    # A container's user may have no home, or one on a read-only root; libraries write there without asking.
    if not os.access(os.path.expanduser("~"), os.W_OK):
        os.environ["HOME"] = str(cache / "home")
        with contextlib.suppress(OSError):  # a folder that cannot be written is reported by the stage that needs it
            Path(os.environ["HOME"]).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait by spinning slow training a hundredfold when anything else wants the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "FALSE")
