"""What happened in a run, on one page: report/index.html, its curves as PNGs, and README.md, a model card.

It reads what the stages left (run.json, plan.json, the trainer's logs, samples.json, eval.json) and runs none of them,
so it works at every stage, also beside a training that is under way. Every figure is one of theirs.
"""

import dataclasses
import datetime
import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from pydantic import ValidationError

from recipe.core import settings
from recipe.core.errors import InputWrong, RecipeError
from recipe.core.stage import Run, Stage, digest, is_current, is_held, key_of, unreadable, write_text
from recipe.reporting import charts as curves
from recipe.reporting import data_report, html
from recipe.reporting.console import listed
from recipe.stages import pipeline, reproduce
from recipe.training import log
from recipe.training.fast.verdict import summary as step_summary
from recipe.weights.adapter import BESIDE
from recipe.weights.llava import NONE
from recipe.xtuner import preset_facts

LEARNED = 0.05  # a fall of the training loss below this share is hardly one
CAUSES = ("peak-not-reached", "few-updates")  # of what the plan refuses, what leaves a model as it was
SURVEYED = 20_000  # conversations that are looked through for the report, in a second; data-report takes any number
FULL = ("data", "plan", "config", "model", "train", "adapter", "merge", "chat")
WENT = {
    "start": "its start: libraries, model, data", "iterations": "iterations", "checkpoints": "checkpoints",
    "answers": "answers to the evaluation's questions",
}  # fmt: skip

Rows = List[Tuple[str, str]]


class Verdict(NamedTuple):
    """What became of the run: `kind` is good, bad, flat or open, `says` one line, `more` what it rests on."""

    kind: str
    says: str
    more: str = ""


class Seen(NamedTuple):
    """All that a report is made of, read once."""

    run: Run
    plan: Dict[str, Any]  # {} before there is one
    steps: Dict[int, log.Step]
    log: Dict[str, Any]  # trainlog.summary of them
    answers: List[log.Answers]
    evaluation: Dict[str, Any]  # eval.json; {} if there is none
    samples: List[Dict[str, Any]]
    working: bool  # another command is at work in the folder
    left_out: List[str]  # stages whose results are of other settings or data than what now stands before them

    def figures(self, stage: str) -> Dict[str, Any]:
        return self.run.figures(stage)


def find(word: str, root: Path, output: Path) -> Run:
    """The run that `word` names: a recipe's name or file, or a run folder. Its folder is only read, not held.

    Raises InputWrong if there is no such run.
    """
    folder = next((p for p in (Path(word), output / word) if (p / "run.json").is_file()), None)
    if folder is None:
        folder = output / (Path(word).stem if word.endswith(".toml") else word)
    try:
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        made = settings.Settings.model_validate(manifest["settings"])
        assert all("figures" in entry for entry in manifest["stages"].values())
    except OSError:
        there = sorted(path.parent.name for path in output.glob("*/run.json"))
        others = f" Runs that are there: {', '.join(there)}." if there else ""
        makes = _just(word) if word in ("demo", "reproduce") else f"{_just('train')} {shlex.quote(word)}"
        raise InputWrong(
            f"There is no run {word!r}: no {_shown(folder / 'run.json', root)}. {makes} makes one.{others}"
        )
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, ValidationError) as error:
        raise unreadable(_shown(folder / "run.json", root), error)
    folder = folder.resolve()
    return Run(name=folder.name, settings=made, root=root, output=folder.parent, manifest=manifest)


def see(run: Run, working: Optional[bool] = None) -> Seen:
    """Read what the stages of `run` left. `working`: whether another command holds the folder (None: look).

    Results that do not belong to the settings and data in the folder are left out of the run's manifest.
    """
    left_out = stale(run)
    if left_out:
        kept = {name: entry for name, entry in run.manifest["stages"].items() if name not in left_out}
        run = dataclasses.replace(run, manifest={**run.manifest, "stages": kept})
    place = log.place(run)
    steps = log.steps(place) if place else {}
    asked = run.settings.train.evaluation_inputs or [s["question"] for s in run.figures("chat").get("samples", [])]
    plan = _plan(run)
    return Seen(
        run=run,
        plan=plan,
        steps=steps,
        log=log.summary(steps),
        answers=log.answers(place, asked, plan.get("evaluations", [])) if place else [],
        evaluation=_evaluation(run),
        samples=_samples(run),
        working=is_held(run.folder) if working is None else working,
        left_out=left_out,
    )


def _plan(run: Run) -> Dict[str, Any]:
    """plan.json where it is the manifest's, else what the manifest holds of it; where that has none, a refused one."""
    entry, found = run.manifest["stages"].get("plan"), _json(run.plan)
    if entry:
        return found if digest(run.plan) == entry["writes"].get("plan.json", {}).get("sha256") else entry["figures"]
    return found if isinstance(found, dict) and _stops(run, found) else {}


def _stops(run: Run, plan: Dict[str, Any]) -> bool:
    """Whether a plan refuses the run for a fault that its recipe does not name as known."""
    return any(one["fault"] not in run.settings.known_faults for one in plan.get("refusals", []))


def stale(run: Run) -> List[str]:
    """Stages of the manifest whose results are of another recipe or other data than the stage before them.

    A stage that ended before the one before it did is looked at closely: by its key, as when it is asked to run.
    """
    entries = run.manifest["stages"]
    chain = [stage for stage in pipeline.ORDER if isinstance(stage, Stage) and stage.name in entries]
    chain = [stage for stage in chain if not stage.always]
    for before, stage in zip(chain, chain[1:]):
        if entries[stage.name]["finished"] >= entries[before.name]["finished"]:
            continue
        try:
            current = is_current(run, stage, key_of(stage.reads(run)))
        except (RecipeError, OSError, KeyError, ValueError):  # what it was made from is gone
            current = False
        if not current:
            kept = [other.name for other in chain[: chain.index(stage)]]
            return [name for name in entries if name not in [*kept, pipeline.MODEL.name]]
    return []


def _json(path: Path) -> Any:
    """What a JSON file of the run's folder holds; None if there is none, or it is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _evaluation(run: Run) -> Dict[str, Any]:
    """eval.json, if it is whole, no older than the training, and of what is held out now; else {}."""
    path = run.folder / "eval.json"
    found = _json(path)
    if not isinstance(found, dict) or not {"models", "difference", "verdict", "says"} <= set(found):
        return {}
    trained = run.manifest["stages"].get("train")
    if not trained or not {"base", "tuned"} <= set(found["models"]):
        return {}
    held_out = run.manifest["stages"].get("data", {}).get("writes", {}).get("eval.jsonl", {}).get("sha256")
    if found.get("measured_on", held_out) != held_out:
        return {}
    ended = datetime.datetime.strptime(trained["finished"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return found if path.stat().st_mtime >= ended else {}


def _samples(run: Run) -> List[Dict[str, Any]]:
    """samples.json, of the merged model that is there; [] if there is none."""
    found = _json(run.folder / "samples.json") if "chat" in run.manifest["stages"] else None
    wanted = {"question", "base", "merged", "base_ended", "merged_ended"}
    return [one for one in found or [] if wanted <= set(one)]


def _just(stage: str) -> str:
    return f"{os.environ.get('RECIPE_COMMAND', 'just')} {stage}"


def _shown(path: Path, root: Path) -> str:
    try:
        return str(path.resolve().relative_to(root.resolve()))
    except ValueError:
        return str(path)


# --- figures as text ---


def rate(value: Optional[float]) -> str:
    """A learning rate: 2e-9, 0.0002."""
    return "—" if value is None else f"{value:.4g}".replace("e-0", "e-")


def number(value: Optional[float], form: str = ",") -> str:
    return "—" if value is None else format(value, form)


def seconds(value: Optional[float]) -> str:
    """A time as people say it: 0.01 s, 6.1 s, 62 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return "—"
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def percent(share: float) -> str:
    """A relative change, which may be tiny or many times the whole."""
    return f"{100 * share:,.0f} %" if share >= 10 else f"{100 * share:.3g} %"


# --- the verdict ---


def verdict(seen: Seen) -> Verdict:
    """One line on what was learned: by eval.json, else by the weights changed and the loss."""
    run, plan, trained, merged = seen.run, seen.plan, seen.figures("train"), seen.figures("merge")
    if not trained:
        return _not_trained(seen)
    updates = f"{trained['updates']:,} updates"
    loss = _loss_says(trained)
    if _nothing(seen):
        left = (
            f"leave all {merged['weights']:,} weights of the model as they were"
            if merged
            else "leave an adapter that is zero" if seen.figures("adapter") else "are none"
        )  # fmt: skip
        reasons = " ".join(one["why"] for one in plan.get("refusals", []) if one["fault"] in CAUSES)
        return Verdict(
            "bad",
            f"Nothing was learned: {updates} at a learning rate of at most {rate(plan['lr_peak'])} {left}.",
            f"{loss} {reasons}".strip(),
        )
    changed = f"{merged['share_changed']:.1%} of the weights changed. " if merged else ""
    unseen = f"How it does on questions that it was not trained on was not measured: {_just('eval')} {run.name} does."
    if seen.evaluation:
        kind = {"better": "good", "worse": "bad"}.get(seen.evaluation["verdict"], "flat")
        word = {"good": "Better than before", "bad": "Worse than before"}.get(kind, "No difference from before")
        says = seen.evaluation["says"].replace(f"{seen.evaluation['verdict']}: ", "", 1)
        if not is_tiny(run):
            return Verdict(kind, f"{word}: {says}", f"{updates}. {changed}{loss}")
        # A model of random weights learns by heart and nothing that holds: what was held out judges no recipe.
        unseen = f"{word} on what was held out, which is right for a model of random weights: {says}."
    first, last = trained["loss_first"], trained["loss_last"]
    if not seen.log["finite"] and seen.steps:
        return Verdict("bad", f"Training failed to hold: its loss became {last}, no number, in {updates}.", changed)
    if first is None or last is None:
        return Verdict("open", f"Trained, {updates}; the trainer's log is gone, so its loss is not known.", changed)
    if 1 - last / first >= LEARNED:
        how = f"the training loss fell from {first:.3f} to {last:.3f} in {updates}"
        return Verdict("good", f"It learned what it was trained on: {how}.", f"{changed}{unseen}")
    how = f"the training loss went from {first:.4f} to {last:.4f} in {updates}"
    return Verdict("flat", f"Hardly anything was learned: {how}.", f"{changed}{unseen}")


def _loss_says(trained: Dict[str, Any]) -> str:
    if trained["loss_first"] is None:
        return ""
    return f"Training loss {trained['loss_first']:.4f} → {trained['loss_last']:.4f}."


def _nothing(seen: Seen) -> bool:
    """Whether the run cannot have changed anything: by the merge, else by the adapter, else by the plan's rate."""
    if seen.figures("merge"):
        return not seen.figures("merge")["weights_changed"]
    if seen.figures("adapter"):
        return seen.figures("adapter")["vanished"] == 1.0
    return any(refusal["fault"] == "peak-not-reached" for refusal in seen.plan.get("refusals", []))


def _not_trained(seen: Seen) -> Verdict:
    run, plan = seen.run, seen.plan
    yet = "yet"
    if "train" in seen.left_out:
        yet = "with these settings and data yet (the model that is here was with others)"
    if seen.steps and plan:
        at = f"iteration {seen.log['reached']:,} of {plan['iterations']:,}"
        loss = f"Training loss {number(seen.log['loss_first'], '.4f')} → {number(seen.log['loss_last'], '.4f')}."
        if seen.working:
            return Verdict("open", f"Training is under way: {at}.", loss)
        return Verdict("open", f"Training stopped at {at}.", f"{loss} {_just('train')} {run.name} goes on from there.")
    if seen.working and run.figures("model"):
        return Verdict("open", "Training is about to begin.")
    if plan and "plan" not in run.manifest["stages"]:
        why = " ".join(refusal["why"] for refusal in plan["refusals"])
        return Verdict("bad", "Nothing was trained: the plan refuses this run.", why)
    if plan and _nothing(seen):
        why = " ".join(one["why"] for one in plan["refusals"] if one["fault"] in CAUSES)
        return Verdict(
            "bad",
            f"Nothing is trained {yet}, and as planned nothing will be learned: {plan['updates']:,} updates at a "
            f"learning rate of at most {rate(plan['lr_peak'])}.",
            why,
        )
    if plan:
        says = (
            f"Nothing is trained {yet}; planned are {plan['updates']:,} updates in {plan['iterations']:,} iterations."
        )
        return Verdict("open", says, f"{_just('train')} {run.name} trains.")
    count = run.figures("data").get("conversations")
    says = f"only the data are read: {count:,} conversations." if count else "no stage has come to its end."
    return Verdict(
        "open", f"Nothing is trained {yet}; {says}", f"{_just('plan')} {run.name} says what training will do."
    )


# --- sections ---


def tiles(seen: Seen) -> List[Tuple[str, str, str]]:
    """(what, figure, remark) for the head of the page."""
    trained, merged, found = seen.figures("train"), seen.figures("merge"), []
    if seen.evaluation:
        base, tuned = (seen.evaluation["models"][name]["loss"] for name in ("base", "tuned"))
        found.append(("held-out loss", f"{base:.3f} → {tuned:.3f}", "nats a token, base → tuned"))
    if trained and trained["loss_first"] is not None:
        first, last = trained["loss_first"], trained["loss_last"]
        found.append(("training loss", f"{first:.3f} → {last:.3f}", f"{last / first - 1:+.1%}".replace("-", "−")))
    if merged:
        found.append(("weights changed", f"{merged['share_changed']:.1%}", f"of {merged['weights']:,}"))
    if trained:
        found.append(("updates", f"{trained['updates']:,}", f"{trained['iterations']:,} iterations"))
        configured = seen.plan.get("lr_configured")
        found.append(("peak rate logged", rate(trained["lr_peak_logged"]), f"of {rate(configured)} configured"))
        found.append(("training took", seconds(seen.run.manifest["stages"]["train"]["seconds"]), hardware(seen.run)))
    elif seen.plan:
        found.append(("iterations planned", f"{seen.plan['iterations']:,}", f"{seen.plan['updates']:,} updates"))
        found.append(("peak rate planned", rate(seen.plan["lr_peak"]), f"of {rate(seen.plan['lr_configured'])}"))
    return found


def hardware(run: Run) -> str:
    machine = run.manifest.get("host", {})
    names = [gpu["name"] for gpu in machine.get("gpus", [])]
    if names:
        return f"{len(names)} × {names[0]}" if len(names) > 1 else names[0]
    return f"{machine.get('cpus', '?')} CPU cores, no GPU"


def subject(seen: Seen) -> Rows:
    """What was trained on what."""
    run, s, plan = seen.run, seen.run.settings, seen.plan
    model, config, adapter, data = (run.figures(name) for name in ("model", "config", "adapter", "data"))
    rows: Rows = [("base model", base_model(run))]
    if model:
        rows.append(("its folder", f"{model['folder']}, {model['bytes'] / 1e6:,.1f} MB"))
    lora = config.get("lora", {})
    if lora:
        size = f", {adapter['parameters']:,} parameters on {', '.join(adapter['targets'])}" if adapter else ""
        rows.append(
            (
                "trained",
                f"{'LoRA' if config.get('method') == 'lora' else 'QLoRA'} in {config['dtype']}, rank {lora.get('r')}, "
                f"alpha {lora.get('lora_alpha')}, dropout {lora.get('lora_dropout')}{size}",
            )
        )
    elif config.get("method") == "full":
        rows.append(("trained", f"all weights, in {config['dtype']}"))
    rows += _seeing(seen)
    rows.append(("data", "; ".join(s.data.files)))
    if data:
        rows.append(("conversations", f"{data['conversations']:,}, from {data['rows']:,} rows"))
    if plan:
        share = plan["tokens_kept"] / plan["tokens"]
        how = "" if "image_tokens" in plan else " by packing"
        rows.append(("tokens", f"{plan['tokens']:,}; {plan['tokens_kept']:,} kept{how} ({share:.1%})"))
        share = plan["answer_tokens_kept"] / plan["answer_tokens"]
        rows.append(
            ("with loss (answers)", f"{plan['answer_tokens']:,}; {plan['answer_tokens_kept']:,} kept ({share:.1%})")
        )
    rows.append(("system prompt", s.data.system or "none"))
    rows.append(("on", hardware(run)))
    return rows


def _seeing(seen: Seen) -> Rows:
    """By what the images are seen, and what of that is trained."""
    run = seen.run
    if not preset_facts.pictures(run.settings):
        return []
    chosen, adapter = run.settings.model, run.figures("adapter")
    tokens = f", {seen.plan['image_tokens']} tokens an image" if "image_tokens" in seen.plan else ""
    rows: Rows = [("sees by", f"{chosen.visual_encoder}{tokens}")]
    parts = [f"{name.replace('_', ' ')}, {adapter[name]:,} parameters" for name in BESIDE if name in adapter]
    if parts:
        rows.append(("trained to see", "; ".join(parts)))
    if chosen.pretrained_pth:
        begins = "a random one" if chosen.pretrained_pth == NONE else chosen.pretrained_pth
        rows.append(("its projector began as", begins))
    if run.figures("data"):
        rows.append(("images", f"{run.figures('data')['images']:,}"))
    return rows


def is_tiny(run: Run) -> bool:
    return run.settings.model.source == "tiny" and not run.settings.model.path


def base_model(run: Run) -> str:
    model = run.settings.model
    return model.path or ("a tiny InternLM2 of random weights" if is_tiny(run) else model.id)


def against(seen: Seen) -> List[Tuple[str, str, str, str]]:
    """(what, planned, what happened, same | differs | nothing to compare)."""
    plan, trained, log, cost = seen.plan, seen.figures("train"), seen.log, seen.plan.get("cost") or {}
    if not plan:
        return []
    rows = []

    def row(what: str, planned: str, happened: str, compared: bool = True) -> None:
        mark = ("same" if planned == happened else "differs") if compared and trained else ""
        rows.append((what, planned, happened if trained or seen.steps else "not yet", mark))

    reached = trained.get("iterations", log["reached"])
    row("iterations", f"{plan['iterations']:,}", f"{reached:,}")
    row("optimizer updates", f"{plan['updates']:,}", number(trained.get("updates")))
    every = f", logged every {log['every']}th" if log["every"] > 1 else ""
    peak = trained.get("lr_peak_logged", log["lr_peak"])
    # What is logged every tenth iteration may miss the peak.
    row("peak learning rate", rate(plan["lr_peak"]), f"{rate(peak)}{every}", log["every"] == 1)
    epochs = plan["iterations"] / plan["iterations_per_epoch"]
    done = reached / plan["iterations_per_epoch"]
    row(
        "tokens trained on",
        f"{round(plan['tokens_kept'] * epochs):,}",
        f"{round(plan['tokens_kept'] * done):,}",
    )
    row(
        "evaluations at",
        listed(plan["evaluations"]),
        listed([one.iteration for one in seen.answers]) or "not in the log",
        bool(seen.answers),
    )
    most = "at most " if cost.get("at_most") else ""
    planned = f"{most}{seconds(cost['seconds'])} on {cost['card']}" if cost.get("seconds") else "not reckoned"
    row("seconds of iterations", planned, seconds(iterating(seen)), False)
    planned = f"{cost['memory_mib']:,} MiB on {cost['card']}" if cost.get("memory_mib") else "not reckoned"
    row("GPU memory", planned, f"{log['memory_mib']:,.0f} MiB" if log["memory_mib"] else "no GPU", False)
    if trained.get("fast_step"):
        row("training step", plan.get("way", ""), step_summary(trained["fast_step"]), False)
    return rows


def charts(seen: Seen) -> List[curves.Chart]:
    """The curves that the trainer's logs hold."""
    steps, plan = seen.steps, seen.plan

    def of(name: str) -> Dict[int, float]:
        return {n: step[name] for n, step in steps.items() if name in step}

    if not steps:
        return []
    every = seen.log["every"]
    found: List[curves.Chart] = []
    for name, title in (("loss", "Training loss"), ("grad_norm", "Gradient norm")):
        # Gradients of several iterations make one norm: then the window counts updates, and cannot be undone.
        raw = log.single(steps, name) if name == "loss" or plan.get("accumulative_counts") == 1 else {}
        lines = [curves.Line("each iteration", raw, "thin")] if raw else []
        lines.append(curves.Line(f"mean over {log.WINDOW}", of(name)))
        note = (
            "" if raw else f"Mean over ten values, logged every {every} iterations; single values are not in the log."
        )
        if of(name):
            found.append(curves.Chart(name.replace("_", "-"), title, lines, note=note))
    lines = [curves.Line("as trained", of("lr"))]
    if plan.get("lr_trace"):
        lines.append(curves.Line("as planned", dict(enumerate(plan["lr_trace"], 1)), "dashed", "ink"))
    configured = plan.get("lr_configured") or 0.0
    low = plan.get("lr_peak", configured) < 0.1 * configured
    level = ("configured", configured) if low else None
    found.insert(1, curves.Chart("learning-rate", "Learning rate", lines, log=low, level=level))
    if of("memory_mb"):
        found.append(curves.Chart("memory", "GPU memory, MiB", [curves.Line("peak so far", of("memory_mb"))]))
    else:
        whole = log.single(steps, "seconds")
        lines = [curves.Line("each iteration", whole, "thin")] if whole else []
        lines.append(curves.Line(f"mean over {log.WINDOW}", of("seconds")))
        note = "The log holds no GPU memory: the run had no GPU."
        found.append(curves.Chart("seconds", "Seconds an iteration", lines, note=note))
    return found


def times(seen: Seen, price: float) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """(a row for each stage: what, seconds, share, cost, memory in MB), and their total."""
    entries = seen.run.manifest["stages"]
    total = sum(entry["seconds"] for entry in entries.values())
    rows = [
        {
            "what": name,
            "seconds": entry["seconds"],
            "share": entry["seconds"] / total if total else 0.0,
            "cost": entry["seconds"] / 3600 * price,
            "memory": entry["peak_memory_mb"],
        }
        for name, entry in entries.items()
    ]
    return rows, {"seconds": total, "cost": total / 3600 * price}


def iterating(seen: Seen) -> Optional[float]:
    """Seconds of the iterations, by our own clock where it ran: in mmengine's figure an iteration also has what lay
    before it, answers and checkpoints too.
    """
    return seen.figures("train").get("went", {}).get("iterations", seen.log["seconds"])


def went(seen: Seen) -> Rows:
    """(what, seconds) of the trainer's own, as text; [] where its log does not tell, or it has not come to its end."""
    found = seen.figures("train").get("went", {})
    return [(what, seconds(found[name])) for name, what in WENT.items() if name in found]


def measured(evaluation: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    """(what, base, tuned) of eval.json."""
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    forms = {
        "loss": ("loss, nats a token", ".4f"),
        "perplexity": ("perplexity", ",.2f"),
        "bleu4": ("BLEU-4", ".2f"),
        "rouge_l": ("ROUGE-L", ".2f"),
        "chrf": ("chrF", ".2f"),
        "repetition": ("answers that repeat themselves", ".1%"),
        "copied": ("answers equal to one in training", ".1%"),
        "never_stops": ("answers that do not end", ".1%"),
        "answer_length": ("length of an answer, characters", ",.1f"),
    }

    def figure(model: Dict[str, Any], name: str, form: str) -> str:
        value = model.get(name)
        if not isinstance(value, (int, float)):
            return "—"
        low, high = model.get(f"{name}_interval") or (None, None)
        return format(value, form) + (f" ({low:{form}} to {high:{form}})" if low is not None else "")

    return [
        (what, figure(base, name, form), figure(tuned, name, form))
        for name, (what, form) in forms.items()
        if name in base or name in tuned
    ]


def kinds(seen: Seen) -> List[Dict[str, Any]]:
    """Weights changed by kind of module, as the merge counted them."""
    return [
        {"what": name, "share": kind["weights_changed"] / kind["weights"] if kind["weights"] else 0.0, **kind}
        for name, kind in seen.figures("merge").get("kinds", {}).items()
    ]


def provenance(seen: Seen) -> Rows:
    """Where everything comes from: sources, checksums, seeds, machine, image, versions."""
    run, entries, machine = seen.run, seen.run.manifest["stages"], seen.run.manifest.get("host", {})
    model, adapter, s = run.figures("model"), run.figures("adapter"), run.settings
    rows: Rows = [("base model", base_model(run))]
    if model.get("commit"):
        rows.append(("its revision", f"{model['revision']}, commit {model['commit']} at {model['source']}"))
    if adapter.get("base_sha256"):
        rows.append(("base model's weights", f"sha256 {adapter['base_sha256']} (over sizes and samples)"))
    if model.get("visual_encoder_commit"):
        rows.append(("visual encoder's revision", f"commit {model['visual_encoder_commit']}"))
    if model.get("visual_encoder"):
        rows.append(("visual encoder", f"sha256 {key_of(model['visual_encoder'])} (over its files' sums)"))
    if run.figures("train").get("pretrained_pth", NONE) != NONE:
        rows.append(("first stage's projector", f"sha256 {run.figures('train')['pretrained_pth']} (its checkpoint)"))
    if s.data.sha256:
        rows.append((Path(s.data.files[0]).name, f"sha256 {s.data.sha256}"))
    for entry in entries.values():
        rows += [(name, f"sha256 {made['sha256']}") for name, made in entry["writes"].items()]
    seed = run.figures("train").get("seed", seen.plan.get("seed"))
    rows.append(("seed", f"{seed}" if seed is not None else "none yet"))
    for gpu in machine.get("gpus", []):
        rows.append(
            ("GPU", f"{gpu['name']}, {gpu['memory_mib']:,} MiB, driver {gpu['driver']}, compute {gpu['capability']}")
        )
    rows.append(("machine", f"{machine.get('system', '?')}, {machine.get('cpus', '?')} CPU cores"))
    rows.append(("image", machine.get("image") or "none: on the host, in the locked environment"))
    versions = run.manifest.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    finished = [entry["finished"] for entry in entries.values()]
    if finished:
        rows.append(("stages finished", f"{min(finished)} to {max(finished)}"))
    commit = _commit(run.root)
    if commit:
        rows.append(("this recipe's commit", f"{commit} (of the clone, when the report was written)"))
    if run.manifest.get("forced"):
        rows.append(("forced", "the last command was given --force"))
    return rows


def _commit(root: Path) -> str:
    """The clone's commit, with a word on changes; "" where git or the history is not there (in a container)."""
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty= and changes", "--exclude=*"]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# --- how to repeat it ---


def toml(values: Dict[str, Any], above: str = "") -> str:
    """Settings as a recipe file. Values are strings, numbers, booleans and lists of them; what is None is left out."""
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {settings.literal(v)}" for name, v in values.items() if name not in tables and v is not None]
    for name, table in tables.items():
        lines.append(f"\n[{above}{name}]\n{toml(table, f'{above}{name}.')}".rstrip())
    return "\n".join(lines) + ("" if above else "\n")


def command(seen: Seen) -> str:
    """The command that repeats the run: its last stage, the recipe's name, and what the run has otherwise than it."""
    run = seen.run
    done = [stage for stage in FULL if stage in run.manifest["stages"]]
    stage = {"chat": "demo", "model": "model", "config": "config"}.get(done[-1], done[-1]) if done else "data"
    own, name, base = run.settings, run.name, None
    try:
        if name == "reproduce":  # a command of its own, which sets the seed and what a GPU's absence asks for
            stage, name = "reproduce", ""
            base = settings.load("tutorial", reproduce.WITHOUT_GPU if own.model.source == "tiny" else ())[1]
            own = settings.replace(own, "train.seed", base.train.seed)
        else:
            base = settings.load(name)[1]
    except RecipeError:
        pass  # a recipe file of the user's, elsewhere: the one beside the report holds everything
    if base is None:
        return f"{_just(stage)} {shlex.quote(run.shown(run.folder / 'report' / f'{run.name}.toml'))}"
    words = map(shlex.quote, settings.differences(base, own))
    return " ".join([_just(stage), *([] if name in ("", stage) else [name]), *words])


# --- writing ---


def write(run: Run, price: Optional[float] = None, working: Optional[bool] = None) -> Path:
    """Write report/ into the run's folder; returns index.html. `price`: an hour's, else the recipe's.

    Raises OSError where the folder cannot be written.
    """
    seen = see(run, working)
    run = seen.run
    price = run.settings.plan.price_per_hour if price is None else price
    place = run.folder / "report"
    place.mkdir(exist_ok=True)
    pictures = curves.draw(charts(seen))
    stages, total = times(seen, price)
    data, data_left_out = _data(seen)
    difference = run.folder / "config.diff"
    values = {
        "name": run.name,
        "verdict": verdict(seen),
        "left_out": seen.left_out,
        "tiles": tiles(seen),
        "subject": subject(seen),
        "against": against(seen),
        "refusals": seen.plan.get("refusals", []),
        "known": seen.run.settings.known_faults,
        "warnings": seen.plan.get("warnings", []),
        "no_norm": bool(seen.steps) and not any("grad_norm" in step for step in seen.steps.values()),
        "resumed": seen.figures("train").get("resumed_from"),
        "pictures": pictures,
        "evaluation": seen.evaluation,
        "measured": measured(seen.evaluation) if seen.evaluation else [],
        "samples": seen.samples,
        "answers": seen.answers,
        "tiny": is_tiny(run),
        "data": data,
        "data_left_out": data_left_out,
        "data_page": (run.folder / "data-report.html").is_file(),
        "stages": stages,
        "total": total,
        "went": went(seen),
        "price": price,
        "seconds": seconds,
        "percent": percent,
        "kinds": kinds(seen),
        "merge": seen.figures("merge"),
        "adapter": seen.figures("adapter"),
        "lora": bool(seen.figures("config").get("lora")),
        "method": seen.figures("config").get("method"),
        "sees": preset_facts.pictures(run.settings),
        "provenance": provenance(seen),
        "difference": difference.read_text(encoding="utf-8").splitlines() if difference.is_file() else [],
        "recipe_file": toml(run.settings.model_dump()),
        "command": command(seen),
        "just": _just("").strip(),
        "base": base_model(run),
        "written": time.strftime("%Y-%m-%d %H:%M %z"),
    }
    for old in place.glob("*.png"):
        if old.stem not in {picture.name for picture in pictures}:
            old.unlink()
    for picture in pictures:
        (place / f"{picture.name}.png.part").write_bytes(picture.png)
        os.replace(str(place / f"{picture.name}.png.part"), str(place / f"{picture.name}.png"))
    write_text(place / f"{run.name}.toml", values["recipe_file"])
    write_text(place / "README.md", html.render("card.md", **values))
    write_text(place / "index.html", html.render("report.html", **values))
    return place / "index.html"


def _data(seen: Seen) -> Tuple[Any, str]:
    """((counts, histograms, likely mistakes) or None, why not)."""
    run, figures = seen.run, seen.figures("data")
    if not figures or not run.dataset.is_file():
        return None, "The data have not been read yet, or dataset.jsonl is gone."
    if figures["conversations"] > SURVEYED:
        return (
            None,
            f"{figures['conversations']:,} conversations: {_just('data-report')} {run.name} looks through them.",
        )
    if digest(run.dataset) != run.manifest["stages"]["data"]["writes"]["dataset.jsonl"]["sha256"]:
        return (
            None,
            f"dataset.jsonl is not the one that this run was made from: {_just('data')} {run.name} makes it anew.",
        )
    return data_report.brief(run), ""
