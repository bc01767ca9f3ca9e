"""Data stage: the recipe's files to dataset.jsonl, and what is held out of training to eval.jsonl."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

from recipe.core import imports
from recipe.core.errors import InputWrong
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.core.stage import Stage
from recipe.core.translation import _, listed, ngettext
from recipe.intake import images, published, split
from recipe.intake.checks import find_control
from recipe.intake.dataset import conversations, lines
from recipe.intake.duplicates import drop_duplicates
from recipe.intake.files import data_files, skipped_files
from recipe.intake.places import in_words
from recipe.intake.reader import DatasetReader
from recipe.intake.writer import Writer
from recipe.xtuner import preset_facts


def inputs(run: Run) -> Dict[str, Any]:
    published.ensure(run)
    found = [*data_files(run), *data_files(run, "eval_files")]
    kind = preset_facts.kind(run.settings)
    return {
        **({"images": images.list_images(run)} if kind == "image" else {}),
        "files": [name for _path, name in found] + skipped_files(run),
        "settings": run.settings.data.model_dump(),
        "kind": kind,
        "piece": _max_chars(run) if kind == "pretrain" else 0,
        "seed": _seed(run) if run.settings.data.eval_share else None,
        "code": source(Path(__file__), Path(split.__file__).parent),
        **{f"file{i}": path for i, (path, _name) in enumerate(found)},
    }


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Writes dataset.jsonl and eval.jsonl (the held-out conversations).

    Figures: rows, conversations, longest (in turns) and exact duplicates of what is trained on; what was dropped or
    changed; what was found in which file; how many conversations are held out.

    Raises InputWrong with the place of every error (the first 20, then a count); then nothing is written.
    """
    data = run.settings.data
    control = find_control(data.system)
    if control:
        raise InputWrong(
            _(
                "data.system of recipe {recipe} holds {token!r}, which the model reads as a control token.",
                recipe=run.name,
                token=control.group(),
            )
        )
    target, evaluation = output / "dataset.jsonl", output / "eval.jsonl"
    reader = _read_files(run, "files", target)
    writer = reader.writer
    if not writer.turns:
        raise InputWrong(
            _("{files}: there are no rows below the header. Nothing to train on.", files=listed(data.files))
        )
    count = len(writer.hashes)
    duplicates = count - drop_duplicates(target, writer.hashes, data.dedupe)
    figures: Dict[str, Any] = {
        "rows": writer.turns,
        "conversations": count - (duplicates if data.dedupe else 0),
        "longest": max(1, writer.longest),
        "duplicates": 0 if data.dedupe else duplicates,
        "duplicates_dropped": duplicates if data.dedupe else 0,
        "blank_dropped": reader.blank_dropped,
        "numbers_as_text": reader.numbers_as_text,
        "line_breaks_changed": reader.line_breaks_changed,
        "read": reader.read,
        "skipped": reader.skipped + skipped_files(run),
        "notes": reader.notes.found,
        "held_out": 0,
        "held_out_dropped": 0,
        **({"images": len(reader.images.checked)} if reader.images else {}),
    }
    if data.eval_files:
        figures["read"] += _read_files(run, "eval_files", evaluation).read
        figures.update(split.drop_seen(evaluation, lines(target)))
    else:
        chosen = _choose_held_out(run, target)
        figures["held_out"] = len(chosen)
        figures["conversations"] -= len(chosen)
        figures["rows"] -= split.move_lines(target, evaluation, chosen)
    return figures


def _read_files(run: Run, setting: str, target: Path) -> DatasetReader:
    """Reads data.files or data.eval_files into `target`. Raises InputWrong."""
    kind = preset_facts.kind(run.settings)
    if kind == "image":
        imports.load()  # XTuner's LLaVA map
    with target.open("w", encoding="utf-8", newline="\n") as stream:
        pictures = images.Images(run) if kind == "image" else None
        reader = DatasetReader(run.settings.data, Writer(stream, run.settings.data.system), pictures)
        try:
            for path, name in data_files(run, setting):
                if kind == "pretrain":
                    reader.read_texts(path, name, _max_chars(run))
                elif kind == "agent":
                    reader.read_agent(path, name)
                else:
                    reader.read_conversations(path, name)
        finally:
            reader.progress.stop()
        reader.writer.flush()
    reader.errors.raise_if_any()
    return reader


def _choose_held_out(run: Run, dataset: Path) -> Set[int]:
    share = run.settings.data.eval_share
    if not share:
        return set()
    if preset_facts.kind(run.settings) == "image":
        return split.choose_images([line["sha256"] for line in lines(dataset)], share, _seed(run))
    return split.choose(conversations(dataset), share, _seed(run))


def _seed(run: Run) -> int:
    """The seed for choosing held-out conversations; 0 if the recipe has none."""
    return run.settings.train.seed or 0


def _max_chars(run: Run) -> int:
    """Characters of a piece of text: rarely more tokens than max_length, as a token is at least about one character."""
    given = run.settings.data.piece or run.settings.train.max_length
    preset = preset_facts.facts(run.settings.base).names.get("max_length", "")
    return given or (int(preset) if preset.isdigit() else 2048)


def summary(figures: Dict[str, Any]) -> str:
    """Counts, and anything unexpected: other encodings, dropped rows, sheets that were not read."""
    return _("; ").join([*_counts(figures), *_of_files(figures["read"]), *_notes(figures)])


def _counts(f: Dict[str, Any]) -> Iterator[str]:
    yield listed(
        (
            ngettext("{n} row", "{n} rows", f["rows"]),
            ngettext("{n} conversation", "{n} conversations", f["conversations"]),
            ngettext("{n} duplicate", "{n} duplicates", f["duplicates"]),
        )
    )
    if f["held_out"]:
        yield ngettext("{n} more held out", "{n} more held out", f["held_out"])
    if f["held_out_dropped"]:
        yield _("{n} of data.eval_files not: their questions are in training", n=f["held_out_dropped"])
    if f["blank_dropped"] or f["duplicates_dropped"]:
        rows = ngettext("dropped {n} row with blanks", "dropped {n} rows with blanks", f["blank_dropped"])
        yield listed((rows, ngettext("{n} duplicate", "{n} duplicates", f["duplicates_dropped"])))


def _of_files(read: List[Dict[str, Any]]) -> Iterator[str]:
    """What is unusual in the files that were read."""
    for one in read:
        if one["encoding"] not in ("", "UTF-8"):
            # "{file} is {encoding}" would be the message of too many texts that `stored` looks up.
            yield f"{one['file']} {_('is {encoding}', encoding=_(one['encoding']))}"
    for one in read:
        beside = one.get("beside", [])
        lost = [in_words(column) for column in one["unused"] if column.endswith("(without a name)")]
        if lost:
            yield _("not read: {columns} of {file}", columns=listed(lost), file=one["file"])
        if beside:
            yield _(
                "not read: a second table beside the first in {file} ({columns})",
                file=one["file"], columns=listed(beside),
            )  # fmt: skip
        left = [f"{name} ({count:,})" for name, count in one["unused"].items() if count and name not in beside]
        if left:
            yield _("left alone: {columns} of {file}", columns=listed(left), file=one["file"])


def _notes(f: Dict[str, Any]) -> Iterator[str]:
    for what, (count, places) in f["notes"].items():
        shown = _("; ").join([*map(in_words, places), *["…"] * (count > len(places))])
        yield ngettext(
            "{n:,} text with {what}: {places}", "{n:,} texts with {what}: {places}", count, what=_(what), places=shown
        )
    if f["skipped"]:
        yield _("not read: {what}", what=_("; ").join(map(in_words, f["skipped"])))


STAGE = Stage("data", inputs, make, summary, outputs=("dataset.jsonl", "eval.jsonl"))
