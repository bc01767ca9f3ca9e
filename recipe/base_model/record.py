"""What was fetched into a model folder (.recipe/fetched.json): the commit, and every file's size and sha256."""

import contextlib
import json
from pathlib import Path
from typing import Any, Dict, Optional

from recipe.base_model import hub
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.files import write_text
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.settings import Model

RECORD = Path(".recipe") / "fetched.json"

ORIGIN = ("source", "id", "revision", "commit", "fetched", "listed_by")  # of a record, what figures say

COMMIT = 7  # characters of a commit that tell it


def read_record(place: Path) -> Optional[Dict[str, Any]]:
    """What was fetched into a folder; None where that is not known."""
    try:
        found = json.loads((place / RECORD).read_text(encoding="utf-8"))
        return found if {"source", "id", "revision", "commit", "files"} <= set(found) else None
    except (OSError, ValueError, TypeError):
        return None


def save_record(place: Path, record: Dict[str, Any]) -> None:
    (place / RECORD).parent.mkdir(parents=True, exist_ok=True)
    write_text(place / RECORD, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def is_untouched(place: Path, name: str, file: Dict[str, Any]) -> bool:
    """Whether a file has the size and time with which its sha256 was taken."""
    path = place / name
    return "time" in file and path.is_file() and [path.stat().st_size, path.stat().st_mtime_ns] == [
        file["size"], file["time"],
    ]  # fmt: skip


def is_asked_for(model: Model, record: Dict[str, Any]) -> bool:
    """Whether the record is of what the recipe asks for: the same words, or the commit they once meant."""
    wanted = hub.branch(model)
    return (model.source, model.id) == (record["source"], record["id"]) and (
        wanted == record["revision"] or (len(wanted) >= COMMIT and record["commit"].startswith(wanted))
    )


def check_source(run: Run, place: Path) -> None:
    """Raise InputWrong if the folder holds another revision, or comes from another hub, than the recipe asks for."""
    model, record = run.settings.model, read_record(place)
    if record is None or model.path or model.source == "tiny" or is_asked_for(model, record):
        return
    shown = run.relative(place)
    raise InputWrong(
        f"{shown} holds revision {record['revision']} (commit {record['commit'][:12] or 'unknown'}) from "
        f"{hub.NAMES[record['source']]}; the recipe asks for {hub.branch(model)} from {hub.NAMES[model.source]}. "
        f"Rename the folder to keep both ({model.placed}=… names the renamed one), or remove it; then: "
        f"{command_line('model')}."
    )


def check_files(place: Path, shown: str, record: Dict[str, Any], everything: bool, placed: str) -> None:
    """Compare a folder with its record; raises HostLacks. Content is read where size or time changed, or always.

    `placed`: the setting that names a folder.
    """
    changed, restamped = [], False
    for name, file in record["files"].items():
        path = place / name
        if not path.is_file():
            raise HostLacks(f"{shown} lacks {name}. To fetch it again: {command_line('model')}.")
        if not everything and is_untouched(place, name, file):
            continue
        if path.stat().st_size != file["size"] or digest(path) != file["sha256"]:
            changed.append(name)
        else:
            restamped = restamped or not is_untouched(place, name, file)
            file["time"] = path.stat().st_mtime_ns
    if changed:
        raise HostLacks(
            f"{', '.join(changed)} in {shown}: not what was fetched (sha256 differs). Remove "
            f"{'it' if len(changed) == 1 else 'them'} and type {command_line('model')}, which fetches no more than "
            f"that; to keep a change of your own, rename the folder, remove {RECORD} in it, and name it: {placed}=…"
        )
    if restamped:
        with contextlib.suppress(OSError):  # read-only: the content is right, it will be read again next time
            save_record(place, record)


def staging_folder(run: Run) -> Path:
    return run.models / ".download" / run.settings.model.source / run.settings.model.id


def elsewhere(run: Run) -> str:
    return f"Take another revision (model.revision=…) or a folder that you have ({run.settings.model.placed}=…)."
