"""The record of a download (.recipe/fetched.json in the model folder): the commit, and each file's size and sha256."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from recipe.base_model.hub_addresses import NAMES, branch
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.files import write_text
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.settings import Model, Pin
from recipe.core.translation import _, listed

RECORD = Path(".recipe") / "fetched.json"

# The fields that go into the figures
ORIGIN = ("source", "id", "revision", "commit", "fetched", "listed_by", "instead_of", "sha256")

SHORT_COMMIT = 7  # characters that identify a commit


def read_record(place: Path) -> Optional[Dict[str, Any]]:
    """The record of a folder; None if it has none, or a damaged one."""
    try:
        found = json.loads((place / RECORD).read_text(encoding="utf-8"))
        return found if {"source", "id", "revision", "commit", "files"} <= set(found) else None
    except (OSError, ValueError, TypeError):
        return None


def save_record(place: Path, record: Dict[str, Any]) -> None:
    (place / RECORD).parent.mkdir(parents=True, exist_ok=True)
    write_text(place / RECORD, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def describe_file(path: Path) -> Dict[str, Any]:
    """What a record holds of a file."""
    return {"size": path.stat().st_size, "sha256": digest(path), "time": path.stat().st_mtime_ns}


def is_unchanged(place: Path, name: str, file: Dict[str, Any]) -> bool:
    """Whether a file still has the size and modification time that it had when its sha256 was computed."""
    path = place / name
    return "time" in file and path.is_file() and [path.stat().st_size, path.stat().st_mtime_ns] == [
        file["size"], file["time"],
    ]  # fmt: skip


def is_of(model: Model, record: Dict[str, Any]) -> bool:
    """Whether a record is of the recipe's model at its revision, by the revision's name or its commit."""
    if model.source == "smollm2":
        return bool(record["source"] == model.source)
    wanted = branch(model)
    return (model.source, model.id) == (record["source"], record["id"]) and (
        wanted == record["revision"] or (len(wanted) >= SHORT_COMMIT and record["commit"].startswith(wanted))
    )


def hubs(model: Model) -> List[Model]:
    """The model at each hub that it may come from, in the order in which to ask them."""
    if model.source != "auto":
        return [model]
    there = {name: value for name, value in model.huggingface.model_dump().items() if value}
    return [
        model.model_copy(update={"source": "modelscope", "huggingface": Pin()}),  # a message need not name the other
        model.model_copy(update={"source": "huggingface", **there}),
    ]


def chosen(run: Run) -> Model:
    """The run's model at one hub. With model.source = "auto": where its folder or its begun download is from, else the
    first.
    """

    def rank(model: Model) -> int:
        folder = run.models / model.id
        record = read_record(folder)
        if folder.exists() and (record is None or is_of(model, record)):
            return 0
        begun = read_record(_staging_folder(run, model))
        return 1 if begun and is_of(model, begun) else 2 if folder.exists() else 3

    found = hubs(run.settings.model)
    return found[0] if len(found) == 1 else min(found, key=rank)


def at_hub(run: Run, model: Model) -> Run:
    """The run with `model` in place of the recipe's."""
    return dataclasses.replace(run, settings=run.settings.model_copy(update={"model": model}))


def check_source(run: Run, place: Path) -> None:
    """Raise InputWrong if the folder was downloaded from another hub or revision than the recipe names."""
    model, record = chosen(run), read_record(place)
    if record is None or model.path or model.is_tiny or is_of(model, record):
        return
    raise InputWrong(
        _(
            "{folder} holds revision {revision} (commit {commit}) from {hub}; the recipe asks for {wanted} from "
            "{wanted_hub}. Rename the folder to keep both ({setting}=… names the renamed one), or remove it; then: "
            "{command}.",
            folder=run.relative(place),
            revision=record["revision"],
            commit=record["commit"][:12] or _("unknown"),
            hub=NAMES[record["source"]],
            wanted=branch(model),
            wanted_hub=NAMES[model.source],
            setting=model.placed,
            command=command_line("model"),
        )
    )


def check_files(place: Path, shown: str, record: Dict[str, Any], everything: bool, placed: str) -> None:
    """Raise HostLacks if a folder's files are not those of its record. Reads files whose size or modification time
    changed; all of them with `everything`.

    `placed`: the setting that names a folder.
    """
    changed, updated = [], False
    for name, file in record["files"].items():
        path = place / name
        if not path.is_file():
            raise HostLacks(
                _(
                    "{file} is missing. To fetch it again: {command}.",
                    file=f"{shown}/{name}",
                    command=command_line("model"),
                )
            )
        unchanged = is_unchanged(place, name, file)
        if unchanged and not everything:
            continue
        if path.stat().st_size != file["size"] or digest(path) != file["sha256"]:
            changed.append(name)
        elif not unchanged:
            file["time"], updated = path.stat().st_mtime_ns, True
    if changed:
        values = dict(files=listed(changed), folder=shown, command=command_line("model"), record=RECORD, setting=placed)
        raise HostLacks(
            _(
                "{files} in {folder}: changed since the download (sha256 differs). Remove it and type {command}, which "
                "fetches only that; to keep your own change, rename the folder, remove {record} in it, and name it: "
                "{setting}=…",
                **values,
            )
            if len(changed) == 1
            else _(
                "{files} in {folder}: changed since the download (sha256 differs). Remove them and type {command}, "
                "which fetches only that; to keep your own change, rename the folder, remove {record} in it, and name "
                "it: {setting}=…",
                **values,
            )
        )
    if updated:
        with contextlib.suppress(OSError):  # a read-only folder: the file is read again next time
            save_record(place, record)


def staging_folder(run: Run) -> Path:
    """Where a download is gathered until it is complete."""
    return _staging_folder(run, chosen(run))


def _staging_folder(run: Run, model: Model) -> Path:
    return run.models / ".download" / model.source / model.id


def elsewhere(run: Run) -> str:
    """The remedy for a model that does not work here."""
    return _(
        "Use another revision (model.revision=…) or a local folder ({setting}=…).", setting=run.settings.model.placed
    )
