"""Exports the merged model: writes what an engine needs beside it and shows the commands to run.

A target is a function `target(run, merged, output) -> figures`. It writes into the empty folder `output`, which becomes
output/<recipe>/export/<target>, and returns `commands` (to run in order) and `notes` (in English, for run.json). Before
any target, check_merged refuses an incomplete model. All prompts are derived from XTuner's chat template, which the
model was trained with.
"""

from pathlib import Path
from typing import Any, Callable, Dict

import click

from recipe.base_model import folder
from recipe.core.commands import program
from recipe.core.run import Run
from recipe.core.stage import Stage, perform
from recipe.core.translation import _, stored
from recipe.export.gguf import gguf
from recipe.export.lmdeploy import lmdeploy
from recipe.export.merged import MergedModel, check_merged
from recipe.export.ollama import ollama
from recipe.export.opencompass import opencompass
from recipe.export.upload import send, upload
from recipe.export.vllm import vllm
from recipe.export.vlmevalkit import vlmevalkit

TARGETS: Dict[str, Callable[[Run, MergedModel, Path], Dict[str, Any]]] = {
    "lmdeploy": lmdeploy,
    "vllm": vllm,
    "gguf": gguf,
    "ollama": ollama,
    "opencompass": opencompass,
    "vlmevalkit": vlmevalkit,
    "upload": upload,
}

REQUIRES = {"ollama": "gguf"}  # target → the target that it needs first


def export_stage(target: str, merged: MergedModel) -> Stage:
    """The target as a stage, which is skipped if its inputs have not changed."""

    def make(run: Run, output: Path) -> Dict[str, Any]:
        target_folder = output / "export" / target
        target_folder.mkdir(parents=True)
        (run.folder / "export").mkdir(exist_ok=True)
        return TARGETS[target](run, merged, target_folder)

    def summary(figures: Dict[str, Any]) -> str:
        return "\n".join(map(stored, figures["notes"]))

    return Stage(f"export-{target}", lambda run: _inputs(run, merged), make, summary, outputs=(f"export/{target}",))


def _inputs(run: Run, merged: MergedModel) -> Dict[str, Any]:
    return {
        "merged": folder.fingerprint(run.merged),
        "named": [str(run.merged.resolve()), run.relative(run.merged), merged.recipe, program()],
        "config": run.config,
        "settings": run.settings.export.model_dump(),
        "system": run.settings.data.system,
        "code": Path(__file__).parent,
    }


def export(run: Run, target: str, recipe: str, yes: bool) -> None:
    """Check the merged model, export to `target` and print the next commands; with `yes`, upload."""
    merged = check_merged(run, recipe)
    for name in [*([REQUIRES[target]] if target in REQUIRES else []), target]:
        stage = export_stage(name, merged)
        entry, ran = perform(run, stage)
        took = click.style(f"{entry['seconds']:.1f} s" if ran else _("unchanged"), dim=True)
        click.echo(f"{click.style(f'{name:11}', bold=True)} {run.relative(run.folder / 'export' / name)}  {took}")
    figures = entry["figures"]
    for name, size in figures.get("files", {}).items():
        click.echo(f"  {size:>15,}  {name}")
    if target == "upload" and yes:
        click.echo(_("Sent: {address}", address=send(run, merged)))
        return
    for note in stage.summary(figures).splitlines():
        click.echo(note)
    click.echo("\n" + _("Next:"))
    for command in figures["commands"]:
        click.echo(f"  {command}")
