"""Data stage: the recipe's files to dataset.jsonl, and what is held out of training to eval.jsonl."""

import functools
from pathlib import Path
from typing import Any, Dict

from recipe.core import imports
from recipe.core.errors import InputWrong
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.intake import images, split
from recipe.intake.checks import CONTROL_TOKEN, INVALID_CHARACTER
from recipe.intake.dataset import conversations, lines
from recipe.intake.files import files, image_folder, image_folders, skipped_files
from recipe.intake.reader import Intake
from recipe.intake.writer import Writer, drop_duplicates
from recipe.xtuner import preset_facts


def inputs(run: Run) -> Dict[str, Any]:
    found = [*files(run), *files(run, "eval_files")]
    pictures = preset_facts.pictures(run.settings)
    return {
        **({"images": [images.list_images(place) for place in image_folders(run)]} if pictures else {}),
        "files": [name for _, name in found] + skipped_files(run), "settings": run.settings.data.model_dump(),
        "kind": preset_facts.kind(run.settings),
        "piece": _piece(run) if preset_facts.kind(run.settings) == "pretrain" else 0,
        "seed": _seed(run) if run.settings.data.eval_share else None,
        "code": source(Path(__file__), Path(split.__file__).parent),
        **{f"file{i}": path for i, (path, _) in enumerate(found)},
    }  # fmt: skip


def _seed(run: Run) -> int:
    """By which the held-out conversations are chosen: the recipe's, 0 where it has none."""
    return run.settings.train.seed or 0


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write dataset.jsonl, and what is held out of it into eval.jsonl. Figures, of what is trained on: rows,
    conversations, longest in turns, exact duplicates; what was dropped or changed, what was found in which file, and
    how many conversations are held out.

    Raises InputWrong with the place of every fault (the first 20, then a count); nothing is written then.
    """
    data = run.settings.data
    control = CONTROL_TOKEN.search(data.system) or INVALID_CHARACTER.search(data.system)
    if control:
        raise InputWrong(
            f"data.system of recipe {run.name} holds {control.group()!r}, which the model takes for a sign of its own."
        )
    target, evaluation = output / "dataset.jsonl", output / "eval.jsonl"
    intake = _read(run, "files", target)
    writer = intake.writer
    if not writer.turns:
        raise InputWrong(f"{', '.join(data.files)}: there are no rows below the header. Nothing to train on.")
    count = len(writer.hashes)
    duplicates = count - drop_duplicates(target, writer.hashes, data.dedupe)
    figures = {
        "rows": writer.turns,
        "conversations": count - (duplicates if data.dedupe else 0),
        "longest": max(1, writer.longest),
        "duplicates": 0 if data.dedupe else duplicates,
        "duplicates_dropped": duplicates if data.dedupe else 0,
        "blank_dropped": intake.blank_dropped,
        "numbers_as_text": intake.as_text,
        "line_breaks_changed": intake.breaks,
        "read": intake.read,
        "skipped": intake.skipped + skipped_files(run),
        "held_out": 0,
        "held_out_dropped": 0,
        **({"images": len(intake.pictures.seen)} if intake.pictures else {}),
    }
    if data.eval_files:
        figures["read"] += _read(run, "eval_files", evaluation).read
        figures.update(split.drop_seen(evaluation, lines(target)))
    else:
        chosen = set()
        if data.eval_share and intake.pictures:
            images = [line["sha256"] for line in lines(target)]
            chosen = split.choose_images(images, data.eval_share, _seed(run))
        elif data.eval_share:
            chosen = split.choose(conversations(target), data.eval_share, _seed(run))
        moved = split.move_lines(target, evaluation, chosen)
        figures["held_out"] = len(chosen)
        figures["conversations"] -= len(chosen)
        figures["rows"] -= moved
    return figures


def _read(run: Run, of: str, target: Path) -> Intake:
    """Read the recipe's files, or its eval_files, into `target`. Raises InputWrong."""
    with target.open("w", encoding="utf-8", newline="\n") as stream:
        kind = preset_facts.kind(run.settings)
        pictures = None
        if kind == "image":
            imports.load()  # XTuner's map
            folder = image_folder(run)
            pictures = images.Images(folder if run.settings.data.images else None, folder)
        intake = Intake(run.settings.data, Writer(stream, run.settings.data.system), pictures)
        read = {"pretrain": functools.partial(intake.texts, most=_piece(run)), "agent": intake.agent}.get(
            kind, intake.file
        )
        try:
            for path, name in files(run, of):
                read(path, name)
        finally:
            intake.progress.stop()
        intake.writer.flush()
    intake.errors.raise_if_any()
    return intake


def _piece(run: Run) -> int:
    """Characters of a piece of text: hardly ever more tokens than max_length, in any language's own vocabulary."""
    given = run.settings.data.piece or run.settings.train.max_length
    told = preset_facts.facts(run.settings.base).names.get("max_length", "")
    return given or (int(told) if told.isdigit() else 2048)
