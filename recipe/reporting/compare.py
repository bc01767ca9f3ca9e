"""Compares two runs: their differences as a table (`just diff`), and as a page with both curves (`just compare`)."""

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from recipe.core import overrides
from recipe.core.files import write_text
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.reporting import charts, format, pages, sections, verdict
from recipe.reporting.run_view import RunView
from recipe.training import log
from recipe.weights import adapter

ORDER = ("result", "recipe", "data", "model", "versions", "machine")
MISSING = "—"


class Difference(NamedTuple):
    group: str
    item: str
    first: str
    second: str


def compared_values(view: RunView) -> Dict[Tuple[str, str], str]:
    """(group, item) → value, for everything in which two runs may differ."""
    run = view.run
    entries, machine = run.manifest["stages"], run.manifest.get("host", {})
    data, model, trained, merged = (run.figures(name) for name in ("data", "model", "train", "merge"))
    found: Dict[Tuple[str, str], Any] = {("result", "verdict"): verdict.judge_run(view).headline}
    if trained:
        found["result", "iterations"] = f"{trained['iterations']:,}"
        found["result", "updates"] = f"{trained['updates']:,}"
        found["result", "peak learning rate logged"] = format.rate(trained["lr_peak_logged"])
        for which in ("first", "last"):
            found["result", f"training loss, {which}"] = format.number(trained[f"loss_{which}"], ".4f")
        last = " (its last start)" if trained.get("resumed_from") else ""
        found["result", "training took"] = f"{format.seconds(entries['train']['seconds'])}{last}"
        found["result", "seconds of iterations"] = format.seconds(sections.iteration_seconds(view))
        found["result", "GPU memory, MiB"] = format.number(view.log["memory_mib"], ",.0f")
    if merged:
        found["result", "weights changed"] = f"{merged['weights_changed']:,} of {merged['weights']:,}"
    if view.evaluation:
        for item, _, tuned in sections.evaluation_rows(view.evaluation):
            found["result", f"held out: {item}"] = tuned
    for name in adapter.LLAVA_PARTS:
        if name in run.figures("adapter"):
            found["result", f"{name.replace('_', ' ')}, parameters"] = f"{run.figures('adapter')[name]:,}"
    last = "merge" if "merge" in entries else "adapter"  # LLaVA's first stage has nothing to merge
    for name, made in entries.get(last, {}).get("outputs", {}).items():
        found["result", f"{name}, sha256"] = made["sha256"]
    for key, value in overrides.flatten(run.settings.model_dump()).items():
        found["recipe", key] = "the preset's" if value is None else MISSING if value in ("", []) else _join(value)
    for key in ("tokens", "tokens_kept", "packs", "image_tokens", "seed"):
        if key in view.plan:
            found["data" if key != "seed" else "recipe", {"seed": "seed of the run"}.get(key, key)] = view.plan[key]
    for key in ("rows", "conversations", "duplicates", "images"):
        if key in data:
            found["data", key] = f"{data[key]:,}"
    for name, made in entries.get("data", {}).get("outputs", {}).items():
        found["data", f"{name}, sha256"] = made["sha256"]
    if model:
        found["model", "bytes"] = f"{model['bytes']:,}"
        found["model", "commit"] = model.get("commit") or MISSING
    found["model", "weights, sha256 of sizes and samples"] = run.figures("adapter").get("base_sha256", MISSING)
    if model.get("visual_encoder"):
        found["model", "visual encoder, sha256 of its files' sums"] = key_of(model["visual_encoder"])
    if "pretrained_pth" in trained:
        found["model", "first stage's checkpoint, sha256"] = trained["pretrained_pth"]
    for name, version in run.manifest.get("versions", {}).items():
        found["versions", name] = version or MISSING
    found["machine", "GPU"] = "; ".join(f"{g['name']}, driver {g['driver']}" for g in machine.get("gpus", [])) or "none"
    found["machine", "CPU cores"] = machine.get("cpus", MISSING)
    found["machine", "system"] = machine.get("system", MISSING)
    found["machine", "image"] = machine.get("image") or "none"
    return {key: str(value) for key, value in found.items()}


def _join(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def differences(first: RunView, second: RunView) -> Tuple[List[Difference], int]:
    """(the differences, in the order of `ORDER`; the number of equal items)."""
    a, b = compared_values(first), compared_values(second)
    keys = sorted({**a, **b}, key=lambda key: ORDER.index(key[0]))
    found = [
        Difference(*key, a.get(key, MISSING), b.get(key, MISSING))
        for key in keys
        if a.get(key, MISSING) != b.get(key, MISSING)
    ]
    return found, len(keys) - len(found)


def run_labels(first: Run, second: Run) -> Tuple[str, str]:
    """Labels of the two runs: their folders' names, with A and B if these are equal."""
    if first.name == second.name:
        return f"{first.name} (A)", f"{second.name} (B)"
    return first.name, second.name


def show(first: RunView, second: RunView, console: Any) -> None:
    """Print the table."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    found, same = differences(first, second)
    if not found:
        console.print(f"The two runs do not differ: all {same} compared items are equal.")
        return
    table = Table()
    for heading in ("", "", *map(escape, run_labels(first.run, second.run))):
        table.add_column(heading, overflow="fold")
    group = ""
    for one in found:
        if one.group != group and group:
            table.add_section()
        cells = (pages.shorten(pages.clean(value), 100) for value in (one.item, one.first, one.second))
        table.add_row(one.group if one.group != group else "", *map(Text, cells))
        group = one.group
    console.print(table)
    console.print(f"{len(found)} items differ, {same} are equal.", highlight=False)


def write(first: RunView, second: RunView, folder: Path) -> Path:
    """Write the page and its curves (PNG) into `folder`; return the page's path."""
    labels = run_labels(first.run, second.run)
    found, same = differences(first, second)
    pictures = charts.draw(paired_charts(first, second))
    stem = "-against-".join(re.sub(r"[^\w.-]+", "-", run.name) for run in (first.run, second.run))
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{stem}-{picture.name}.png").write_bytes(picture.png)
    page = pages.render(
        "compare.html",
        names=labels,
        folders=[view.run.relative(view.run.folder) for view in (first, second)],
        verdicts=[verdict.judge_run(view) for view in (first, second)],
        pictures=pictures,
        differences=found,
        same=same,
        groups=[group for group in ORDER if any(one.group == group for one in found)],
        samples=_common_samples(first, second),
    )
    write_text(folder / f"{stem}.html", page)
    return folder / f"{stem}.html"


def paired_charts(first: RunView, second: RunView) -> List[charts.Chart]:
    """Charts that show both runs."""
    found = []
    for key, name, title in (
        ("loss", "loss", f"Training loss, mean over {log.WINDOW}"),
        ("lr", "learning-rate", "Learning rate"),
    ):
        lines = []
        for view, label, colour in zip((first, second), run_labels(first.run, second.run), ("first", "second")):
            values = {n: step[key] for n, step in view.steps.items() if key in step}
            if values:
                lines.append(charts.Line(label, values, "", colour))
        peaks = [max(line.values.values()) for line in lines]
        if lines:
            is_log = key == "lr" and max(peaks) > 100 * min(peaks)
            found.append(charts.Chart(name, title, lines, log_scale=is_log))
    return found


def _common_samples(first: RunView, second: RunView) -> List[Dict[str, Any]]:
    """Questions that both merged models answered, with both answers."""
    others = {sample["question"]: sample for sample in second.samples}
    return [
        {"question": one["question"], "first": one, "second": others[one["question"]]}
        for one in first.samples
        if one["question"] in others
    ]
