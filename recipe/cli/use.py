"""Commands that use a trained model: eval, chat, web, export. None of them trains."""

import json
from typing import Any, List, Optional

import click

from recipe.cli.command import (
    Invocation,
    Keyword,
    command,
    console,
    force_option,
    output_option,
    recipe_argument,
    root,
    stage_options,
)  # fmt: skip
from recipe.cli.run import load, write_report
from recipe.core import overrides, settings
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.translation import _, listed, sentences
from recipe.export.targets import TARGETS

# Settings that a training does not depend on.
INDEPENDENT = (
    "eval.", "export.", "plan.", "cluster.", "merge.", "model.path", "model.tokenizer", "model.visual_encoder",
)  # fmt: skip


def use_trained_settings(run: Any, typed: Invocation) -> None:
    """Take the settings of the finished training, and those overrides that it does not depend on.

    Raises InputWrong for any other override: it would need another training.
    """
    wanted, conflicts = run.settings, []
    run.use_trained_settings()
    data = run.settings.data
    run.settings = settings.replace(run.settings, "eval", wanted.eval.model_dump())
    for key in ("model.path", "model.tokenizer"):  # the recipe may name the new place of a folder that was moved
        old, new = overrides.get(run.settings, key), overrides.get(wanted, key)
        if old and new and not (root() / old).exists():
            run.settings = settings.replace(run.settings, key, new)
    for word in typed.overrides:
        key = word.partition("=")[0]
        new, old = overrides.get(wanted, key), overrides.get(run.settings, key)
        # Other files may replace the held-out conversations only if the training data lost none.
        independent = key == "data.eval_files" and (data.eval_files or not data.eval_share)
        if key.startswith(INDEPENDENT) or independent:
            run.settings = settings.replace(run.settings, key, new)
        elif new != old:
            was = _("was {value}", value=json.dumps(old, ensure_ascii=False))
            conflicts.append(f"{key} {was}")
    if conflicts:
        raise InputWrong(
            _(
                "{command} never trains, and the model in {folder} was trained with other settings: {conflicts}. "
                "Retrain with: {training}",
                command=typed.command,
                folder=run.relative(run.folder),
                conflicts=listed(conflicts),
                training=_training_command(wanted, typed),
            )
        )


def _training_command(recipe: Any, typed: Invocation) -> str:
    """The command that makes the recipe's model. A projector is not merged."""
    from recipe.xtuner import preset_facts

    return command_line("train" if preset_facts.method(recipe) == "projector" else "merge", typed.arguments)


def _is_trained(run: Any) -> bool:
    return run.config.is_file() and (run.merged.is_dir() or run.adapter.is_dir())


def _check_trained(run: Any, typed: Invocation, hint: str = "") -> None:
    if not _is_trained(run):
        said = _(
            "Nothing has been trained in {folder}, and {command} never trains.",
            folder=run.relative(run.folder),
            command=typed.command,
        )
        training = _("Train with: {command}", command=_training_command(run.settings, typed))
        raise InputWrong(sentences(said, hint, training))


@command("eval data/mine.xlsx", "eval coach eval.answers=100")
@stage_options
def eval_(typed: Invocation) -> None:
    """Is it better? Compare base and tuned model on the conversations held out of training."""
    from recipe.reporting import console as page
    from recipe.stages import pipeline

    run = load(typed)
    _check_trained(run, typed)
    with run.open():
        use_trained_settings(run, typed)
        pipeline.evaluate_trained(run)
        page.show_evaluation(run, console())
        write_report(run)


@command("chat coach", "chat coach 我最近压力很大，怎么办？ model=base")
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
def chat(typed: Invocation, question: Optional[str], model: Optional[str], image: Optional[str]) -> None:
    """Talk to the model, or ask one QUESTION. A pipe is read line by line."""
    from recipe.base_model import folder as base
    from recipe.inference import loading
    from recipe.inference.terminal import talk
    from recipe.stages import pipeline

    run = load(typed)
    which = model or ""
    if which != "base":
        _check_trained(run, typed, _("You can chat with the base model: model=base."))
    with run.open():
        if _is_trained(run) and (which != "base" or not typed.overrides):
            use_trained_settings(run, typed)
        if not base.folder(run).is_dir() and (which == "base" or loading.find_model(run, which).adapter):
            pipeline.run_stages(run, "model")
    talk(run, question, which, image or "")


@command("web coach", "web coach port=8502", settings=False, runs=True)
@recipe_argument
@click.option(
    "--host", cls=Keyword, metavar="ADDRESS", help="Where it listens (default: 127.0.0.1, this machine alone)."
)
@click.option("--port", cls=Keyword, metavar="NUMBER", help="Default: 8501.")
@click.option("--token", cls=Keyword, metavar="TEXT", help="What a browser has to bring (default: WEB_TOKEN).")
@click.option("--model", cls=Keyword, metavar="NAME", help="adapter or merged, beside the base.")
@output_option
def web(typed: Invocation, **given: Optional[str]) -> None:
    """Talk to base and tuned side by side, look at the run and the data, in a browser."""
    from recipe.web import serve

    words: List[str] = [f"{name}={value}" for name, value in given.items() if value is not None]
    serve.start(typed.recipe, words, root(), typed.folder)


@command("export vllm coach", "export gguf coach export.type=q8_0")
@click.argument("target", type=click.Choice(sorted(TARGETS)))
@recipe_argument
@click.option("--yes", is_flag=True, help="upload: really send; without it only what would go is shown.")
@output_option
@force_option
def export(typed: Invocation, target: str, yes: bool) -> None:
    """Hand the merged model to another engine."""
    from recipe.export import targets as exporting

    run = load(typed)
    foreign = [word for word in typed.overrides if not word.startswith("export.")]
    if foreign:
        raise InputWrong(
            _("{setting}: the model is already trained; export accepts only export.… settings.", setting=foreign[0])
        )
    wanted = run.settings.export.model_dump()
    with run.open():
        run.use_trained_settings()
        run.settings = settings.replace(run.settings, "export", wanted)
        exporting.export(run, target, typed.recipe_arguments, yes)
