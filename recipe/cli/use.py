"""Commands that use a trained model: eval, chat, web, export. None of them trains."""

import json
from typing import Any, List, Optional

import click

from recipe.cli.command import (  # fmt: skip
    Invocation,
    Keyword,
    command,
    console,
    force_option,
    invocation,
    options,
    output_option,
    recipe_argument,
    root,
    say,
)
from recipe.cli.run import load, only_fetches, reported
from recipe.core import overrides, settings
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.export.targets import TARGETS

# Settings that no training depends on.
INDEPENDENT = (
    "eval.",
    "export.",
    "plan.",
    "cluster.",
    "merge.",
    "model.path",
    "model.tokenizer",
    "model.visual_encoder",
)


def use_trained_settings(run: Any, typed: Invocation) -> None:
    """Take the settings of the training that is there, with those overrides that it does not depend on.

    Raises InputWrong for an override that asks for another training: it would take hours of a card unasked.
    """
    wanted, other = run.settings, []
    run.recall()
    # How it is measured is as the recipe says now.
    run.settings = settings.replace(run.settings, "eval", wanted.eval.model_dump())
    for name in ("model.path", "model.tokenizer"):  # it may have been moved, and the recipe corrected
        old, new = overrides.get(run.settings, name), overrides.get(wanted, name)
        if old and new and not (root() / old).exists():
            run.settings = settings.replace(run.settings, name, new)
    for word in typed.overrides:
        name = word.partition("=")[0]
        new, old = overrides.get(wanted, name), overrides.get(run.settings, name)
        kept = run.settings.data
        # An exam in place of what is held out: only where nothing of the data was.
        if name.startswith(INDEPENDENT) or (name == "data.eval_files" and (kept.eval_files or not kept.eval_share)):
            run.settings = settings.replace(run.settings, name, new)
        elif new != old:
            other.append(f"{name} was {json.dumps(old, ensure_ascii=False)}")
    if other:
        raise InputWrong(
            f"{typed.command} never trains, and the model in {run.shown(run.folder)} was trained with other settings: "
            f"{', '.join(other)}. Retrain with: {command_line(_makes(wanted), typed.same)}"
        )


def _makes(recipe: Any) -> str:
    """The command that makes a recipe's model: a projector is merged into nothing."""
    from recipe.xtuner import preset_facts

    return "train" if preset_facts.method(recipe) == "projector" else "merge"


def _is_trained(run: Any) -> bool:
    return run.config.is_file() and (run.merged.is_dir() or run.adapter.is_dir())


def _refuse_untrained(run: Any, typed: Invocation, hint: str = "") -> None:
    if not _is_trained(run):
        raise InputWrong(
            f"Nothing is trained in {run.shown(run.folder)} yet, and {typed.command} never trains.{hint} Train with: "
            f"{command_line(_makes(run.settings), typed.same)}"
        )


@command("eval coach", "eval coach eval.answers=100", default="coach", settings=True)
@options(recipe_argument, output_option, force_option)
def eval_(recipe: Optional[str], output: str, force: bool) -> None:
    """Is it better? Compare base and tuned model on the conversations held out of training."""
    from recipe.reporting import console as page
    from recipe.stages import pipeline

    typed = invocation(recipe, output, force)
    run = load(typed)
    if only_fetches(run):
        return
    _refuse_untrained(run, typed)
    with run.open():
        use_trained_settings(run, typed)
        pipeline.evaluate_trained(run)
        page.verdict(run, console())
        for what, path in reported(run):
            say(f"{what:13}", path)


@command("chat coach", "chat coach 我最近压力很大，怎么办？ model=base", default="coach", settings=True)
@recipe_argument
@click.argument("question", required=False)
@click.option(
    "--model",
    cls=Keyword,
    type=click.Choice(["base", "adapter", "merged"]),
    help="Which model answers (default: the tuned).",
)
@click.option("--image", cls=Keyword, metavar="FILE", help="An image to talk about (LLaVA).")
@output_option
@force_option
def chat(
    recipe: Optional[str], question: Optional[str], model: Optional[str], image: Optional[str], output: str, force: bool
) -> None:
    """Talk to the model, or ask one QUESTION. A pipe is read line by line."""
    from recipe.base_model import folder as base
    from recipe.inference import loading
    from recipe.inference.terminal import talk
    from recipe.stages import pipeline

    typed = invocation(recipe, output, force)
    run = load(typed)
    if only_fetches(run):
        return
    which = model or ""
    if which != "base":
        _refuse_untrained(run, typed, " The base model can be talked to: model=base.")
    with run.open():  # what is there is used, whatever has changed since; the base needs no training
        if _is_trained(run) and (which != "base" or not typed.overrides):
            use_trained_settings(run, typed)
        if not base.folder(run).is_dir() and (which == "base" or loading.find_model(run, which).adapter):
            pipeline.run_stages(run, "model")
    talk(run, question, which, image or "")


@command("web coach", "web coach port=8502", default="coach", runs=True)
@recipe_argument
@click.option(
    "--host", cls=Keyword, metavar="ADDRESS", help="Where it listens (default: 127.0.0.1, this machine alone)."
)
@click.option("--port", cls=Keyword, metavar="NUMBER", help="Default: 8501.")
@click.option("--token", cls=Keyword, metavar="TEXT", help="What a browser has to bring (default: WEB_TOKEN).")
@click.option("--model", cls=Keyword, metavar="NAME", help="adapter or merged, beside the base.")
@output_option
def web(
    recipe: Optional[str],
    host: Optional[str],
    port: Optional[str],
    token: Optional[str],
    model: Optional[str],
    output: str,
) -> None:
    """Talk to base and tuned side by side, look at the run and the data, in a browser."""
    from recipe.web import serve

    typed = invocation(recipe, output)
    given = {"host": host, "port": port, "token": token, "model": model}
    words: List[str] = [f"{name}={value}" for name, value in given.items() if value is not None]
    serve.start(typed.recipe, words, root(), typed.folder)


@command("export vllm coach", "export gguf coach export.type=q8_0", default="coach", settings=True)
@click.argument("target", type=click.Choice(sorted(TARGETS)))
@recipe_argument
@click.option("--yes", is_flag=True, help="upload: really send; without it only what would go is shown.")
@output_option
@force_option
def export(target: str, recipe: Optional[str], yes: bool, output: str, force: bool) -> None:
    """Hand the merged model to another engine."""
    from recipe.export import targets as exporting

    typed = invocation(recipe, output, force)
    run = load(typed)
    if only_fetches(run):
        return
    foreign = [word for word in typed.overrides if not word.startswith("export.")]
    if foreign:
        raise InputWrong(f"{foreign[0]}: the model is trained and merged; export takes only export.… settings.")
    asking = run.settings.export.model_dump()
    with run.open():
        run.recall()
        run.settings = settings.replace(run.settings, "export", asking)
        exporting.hand_over(run, target, typed.quoted, yes)
