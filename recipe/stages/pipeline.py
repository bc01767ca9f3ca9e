"""Which stages each command runs, and in which order."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple, Union

import click

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong, RecipeError, RunFailed
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.stage import Stage, perform
from recipe.core.translation import _, listed, sentences, stored
from recipe.inference.evaluate import is_quick, is_there
from recipe.stages import (
    adapter,
    config,
    data,
    evaluate,
    merge,
    model,
    plan,
    reproduce,
    samples,
    train,
    waiting_trainer,
)
from recipe.xtuner import preset_facts

Items = Tuple[Union[Stage, Callable[[Run], None]], ...]  # a function checks or sets something between two stages

# The checks of machine and plan come before the model, which is 15 GB.
PLANNED: Items = (data.STAGE, train.preflight, plan.STAGE, config.STAGE)
TRAINED: Items = (*PLANNED, model.STAGE, train.STAGE, adapter.STAGE)
MERGED: Items = (*TRAINED, merge.STAGE)
ORDER: Items = (*MERGED, samples.STAGE)
COMMANDS: Dict[str, Items] = {
    "data": (data.STAGE,),
    "data-report": (data.STAGE,),
    "preview": (data.STAGE,),
    "plan": (data.STAGE, plan.STAGE),
    "config": (data.STAGE, plan.STAGE, config.STAGE),
    "model": (model.STAGE,),
    "train": TRAINED,
    "adapter": TRAINED,
    "merge": (*MERGED, evaluate.STAGE),
    "demo": (*ORDER, evaluate.STAGE),
    "eval": (model.STAGE, evaluate.STAGE),
    "reproduce": (data.STAGE, reproduce.with_seed, *MERGED[1:]),
}


def of_method(run: Run, items: Items) -> Items:
    """Those of `items` that the recipe's training method has.

    Full fine-tuning makes no adapter: the merge follows the training. A projector (LLaVA's first stage) is not merged.
    """
    if preset_facts.has_images(run.settings):
        projector = preset_facts.method(run.settings) == "projector"
        return tuple(item for item in items if not (projector and item in (merge.STAGE, samples.STAGE)))
    if preset_facts.method(run.settings) == "full":
        return tuple(item for item in items if item is not adapter.STAGE)
    return items


def run_stages(run: Run, command: str, items: Optional[Items] = None) -> None:
    """Perform the stages of `command` in order, or these `items` of it, one line each."""
    if command == "merge" and preset_facts.method(run.settings) == "projector":
        raise InputWrong(
            _(
                "{recipe} trains only a projector, which is not merged: the second stage's recipe continues from it, "
                "model.pretrained_pth={folder}.",
                recipe=run.name,
                folder=run.relative(run.folder),
            )
        )
    chosen = items or of_method(run, COMMANDS[command])
    trained = chosen.index(train.STAGE) + 1 if train.STAGE in chosen else 0
    with waiting_trainer.started(run) if trained else contextlib.nullcontext():
        _run_items(run, command, chosen[:trained])
    _run_items(run, command, chosen[trained:])


def _run_items(run: Run, command: str, items: Items) -> None:
    for item in items:
        if not isinstance(item, Stage):
            item(run)
        elif item is evaluate.STAGE and command != "eval":
            _try_to_evaluate(run)
        else:
            figures = _perform(run, item)
            if item is train.STAGE:
                run.record_training()
            if item is merge.STAGE and not figures["tensors_changed"] and command != "reproduce":
                _refuse_unchanged(run)


def _perform(run: Run, stage: Stage) -> Dict[str, Any]:
    """Perform a stage, print what it did, and return its figures."""
    entry, ran = perform(run, stage)
    took = f"{entry['seconds']:.1f} s" if ran else _("unchanged")
    for refusal in entry["figures"].get("refusals", []):
        kind = _("forced:") if run.force else _("known:")
        click.echo(f"{click.style(kind, fg='yellow')} {stored(refusal['why'])}")
    first, *more = stage.summary(entry["figures"]).splitlines()
    click.echo("\n".join([f"{_name(stage)} {first}  {click.style(took, dim=True)}", *more]))
    figures: Dict[str, Any] = entry["figures"]
    return figures


def _name(stage: Stage) -> str:
    return click.style(f"{stage.name:8}", bold=True)


def _try_to_evaluate(run: Run) -> None:
    """Evaluate at the end of another command: only if it takes minutes, and without failing the command."""
    if not (is_there(run) and is_quick(run)):
        return
    try:
        _perform(run, evaluate.STAGE)
    except RecipeError as error:
        click.echo(f"{_name(evaluate.STAGE)} {_('not measured: {why}', why=error)}")


def _refuse_unchanged(run: Run) -> None:
    """Raise RunFailed for a merge that changed no weight; with --force or known faults, only say so."""
    what = _("The merge changed nothing: every weight of the merged model is the base model's.")
    if not run.force and not run.settings.known_faults:
        raise RunFailed(sentences(what, _("The plan and the training log show why. --force accepts it.")))
    click.secho(what, fg="red", bold=True)


def evaluate_trained(run: Run) -> None:
    """Evaluate the trained model on what was held out of its training. Raises InputWrong if that is gone.

    If the folder's data were made with other settings since, what they hold out was trained on: data, plan and config
    are made again as they were.
    """
    made = run.manifest.get("trained", {})
    if made:
        exam = run.settings.data.eval_files != made["settings"]["data"]["eval_files"]
        changed = [name for name, sha in made["data"].items() if digest(run.folder / name) != sha]
        run.force = run.force or made["forced"]
        if exam or changed:
            _same_data(run, made["data"]["dataset.jsonl"])
            run_stages(run, "eval", (data.STAGE,))
        if exam or changed or digest(run.config) != made["config"]:
            run_stages(run, "eval", (plan.STAGE, config.STAGE))  # else the report calls the training outdated
            run.record_restored()
            run.save()
    run_stages(run, "eval")


def _same_data(run: Run, trained: str) -> None:
    """Raise InputWrong unless the data of these settings are those with this sum. Nothing that is there is touched."""
    with tempfile.TemporaryDirectory(prefix=".data-", dir=str(run.output)) as beside:
        shadow = run.scratch_run(Path(beside))
        perform(shadow, data.STAGE)
        if digest(shadow.dataset) == trained:
            return
    raise InputWrong(
        _(
            "{files}: it changed since the training, so what would be held out now may have been trained on. Restore "
            "it, or train again: {command}",
            files=listed(run.settings.data.files),
            command=command_line("merge", run.arguments),
        )
    )
