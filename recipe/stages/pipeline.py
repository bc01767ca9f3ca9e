"""Which stages a command runs, in which order, and one line on what each did."""

import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import click

from recipe.base_model import hub
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong, RecipeError, RunFailed
from recipe.core.hashing import digest, key_of
from recipe.core.run import Run
from recipe.core.stage import Stage, is_current, perform
from recipe.inference import evaluate
from recipe.stages import adapter, config, data, merge, model, plan, reproduce, samples, train
from recipe.training import checkpoints
from recipe.weights.adapter import summary as adapter_summary
from recipe.weights.merge import summary as merge_summary
from recipe.xtuner import preset_facts

DATA = Stage("data", data.make, data.inputs, ("dataset.jsonl", "eval.jsonl"))
PLAN = Stage("plan", plan.make, plan.inputs, ("plan.json",))
CONFIG = Stage("config", config.make, config.inputs, ("config.py", "config.diff"))
MODEL = Stage("model", model.make, model.inputs, always=True)
TRAIN = Stage("train", train.make, checkpoints.inputs)
ADAPTER = Stage("adapter", adapter.make, adapter.inputs, ("adapter",))
MERGE = Stage("merge", merge.make, merge.inputs, ("merged",))
SAMPLES = Stage("chat", samples.make, samples.inputs, ("samples.json",))
EVAL = Stage("eval", evaluate.make, evaluate.inputs, ("eval.json",))

# The check of the machine and the plan come before the model: it is 15 GB, and mistakes are cheap until then.
ORDER: Tuple[Any, ...] = (DATA, train.preflight, PLAN, CONFIG, MODEL, TRAIN, ADAPTER, MERGE, SAMPLES)
COMMANDS: Dict[str, Tuple[Any, ...]] = {
    "data": (DATA,),
    "data-report": (DATA,),
    "preview": (DATA,),
    "plan": (DATA, PLAN),
    "config": (DATA, PLAN, CONFIG),
    "model": (MODEL,),
    "train": ORDER[:7],
    "adapter": ORDER[:7],
    "merge": (*ORDER[:8], EVAL),
    "eval": (MODEL, EVAL),  # of the training that is there: see measure
    "chat": (),  # talks to what is there
    "demo": (*ORDER, EVAL),
    "export": (),  # works on the merged model that is there: see export.hand_over
    "cluster": (),  # makes a job file of the recipe alone
    **dict.fromkeys(("presets", "new"), ()),  # of no recipe: see __main__.begin
    # Look at what is there:
    **dict.fromkeys(("report", "compare", "diff", "verify", "watch", "stop", "web", "bench"), ()),
    "reproduce": (DATA, reproduce.with_seed, *ORDER[1:8]),
}


def summary(name: str, figures: Dict[str, Any]) -> str:
    """One line on what a stage did; the merge has one more for each kind of module."""
    f = figures
    lines: Dict[str, Callable[[], str]] = {
        "data": lambda: _data_summary(f),
        "plan": lambda: (
            f"{f['tokens']:,} tokens, {f['tokens_kept'] / f['tokens']:.1%} kept in {f['packs']} packs; "
            f"{f['iterations']} iterations, {f['updates']} updates"
            + (f" of {f['update_sequences']} sequences, shared by {f['ranks']} GPUs" if f["ranks"] > 1 else "")
        ),
        "config": lambda: f"{f['base']} with {f['lines_changed']} lines changed (config.diff), {f['dtype']}",
        "model": lambda: _model_summary(f),
        "train": lambda: f"{f['iterations']} iterations, loss {f['loss_first']:.3f} → {f['loss_last']:.3f}",
        "adapter": lambda: adapter_summary(f),
        "merge": lambda: merge_summary(f),
        "chat": lambda: f"{len(f['samples'])} questions asked of base and merged model",
        "eval": lambda: f["summary"],
    }
    return lines[name]()


def _model_summary(f: Dict[str, Any]) -> str:
    origin = f"; {f['revision']} is commit {f['commit'][:12]} at {hub.NAMES[f['source']]}" if f["commit"] else ""
    if f["source"] and not f["commit"]:
        origin = f"; {f['revision']} of {hub.NAMES[f['source']]}, which states no commit"
    if f["listed_by"] not in ("", hub.CLIENT):
        origin += f"; the hub was asked by {f['listed_by']}"
    if f["unknown_revision"]:
        origin = "; not fetched by this recipe: which revision it is, is not known"
    checked = "; every byte is as it was fetched" if f["verified"] else ""
    return f"{f['folder']}, {f['bytes'] / 1e6:,.1f} MB{origin}{checked}; loaded with {f['code']} code"


def _data_summary(f: Dict[str, Any]) -> str:
    """Counts; and what a user would not expect: other encodings, what was dropped, sheets that were not read."""
    parts = [f"{f['rows']} rows, {f['conversations']} conversations, {f['duplicates']} duplicates"]
    if f["held_out"]:
        parts.append(f"{f['held_out']} more held out")
    if f["held_out_dropped"]:
        parts.append(f"{f['held_out_dropped']} of data.eval_files not: their questions are in training")
    if f["blank_dropped"] or f["duplicates_dropped"]:
        parts.append(f"dropped {f['blank_dropped']} rows with blanks, {f['duplicates_dropped']} duplicates")
    parts += [f"{one['file']} is {one['encoding']}" for one in f["read"] if one["encoding"] not in ("", "UTF-8")]
    for one in f["read"]:
        lost = [column for column in one["unused"] if column.endswith("(without a name)")]
        if lost:
            parts.append(f"not read: {', '.join(lost)} of {one['file']}")
    if f["skipped"]:
        parts.append(f"not read: {'; '.join(f['skipped'])}")
    return "; ".join(parts)


def of_method(run: Run, items: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """`items` as the recipe's method has them: full fine-tuning makes no adapter, and evaluates its whole model; of
    LLaVA's it makes the projector, and the first stage no more than that.
    """
    if preset_facts.pictures(run.settings):
        alone = preset_facts.method(run.settings) == "projector"
        return tuple(item for item in items if not (alone and item in (MERGE, SAMPLES)))
    if preset_facts.method(run.settings) != "full" or ADAPTER not in items:
        return items
    if items[-1] is ADAPTER:
        return items[:-1]
    rest = tuple(item for item in items if item is not MERGE)
    return tuple(MERGE if item is ADAPTER else item for item in rest)


def run_stages(run: Run, command: str, items: Optional[Tuple[Any, ...]] = None) -> None:
    """Perform the stages of `command` in order, or these `items` of it, one line each."""
    if command == "merge" and preset_facts.method(run.settings) == "projector":
        raise InputWrong(
            f"{run.name} trains a projector alone, which is merged into nothing: the second stage's recipe goes on "
            f"from it, model.pretrained_pth={run.shown(run.folder)}."
        )
    for item in items or of_method(run, COMMANDS[command]):
        if not isinstance(item, Stage):
            item(run)
            continue
        if item is EVAL and command != "eval" and not (evaluate.is_there(run) and evaluate.is_quick(run)):
            continue
        try:
            entry, ran = perform(run, item)
        except RecipeError as error:
            if item is not EVAL or command == "eval":
                raise
            # What was asked for is made: another time, another card.
            click.echo(f"{click.style(f'{item.name:8}', bold=True)} not measured: {error}")
            continue
        if item is TRAIN:
            run.remember()
        took = f"{entry['seconds']:.1f} s" if ran else "unchanged"
        for refusal in entry["figures"].get("refusals", []):
            why = "forced" if run.force else "known"
            click.echo(f"{click.style(f'{why}:', fg='yellow')} {refusal['why']}")
        first, *more = summary(item.name, entry["figures"]).splitlines()
        name, took = click.style(f"{item.name:8}", bold=True), click.style(took, dim=True)
        click.echo("\n".join([f"{name} {first}  {took}", *more]))
        if item is MERGE and not entry["figures"]["tensors_changed"] and command != "reproduce":
            what = "The merge changed nothing: every weight of the merged model is the base model's."
            if not run.force and not run.settings.known_faults:
                raise RunFailed(f"{what} What the plan and the training log say tells why. --force accepts it.")
            click.secho(what, fg="red", bold=True)


def measure(run: Run) -> None:
    """Evaluate the model that is there on what was held out of its training. Raises InputWrong where that is gone.

    Data may have been made anew in its folder since, with other settings: what is held out of those was trained on.
    Then data, plan and config are made again as they were.
    """
    made = run.manifest.get("trained", {})
    if made:
        exam = run.settings.data.eval_files != made["settings"]["data"]["eval_files"]
        changed = [name for name, sha in made["data"].items() if digest(run.folder / name) != sha]
        run.force = run.force or made["forced"]
        if exam or changed:
            _same_data(run, made["data"]["dataset.jsonl"])
            run_stages(run, "eval", (DATA,))
        if exam or changed or digest(run.config) != made["config"]:
            run_stages(run, "eval", (PLAN, CONFIG))  # by which the report knows that the training is of these data
    run_stages(run, "eval")


def _same_data(run: Run, trained: str) -> None:
    """Raise InputWrong unless the data of these settings are those with this sum. Nothing that is there is touched."""
    with tempfile.TemporaryDirectory(prefix=".data-", dir=str(run.output)) as beside:
        shadow = run.shadow(Path(beside))
        perform(shadow, DATA)
        if digest(shadow.dataset) == trained:
            return
    raise InputWrong(
        f"{', '.join(run.settings.data.files)}: it changed since the training, so what would be held out now may have "
        f"been trained on. Put it back as it was, or train again: {command_line('merge', run.called)}"
    )


def is_outdated(run: Run) -> bool:
    """Whether the merged model that is there is of another training: one that ended later and made other weights."""
    ended = {name: entry.get("finished", "") for name, entry in run.manifest.get("stages", {}).items()}
    later = [name for name in ("train", "adapter") if ended.get(name, "") > ended.get("merge", "")]
    return bool(later) and not is_current(run, MERGE, key_of(MERGE.inputs(run)))


def places(run: Run) -> List[Tuple[str, str]]:
    """Where everything lies: (what, path)."""
    found = [("checkpoint", run.shown(run.checkpoint))]
    if "adapter" in run.manifest["stages"]:
        found.append(("adapter", run.shown(run.adapter)))
    if "merge" in run.manifest["stages"]:
        found.append(("merged model", run.shown(run.merged)))
    return [*found, ("all figures", run.shown(run.folder / "run.json"))]
