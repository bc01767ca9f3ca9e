"""Two runs side by side: what differs between them, as a table (`just diff`) and as a page with both curves
(`just compare`).
"""

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from recipe.core import overrides
from recipe.core.files import write_text
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.reporting import charts as curves
from recipe.reporting import format, pages, sections, verdict
from recipe.reporting.collect import Seen
from recipe.training import log
from recipe.weights import adapter

ORDER = ("result", "recipe", "data", "model", "versions", "machine")
NOT = "—"


class Difference(NamedTuple):
    group: str
    what: str
    first: str
    second: str


def sides(seen: Seen) -> Dict[Tuple[str, str], str]:
    """(group, what) → value: all of a run that two runs may differ in."""
    run = seen.run
    entries, machine = run.manifest["stages"], run.manifest.get("host", {})
    data, model, trained, merged = (run.figures(name) for name in ("data", "model", "train", "merge"))
    found: Dict[Tuple[str, str], Any] = {("result", "verdict"): verdict.verdict(seen).says}
    if trained:
        found["result", "iterations"] = f"{trained['iterations']:,}"
        found["result", "updates"] = f"{trained['updates']:,}"
        found["result", "peak learning rate logged"] = format.rate(trained["lr_peak_logged"])
        for which in ("first", "last"):
            found["result", f"training loss, {which}"] = format.number(trained[f"loss_{which}"], ".4f")
        last = " (its last start)" if trained.get("resumed_from") else ""
        found["result", "training took"] = f"{format.seconds(entries['train']['seconds'])}{last}"
        found["result", "seconds of iterations"] = format.seconds(sections.iterating(seen))
        found["result", "GPU memory, MiB"] = format.number(seen.log["memory_mib"], ",.0f")
    if merged:
        found["result", "weights changed"] = f"{merged['weights_changed']:,} of {merged['weights']:,}"
    if seen.evaluation:
        for what, _, tuned in sections.measured(seen.evaluation):
            found["result", f"held out: {what}"] = tuned
    for name in adapter.LLAVA_PARTS:
        if name in run.figures("adapter"):
            found["result", f"{name.replace('_', ' ')}, parameters"] = f"{run.figures('adapter')[name]:,}"
    last = "merge" if "merge" in entries else "adapter"  # LLaVA's first stage has nothing to merge
    for name, made in entries.get(last, {}).get("outputs", {}).items():
        found["result", f"{name}, sha256"] = made["sha256"]
    for key, value in overrides.flatten(run.settings.model_dump()).items():
        found["recipe", key] = "the preset's" if value is None else NOT if value in ("", []) else _text(value)
    for key in ("tokens", "tokens_kept", "packs", "image_tokens", "seed"):
        if key in seen.plan:
            found["data" if key != "seed" else "recipe", {"seed": "seed of the run"}.get(key, key)] = seen.plan[key]
    for key in ("rows", "conversations", "duplicates", "images"):
        if key in data:
            found["data", key] = f"{data[key]:,}"
    for name, made in entries.get("data", {}).get("outputs", {}).items():
        found["data", f"{name}, sha256"] = made["sha256"]
    if model:
        found["model", "bytes"] = f"{model['bytes']:,}"
        found["model", "commit"] = model.get("commit") or NOT
    found["model", "weights, sha256 of sizes and samples"] = run.figures("adapter").get("base_sha256", NOT)
    if model.get("visual_encoder"):
        found["model", "visual encoder, sha256 of its files' sums"] = key_of(model["visual_encoder"])
    if "pretrained_pth" in trained:
        found["model", "first stage's checkpoint, sha256"] = trained["pretrained_pth"]
    for name, version in run.manifest.get("versions", {}).items():
        found["versions", name] = version or NOT
    found["machine", "GPU"] = "; ".join(f"{g['name']}, driver {g['driver']}" for g in machine.get("gpus", [])) or "none"
    found["machine", "CPU cores"] = machine.get("cpus", NOT)
    found["machine", "system"] = machine.get("system", NOT)
    found["machine", "image"] = machine.get("image") or "none"
    return {key: str(value) for key, value in found.items()}


def _text(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def differences(first: Seen, second: Seen) -> Tuple[List[Difference], int]:
    """(what differs, in the order of `ORDER`; how many things are the same)."""
    a, b = sides(first), sides(second)
    keys = sorted({**a, **b}, key=lambda key: ORDER.index(key[0]))
    found = [Difference(*key, a.get(key, NOT), b.get(key, NOT)) for key in keys if a.get(key, NOT) != b.get(key, NOT)]
    return found, len(keys) - len(found)


def names(first: Run, second: Run) -> Tuple[str, str]:
    """What the two runs are called: their folders' names, with A and B where these are the same."""
    if first.name == second.name:
        return f"{first.name} (A)", f"{second.name} (B)"
    return first.name, second.name


def show(first: Seen, second: Seen, console: Any) -> None:
    """Print the table."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    found, same = differences(first, second)
    if not found:
        console.print(f"The two runs do not differ: all {same} things that were compared are the same.")
        return
    table = Table()
    for heading in ("", "", *map(escape, names(first.run, second.run))):
        table.add_column(heading, overflow="fold")
    group = ""
    for one in found:
        if one.group != group and group:
            table.add_section()
        cells = (pages.short(pages.clean(value), 100) for value in (one.what, one.first, one.second))
        table.add_row(one.group if one.group != group else "", *map(Text, cells))
        group = one.group
    console.print(table)
    console.print(f"{len(found)} things differ, {same} are the same.", highlight=False)


def write(first: Seen, second: Seen, folder: Path) -> Path:
    """Write the page and its curves (PNG) into `folder`; returns the page's path."""
    called = names(first.run, second.run)
    found, same = differences(first, second)
    pictures = curves.draw(charts(first, second))
    stem = "-against-".join(re.sub(r"[^\w.-]+", "-", run.name) for run in (first.run, second.run))
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (folder / f"{stem}-{picture.name}.png").write_bytes(picture.png)
    page = pages.render(
        "compare.html",
        names=called,
        folders=[seen.run.relative(seen.run.folder) for seen in (first, second)],
        verdicts=[verdict.verdict(seen) for seen in (first, second)],
        pictures=pictures,
        differences=found,
        same=same,
        groups=[group for group in ORDER if any(one.group == group for one in found)],
        samples=_samples(first, second),
    )
    write_text(folder / f"{stem}.html", page)
    return folder / f"{stem}.html"


def charts(first: Seen, second: Seen) -> List[curves.Chart]:
    """Both runs' curves in one chart each."""
    found = []
    for key, name, title in (
        ("loss", "loss", f"Training loss, mean over {log.WINDOW}"),
        ("lr", "learning-rate", "Learning rate"),
    ):
        lines = []
        for seen, called, colour in zip((first, second), names(first.run, second.run), ("first", "second")):
            values = {n: step[key] for n, step in seen.steps.items() if key in step}
            if values:
                lines.append(curves.Line(called, values, "", colour))
        peaks = [max(line.values.values()) for line in lines]
        if lines:
            far = key == "lr" and max(peaks) > 100 * min(peaks)
            found.append(curves.Chart(name, title, lines, log=far))
    return found


def _samples(first: Seen, second: Seen) -> List[Dict[str, Any]]:
    """Questions that both merged models were asked, with both answers."""
    there = {one["question"]: one for one in second.samples}
    return [
        {"question": one["question"], "first": one, "second": there[one["question"]]}
        for one in first.samples
        if one["question"] in there
    ]
