"""Reads a run's results from its folder, for the report, the comparison, verification and the web page."""

import dataclasses
import datetime
import json
import shlex
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from pydantic import ValidationError

from recipe.core import settings
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong, RecipeError
from recipe.core.files import relative_path
from recipe.core.hashing import digest, key_of
from recipe.core.recipe_files import find_recipe, find_run_folder
from recipe.core.run import Run, is_locked, is_manifest, manifest_error
from recipe.core.stage import Stage, is_current
from recipe.core.translation import _, listed, mark, sentences
from recipe.stages import pipeline
from recipe.training import log


class RunView(NamedTuple):
    """A run's results, read once."""

    run: Run
    plan: Dict[str, Any]  # {} before it is planned
    steps: Dict[int, log.Step]
    log: Dict[str, Any]  # log.curve_summary of the steps
    answers: List[log.Answers]
    evaluation: Dict[str, Any]  # eval.json; {} if there is none
    samples: List[Dict[str, Any]]
    is_running: bool  # another command is running in the folder
    left_out: List[str]  # stages whose results belong to other settings or data

    def figures(self, stage: str) -> Dict[str, Any]:
        return self.run.figures(stage)


def find_run(name: str, root: Path, output: Path) -> Run:
    """Find a run by its recipe's name or file, its data file, or its folder. Reads the folder without locking it.

    Raises InputWrong if there is no such run.
    """
    folder = find_run_folder(name, root, output)
    try:
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        recipe = settings.Settings.model_validate(manifest["settings"])
        assert is_manifest(manifest), _("a stage's entry is not complete")
        place = folder.resolve()
        return as_trained(Run(name=place.name, settings=recipe, root=root, output=place.parent, manifest=manifest))
    except OSError:
        existing = sorted(path.parent.name for path in output.glob("*/run.json"))
        others = _("Existing runs: {names}.", names=listed(existing)) if existing else ""
        makes = command_line(name) if name in ("demo", "reproduce") else f"{command_line('train')} {shlex.quote(name)}"
        try:
            hint = _("{command} creates it.", command=makes) if find_recipe(name, output=output) else ""
        except InputWrong:
            hint = ""
        missing = _("There is no run {name!r}: no {file}.", name=name, file=relative_path(folder / "run.json", root))
        raise InputWrong(sentences(missing, hint, others))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, ValidationError) as error:
        raise manifest_error(relative_path(folder / "run.json", root), error)


def as_trained(run: Run) -> Run:
    """The run with the settings and stages of its finished training, unless a training with others has begun since."""
    found = run.as_trained()
    if "config" in found.manifest.get("later", {}):
        unfinished = {name: entry for name, entry in run.manifest["stages"].items() if name != "train"}
        begun = log.training_folder(dataclasses.replace(run, manifest={**run.manifest, "stages": unfinished}))
        if begun and begun != log.training_folder(found):
            return run
    return found


def read_run(run: Run, is_running: Optional[bool] = None) -> RunView:
    """Read the results of `run`. `is_running`: whether another command has locked the folder (None: check).

    Drops stages from the manifest whose results belong to other settings or data.
    """
    run = as_trained(run)
    left_out = stale_stages(run)
    if left_out:
        kept = {name: entry for name, entry in run.manifest["stages"].items() if name not in left_out}
        run = dataclasses.replace(run, manifest={**run.manifest, "stages": kept})
    trainer_folder = log.training_folder(run)
    steps = log.read_iterations(trainer_folder) if trainer_folder else {}
    questions = run.questions or [s["question"] for s in run.figures("chat").get("samples", [])]
    plan = _read_plan(run)
    return RunView(
        run=run,
        plan=plan,
        steps=steps,
        log=log.curve_summary(steps),
        answers=log.read_answers(trainer_folder, questions, plan.get("evaluations", [])) if trainer_folder else [],
        evaluation=_read_evaluation(run),
        samples=_read_samples(run),
        is_running=is_locked(run.folder) if is_running is None else is_running,
        left_out=left_out,
    )


def _read_plan(run: Run) -> Dict[str, Any]:
    """plan.json if it matches the manifest, else the manifest's figures; a refused plan if no plan stage finished."""
    entry, plan = run.manifest["stages"].get("plan"), read_json(run.plan)
    if entry:
        return plan if digest(run.plan) == entry["outputs"].get("plan.json", {}).get("sha256") else entry["figures"]
    return plan if isinstance(plan, dict) and is_refused(run, plan) else {}


def is_refused(run: Run, plan: Dict[str, Any]) -> bool:
    """Whether a plan refuses the run for a fault outside the recipe's known_faults."""
    return any(refusal["fault"] not in run.settings.known_faults for refusal in plan.get("refusals", []))


def stale_stages(run: Run) -> List[str]:
    """Stages whose results belong to another recipe or other data than the stage before them.

    Recomputes a stage's key only if the stage finished earlier than the one before it.
    """
    entries = run.manifest["stages"]
    chain = [stage for stage in pipeline.ORDER if isinstance(stage, Stage) and stage.name in entries]
    chain = [stage for stage in chain if not stage.always]
    for before, stage in zip(chain, chain[1:]):
        if entries[stage.name]["finished"] >= entries[before.name]["finished"]:
            continue
        try:
            current = is_current(run, stage, key_of(stage.inputs(run)))
        except (RecipeError, OSError, KeyError, ValueError):  # its inputs were deleted
            current = False
        if not current:
            kept = [other.name for other in chain[: chain.index(stage)]]
            return [name for name in entries if name not in [*kept, "model"]]
    return []


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or incomplete."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _read_evaluation(run: Run) -> Dict[str, Any]:
    """eval.json, if it is complete, newer than the training and measured on the current held-out data; else {}."""
    path = run.folder / "eval.json"
    found = read_json(path)
    if not isinstance(found, dict) or not {"models", "difference", "verdict", "summary"} <= set(found):
        return {}
    trained = run.manifest["stages"].get("train")
    if not trained or not {"base", "tuned"} <= set(found["models"]):
        return {}
    held_out = run.manifest["stages"].get("data", {}).get("outputs", {}).get("eval.jsonl", {}).get("sha256")
    if found.get("measured_on", held_out) != held_out:
        return {}
    ended = datetime.datetime.strptime(trained["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return found if path.stat().st_mtime >= ended else {}


def _read_samples(run: Run) -> List[Dict[str, Any]]:
    """samples.json of the current merged model; [] if there is none."""
    found = read_json(run.folder / "samples.json") if "chat" in run.manifest["stages"] else None
    required = {"question", "base", "merged", "base_ended", "merged_ended"}
    return [sample for sample in found or [] if required <= set(sample)]


def base_model_name(run: Run) -> str:
    """Its path or its hub's name, in English: model cards hold it."""
    model = run.settings.model
    return model.path or (
        mark("a tiny InternLM2 with random weights") if model.is_tiny else run.figures("model").get("id") or model.id
    )
