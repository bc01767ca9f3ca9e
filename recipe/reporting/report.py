"""What happened in a run, on one page: report/index.html, its curves as PNGs, and README.md, a model card.

It reads what the stages left (run.json, plan.json, the trainer's logs, samples.json, eval.json) and runs none of them,
so it works at every stage, also beside a training that is under way. Every figure is one of theirs.
"""

import os
import time
from pathlib import Path
from typing import Any, Optional, Tuple

from recipe.core.commands import command_line, program
from recipe.core.files import write_text
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.reporting import charts as curves
from recipe.reporting import data_report, pages
from recipe.reporting.collect import Seen, base_model, is_tiny, see
from recipe.reporting.format import percent, seconds
from recipe.reporting.sections import (
    against,
    charts,
    command,
    kinds,
    measured,
    provenance,
    subject,
    tiles,
    time_breakdown,
    times,
    toml,
)
from recipe.reporting.verdict import verdict
from recipe.xtuner import preset_facts

SURVEYED = 20_000  # conversations that are looked through for the report, in a second; data-report takes any number


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
        "time_breakdown": time_breakdown(seen),
        "price": price,
        "seconds": seconds,
        "percent": percent,
        "kinds": kinds(seen),
        "merge": seen.figures("merge"),
        "adapter": seen.figures("adapter"),
        "lora": bool(seen.figures("config").get("lora")),
        "method": seen.figures("config").get("method"),
        "sees": preset_facts.has_images(run.settings),
        "provenance": provenance(seen),
        "difference": difference.read_text(encoding="utf-8").splitlines() if difference.is_file() else [],
        "recipe_file": toml(run.settings.model_dump()),
        "command": command(seen),
        "just": program(),
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
    write_text(place / "README.md", pages.render("card.md", **values))
    write_text(place / "index.html", pages.render("report.html", **values))
    return place / "index.html"


def _data(seen: Seen) -> Tuple[Any, str]:
    """((counts, histograms, likely mistakes) or None, why not)."""
    run, figures = seen.run, seen.figures("data")
    if not figures or not run.dataset.is_file():
        return None, "The data have not been read yet, or dataset.jsonl is gone."
    if figures["conversations"] > SURVEYED:
        return (
            None,
            f"{figures['conversations']:,} conversations: {command_line('data-report')} {run.name} looks through them.",
        )
    if digest(run.dataset) != run.manifest["stages"]["data"]["outputs"]["dataset.jsonl"]["sha256"]:
        return (
            None,
            f"dataset.jsonl is not that of this run. Make it again: {command_line('data')} {run.name}",
        )
    return data_report.brief(run), ""
