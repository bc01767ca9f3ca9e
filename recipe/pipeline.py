"""Which stages a command runs, in which order, and how their results are shown."""

import json
import unicodedata
from typing import Any, Callable, Dict, List, Tuple

from rich.console import Console
from rich.table import Table

from . import adapter, chat, config, data, merge, model, plan, reproduce, train
from .errors import RunFailed
from .stages import Run, Stage, perform

SHOWN = 120  # characters of an answer in the closing samples

DATA = Stage("data", data.work, data.reads, ("dataset.jsonl",))
PLAN = Stage("plan", plan.work, plan.reads, ("plan.json",))
CONFIG = Stage("config", config.work, config.reads, ("config.py", "config.diff"))
MODEL = Stage("model", model.work, model.reads, always=True)
TRAIN = Stage("train", train.work, train.reads)
ADAPTER = Stage("adapter", adapter.work, adapter.reads, ("adapter",))
MERGE = Stage("merge", merge.work, merge.reads, ("merged",))
SAMPLES = Stage("chat", chat.work, chat.reads, ("samples.json",))

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
    "merge": ORDER[:8],
    "chat": ORDER[:8],
    "demo": ORDER,
    "reproduce": (DATA, reproduce.with_seed, *ORDER[1:8]),
}


def says(name: str, figures: Dict[str, Any]) -> str:
    """One line on what a stage did; the merge has one more for each kind of module."""
    f = figures
    lines: Dict[str, Callable[[], str]] = {
        "data": lambda: _data_says(f),
        "plan": lambda: (
            f"{f['tokens']:,} tokens, {f['tokens_kept'] / f['tokens']:.1%} kept in {f['packs']} packs; "
            f"{f['iterations']} iterations, {f['updates']} updates"
        ),
        "config": lambda: f"{f['base']} with {f['lines_changed']} lines changed (config.diff), {f['dtype']}",
        "model": lambda: f"{f['folder']}, {f['bytes'] / 1e6:,.1f} MB",
        "train": lambda: f"{f['iterations']} iterations, loss {f['loss_first']:.3f} → {f['loss_last']:.3f}",
        "adapter": lambda: adapter.says(f),
        "merge": lambda: merge.says(f),
        "chat": lambda: f"{len(f['samples'])} questions asked of base and merged model",
    }
    return lines[name]()


def _data_says(f: Dict[str, Any]) -> str:
    """Counts; and what a user would not expect: other encodings, what was dropped, sheets that were not read."""
    parts = [f"{f['rows']} rows, {f['conversations']} conversations, {f['duplicates']} duplicates"]
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


def run_stages(run: Run, command: str, console: Console) -> None:
    """Perform the stages of `command` in order, one line each."""
    for item in COMMANDS[command]:
        if not isinstance(item, Stage):
            item(run)
            continue
        entry, ran = perform(run, item)
        took = f"{entry['seconds']:.1f} s" if ran else "unchanged"
        for refusal in entry["figures"].get("refusals", []):
            why = "forced" if run.force else "known"
            console.print(f"[yellow]{why}:[/] {refusal['why']}", highlight=False)
        first, *more = says(item.name, entry["figures"]).splitlines()
        console.print(f"[bold]{item.name:8}[/] {first}  [dim]{took}[/]", *more, sep="\n", highlight=False)
        if item is MERGE and not entry["figures"]["tensors_changed"] and command != "reproduce":
            what = "The merge changed nothing: every weight of the merged model is the base model's."
            if not run.force and not run.settings.known_faults:
                raise RunFailed(f"{what} What the plan and the training log say tells why. --force accepts it.")
            console.print(f"[bold red]{what}[/]")


def closing_table(run: Run) -> Table:
    """What happened, in figures; every one comes from the manifest."""
    figures = {name: entry["figures"] for name, entry in run.manifest["stages"].items()}
    seconds = {name: entry["seconds"] for name, entry in run.manifest["stages"].items()}
    rows: List[Tuple[str, str]] = []
    rows.append(("rows", f"{figures['data']['rows']} in {figures['data']['conversations']} conversations"))
    p = figures["plan"]
    rows.append(("tokens", f"{p['tokens']:,}, kept {p['tokens_kept']:,} ({p['tokens_kept'] / p['tokens']:.1%})"))
    t = figures["train"]
    rows.append(("iterations", str(t["iterations"])))
    rows.append(("optimizer updates", str(t["updates"])))
    rows.append(("peak learning rate", f"{p['lr_peak']:.4g} of {p['lr_configured']:.4g} configured"))
    fall = 1 - t["loss_last"] / t["loss_first"]
    rows.append(("loss first → last", f"{t['loss_first']:.3f} → {t['loss_last']:.3f} ({-fall:+.0%})"))
    if "merge" in figures:
        m = figures["merge"]
        rows.append(
            ("weights changed", f"{m['share_changed']:.1%}, in {m['tensors_changed']} of {m['tensors']} tensors")
        )
    rows.append(("seconds", ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())))
    rows.append(("peak memory (RAM)", f"{max(e['peak_memory_mb'] for e in run.manifest['stages'].values()):,} MB"))
    table = Table(title=f"Recipe {run.name}", show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    return table


def places(run: Run) -> List[Tuple[str, str]]:
    """Where everything lies: (what, path)."""
    found = [("checkpoint", run.figures("train")["checkpoint"]), ("adapter", run.shown(run.adapter))]
    if "merge" in run.manifest["stages"]:
        found.append(("merged model", run.shown(run.merged)))
    return [*found, ("all figures", run.shown(run.folder / "run.json"))]


def show_samples(run: Run, console: Console) -> None:
    """The evaluation questions with the base's and the merged model's answers."""
    if run.settings.model.source == "tiny":
        console.print("\nThe base is a model of random weights: noise is what it has to say.", highlight=False)
    for sample in json.loads((run.folder / "samples.json").read_text(encoding="utf-8")):
        console.print(f"\n[bold]{sample['question']}[/]", highlight=False)
        for name in ("base", "merged"):
            ended = "" if sample[f"{name}_ended"] else " [dim]… (did not end by itself)[/]"
            console.print(f"  {name:7}", end="")
            text = "".join(c if unicodedata.category(c)[0] != "C" else "�" for c in sample[name])
            console.print(text[:SHOWN] + ("…" if len(text) > SHOWN else ""), end="", markup=False, highlight=False)
            console.print(ended)
