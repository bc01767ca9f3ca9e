"""Compares two runs: their differences as a table (`just diff`), and as a page with both curves (`just compare`)."""

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from recipe.core import overrides
from recipe.core.files import write_text
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.core.translation import _, english, mark, ngettext, stored
from recipe.reporting import charts, format, pages, sections, verdict
from recipe.reporting.run_view import RunView
from recipe.training import log

ORDER = (mark("result"), mark("recipe"), mark("data"), mark("model"), mark("versions"), mark("machine"))
MISSING = "—"


class Difference(NamedTuple):
    group: str
    item: str
    first: str
    second: str


def compared_values(view: RunView) -> Dict[Tuple[str, str], str]:
    """(group of ORDER, item) → value, for everything in which two runs may differ."""
    run = view.run
    entries, machine = run.manifest["stages"], run.manifest.get("host", {})
    data, model, trained, merged = (run.figures(name) for name in ("data", "model", "train", "merge"))
    found: Dict[Tuple[str, str], Any] = {("result", _("verdict")): verdict.judge_run(view).headline}
    if trained:
        found["result", _("iterations")] = f"{trained['iterations']:,}"
        found["result", _("updates")] = f"{trained['updates']:,}"
        found["result", _("peak learning rate logged")] = format.rate(trained["lr_peak_logged"])
        found["result", _("training loss, first")] = format.number(trained["loss_first"], ".4f")
        found["result", _("training loss, last")] = format.number(trained["loss_last"], ".4f")
        took = format.seconds(entries["train"]["seconds"])
        took = _("{time} (its last start)", time=took) if trained.get("resumed_from") else took
        found["result", _("training took")] = took
        found["result", _("seconds of iterations")] = format.seconds(sections.iteration_seconds(view))
        found["result", _("GPU memory, MiB")] = format.number(view.log["memory_mib"], ",.0f")
    if merged:
        found["result", _("weights changed")] = _(
            "{n:,} of {all:,}", n=merged["weights_changed"], all=merged["weights"]
        )
    if view.evaluation:
        for item, _base, tuned in sections.evaluation_rows(view.evaluation):
            found["result", _("held out: {what}", what=item)] = tuned
    for name, part in sections.VISION_PARTS.items():
        if name in run.figures("adapter"):
            found["result", _("{part}, parameters", part=_(part))] = f"{run.figures('adapter')[name]:,}"
    last = "merge" if "merge" in entries else "adapter"  # LLaVA's first stage has nothing to merge
    for name, made in entries.get(last, {}).get("outputs", {}).items():
        found["result", _("{file}, sha256", file=name)] = made["sha256"]
    for key, value in overrides.flatten(run.settings.model_dump()).items():
        found["recipe", key] = _("the preset's") if value is None else MISSING if value in ("", []) else _join(value)
    for key in ("tokens", "tokens_kept", "packs", "image_tokens"):  # under their names in plan.json
        if key in view.plan:
            found["data", key] = view.plan[key]
    if "seed" in view.plan:
        found["recipe", _("seed of the run")] = view.plan["seed"]
    names = {"rows": _("rows"), "conversations": _("conversations"), "duplicates": _("duplicates")}
    for key, item in {**names, "images": _("images")}.items():
        if key in data:
            found["data", item] = f"{data[key]:,}"
    for name, made in entries.get("data", {}).get("outputs", {}).items():
        found["data", _("{file}, sha256", file=name)] = made["sha256"]
    if model:
        found["model", _("bytes")] = f"{model['bytes']:,}"
        found["model", _("commit")] = model.get("commit") or MISSING
    found["model", _("weights, sha256 of sizes and samples")] = run.figures("adapter").get("base_sha256", MISSING)
    if model.get("visual_encoder"):
        found["model", _("visual encoder, sha256 of its files' sums")] = key_of(model["visual_encoder"])
    if "pretrained_pth" in trained:
        found["model", _("first stage's checkpoint, sha256")] = trained["pretrained_pth"]
    for name, version in run.manifest.get("versions", {}).items():
        found["versions", name] = version or MISSING
    found["machine", "GPU"] = "; ".join(
        _("{name}, driver {version}", name=g["name"], version=g["driver"]) for g in machine.get("gpus", [])
    ) or _("none")
    found["machine", _("CPU cores")] = machine.get("cpus", MISSING)
    found["machine", _("system")] = machine.get("system", MISSING)
    found["machine", _("image")] = machine.get("image") or _("none")
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
        console.print(_("The two runs do not differ: all {n} compared items are equal.", n=same))
        return
    table = Table()
    for heading in ("", "", *map(escape, run_labels(first.run, second.run))):
        table.add_column(heading, overflow="fold")
    group = ""
    for one in found:
        if one.group != group and group:
            table.add_section()
        cells = (pages.shorten(pages.clean(value), 100) for value in (one.item, one.first, one.second))
        table.add_row(stored(one.group) if one.group != group else "", *map(Text, cells))
        group = one.group
    console.print(table)
    console.print(counted(found, same), highlight=False)


def counted(found: List[Difference], same: int) -> str:
    """How many items differ, and how many are equal."""
    return ngettext("{n} item differs, {same} are equal.", "{n} items differ, {same} are equal.", len(found), same=same)


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
        counted=counted(found, same),
        groups=[group for group in ORDER if any(one.group == group for one in found)],
        samples=_common_samples(first, second),
    )
    write_text(folder / f"{stem}.html", page)
    return folder / f"{stem}.html"


def paired_charts(first: RunView, second: RunView) -> List[charts.Chart]:
    """Charts that show both runs."""
    found = []
    with english():  # `charts.draw` translates
        loss = _("Training loss, mean over {n}", n=log.WINDOW)
    for key, name, title in (
        ("loss", "loss", loss),
        ("lr", "learning-rate", mark("Learning rate")),
    ):
        lines = []
        for view, label, colour in zip((first, second), run_labels(first.run, second.run), ("first", "second")):
            values = {n: step[key] for n, step in view.steps.items() if key in step}
            if values:
                lines.append(charts.Line(label, values, "", colour))
        peaks = [max(line.values.values()) for line in lines]
        if lines:
            is_log = key == "lr" and max(peaks) > 100 * min(peaks)
            found.append(charts.Chart(name, title, lines, log_scale=is_log, of_runs=True))
    return found


def _common_samples(first: RunView, second: RunView) -> List[Dict[str, Any]]:
    """Questions that both merged models answered, with both answers."""
    others = {sample["question"]: sample for sample in second.samples}
    return [
        {"question": one["question"], "first": one, "second": others[one["question"]]}
        for one in first.samples
        if one["question"] in others
    ]
