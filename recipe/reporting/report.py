"""Writes a run's report: report/index.html, its curves as PNGs, and README.md, a model card. In the language of the
command that writes it.

Reads the stages' results (run.json, plan.json, the trainer's logs, samples.json, eval.json) and runs no stage, so it
works after every stage and during training.
"""

import os
import shlex
import time
from pathlib import Path
from typing import Any, Optional, Tuple

from recipe.base_model import licence
from recipe.core.commands import command_line, program
from recipe.core.files import write_text
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.translation import _
from recipe.reporting import charts, data_report, data_survey, pages, provenance, sections, training_curves
from recipe.reporting.format import percent, seconds
from recipe.reporting.run_view import RunView, base_model_name, read_run
from recipe.reporting.verdict import judge_run
from recipe.xtuner import preset_facts

MAX_CONVERSATIONS = 20_000  # surveyed for the report, in under a second; data-report has no limit


def write(run: Run, price: Optional[float] = None, is_running: Optional[bool] = None) -> Path:
    """Write report/ into the run's folder; return index.html. `price`: per hour, default the recipe's.

    Raises OSError if the folder cannot be written.
    """
    view = read_run(run, is_running)
    run = view.run
    price = run.settings.plan.price_per_hour if price is None else price
    folder = run.folder / "report"
    folder.mkdir(exist_ok=True)
    pictures = charts.draw(training_curves.run_charts(view))
    stages, total = sections.stage_times(view, price)
    data, data_left_out = _data_section(view)
    difference = run.folder / "config.diff"
    has_difference = difference.is_file() and not run.is_replaced("config.diff")
    values = {
        "name": run.name,
        "verdict": judge_run(view),
        "left_out": view.left_out,
        "key_figures": sections.key_figures(view),
        "setup": sections.training_setup(view),
        "plan_comparison": sections.compare_with_plan(view),
        "refusals": view.plan.get("refusals", []),
        "known": run.settings.known_faults,
        "warnings": view.plan.get("warnings", []),
        "no_norm": bool(view.steps) and not any("grad_norm" in step for step in view.steps.values()),
        "resumed": view.figures("train").get("resumed_from"),
        "pictures": pictures,
        "evaluation": view.evaluation,
        "evaluation_rows": sections.evaluation_rows(view.evaluation) if view.evaluation else [],
        "measured": sections.measured(view.evaluation) if view.evaluation else "",
        "samples": view.samples,
        "answers": view.answers,
        "tiny": run.settings.model.is_tiny,
        "data": data,
        "data_left_out": data_left_out,
        "data_page": (run.folder / "data-report.html").is_file(),
        "stages": stages,
        "total": total,
        "time_breakdown": sections.time_breakdown(view),
        "price": price,
        "seconds": seconds,
        "percent": percent,
        "module_changes": sections.module_changes(view),
        "changed": sections.changed(view),
        "merge": view.figures("merge"),
        "adapter": view.figures("adapter"),
        "lora": bool(view.figures("config").get("lora")),
        "has_images": preset_facts.has_images(run.settings),
        "provenance": provenance.provenance(view),
        "difference": difference.read_text(encoding="utf-8").splitlines() if has_difference else [],
        "recipe_file": provenance.to_toml(run.settings.model_dump()),
        "command": provenance.repeat_command(view),
        "looked_for": _(data_survey.LOOKED_FOR),
        "just": program(),
        "base": base_model_name(run),
        "licence": licence.of(run),
        "written": time.strftime("%Y-%m-%d %H:%M %z"),
    }
    for old in folder.glob("*.png"):
        if old.stem not in {picture.name for picture in pictures}:
            old.unlink()
    for picture in pictures:
        (folder / f"{picture.name}.png.part").write_bytes(picture.png)
        os.replace(str(folder / f"{picture.name}.png.part"), str(folder / f"{picture.name}.png"))
    write_text(folder / f"{run.name}.toml", values["recipe_file"])
    write_text(folder / "README.md", pages.render("card.md", **values))
    write_text(folder / "index.html", pages.render("report.html", **values))
    return folder / "index.html"


def _data_section(view: RunView) -> Tuple[Any, str]:
    """((counts, histograms, likely mistakes), ""), or (None, the reason)."""
    run, figures = view.run, view.figures("data")
    if not figures or not run.dataset.is_file():
        return None, _("The data stage has not run yet, or dataset.jsonl was deleted.")
    if figures["conversations"] > MAX_CONVERSATIONS:
        command = command_line("data-report", shlex.quote(run.name))
        return None, _(
            "{n:,} conversations: run {command} to survey them.", n=figures["conversations"], command=command
        )
    if digest(run.dataset) != run.manifest["stages"]["data"]["outputs"]["dataset.jsonl"]["sha256"]:
        command = command_line("data", shlex.quote(run.name))
        return None, _("dataset.jsonl does not belong to this run. Recreate it: {command}", command=command)
    return data_report.summarize(run), ""
