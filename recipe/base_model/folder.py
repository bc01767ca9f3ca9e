"""The base model's folder: where it is, whether it is complete, and what identifies it.

A download is gathered in models/.download and renamed to models/<id> when every file is there and checked, so a folder
below models/ is always complete. Its record, .recipe/fetched.json, holds the commit and each file's size and sha256. It
is compared with the folder before each use: by size and modification time, and by content where one of them changed.
"""

import hashlib
import json
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from recipe.base_model import compatibility, loadable, model_code
from recipe.base_model.hub_addresses import INDEXES
from recipe.base_model.record import (
    check_files,
    check_source,
    chosen,
    elsewhere,
    is_unchanged,
    read_record,
    staging_folder,
)
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.hashing import digest, key_of
from recipe.core.recipe_files import ROOT
from recipe.core.run import Run
from recipe.core.settings import Model
from recipe.core.translation import _, listed
from recipe.xtuner import preset_facts

SAMPLE = ROOT / "data" / "workplace.xlsx"  # its text trains the tiny model's tokenizer

CLIP = "clip"  # the id of a tiny visual encoder


def folder(run: Run) -> Path:
    """Where the base model is or will be. One that is made here is named after what it is made of."""
    model, tiny = run.settings.model, Path(__file__).parent / "tiny"
    if model.path:
        return run.root / model.path
    if not model.is_made:
        return run.models / chosen(run).id
    if model.source == "smollm2":
        return run.models / f"smollm2-{key_of({'maker': tiny.with_name('smollm2.py'), 'code': tiny})[:8]}"
    if model.id == CLIP:
        return run.models / f"tiny-clip-{key_of({'maker': tiny / 'clip.py'})[:8]}"
    made_of = {"maker": tiny, "texts": SAMPLE, "tokenizer": given_tokenizer(run)}
    return run.models / f"tiny-internlm2-{key_of(made_of)[:8]}"


def is_internlm2(run: Run) -> bool:
    """Whether our own code loads the base model: by its config.json, or before the download by its preset."""
    for place in (folder(run), staging_folder(run)):
        if model_code.read_config(place):
            return model_code.is_internlm2(place)
    return preset_facts.is_internlm2(run.settings.base)


def is_local(run: Run) -> bool:
    """Whether nothing has to be downloaded for the model."""
    model = run.settings.model
    return model.is_made or bool(model.path) or folder(run).exists()


def given_tokenizer(run: Run) -> Optional[Path]:
    """The tokenizer.model that the recipe names; a tiny model uses it instead of training one."""
    given = run.settings.model.tokenizer
    return Path(given) if given else None


def tokenizer_file(place: Path) -> Path:
    """The file that identifies a model folder's tokenizer."""
    known = (place / name for name in ("tokenizer.model", "tokenizer.json", "qwen.tiktoken", "vocab.json"))
    return next((path for path in known if path.is_file()), place / "tokenizer.model")


def check(run: Run, place: Path) -> None:
    """Raise InputWrong or HostLacks unless `place` is complete, what the recipe names, unchanged since its download,
    and compatible with this stack. Writes only modification times into the record.
    """
    shown = run.relative(place)
    check_source(run, place)
    check_complete(place, shown)
    record = read_record(place)
    if record:
        check_files(place, shown, record, run.verify, run.settings.model.placed)
    elif run.verify:
        raise InputWrong(
            _(
                "--verify: {folder} was not fetched by `{command}`, so there are no checksums to compare with.",
                folder=shown,
                command=command_line("model"),
            )
        )
    model = run.settings.model
    loadable.check_tokenizer_and_code(place, shown, model.what == Model.what and not model.tokenizer)
    compatibility.check(place, shown, elsewhere(run))


def check_complete(place: Path, shown: str) -> None:
    """Raise HostLacks unless `place` holds a config and every weight file that its index names."""
    if not place.is_dir():
        raise HostLacks(
            _(
                "The base model is missing: {folder} does not exist. Fetch it first: {command}.",
                folder=shown,
                command=command_line("model"),
            )
        )
    if not (place / "config.json").is_file():
        raise HostLacks(_("{folder} has no config.json: it is not a model folder.", folder=shown))
    loadable.check_pointers(place, shown)
    name, files = index(place, shown)
    loadable.check_weights(place, shown, {name: set(files.values())} if name else {})
    names = set(files.values()) if name else {path.name for path in weights(place)}
    missing = sorted(name for name in names if not (place / name).is_file() or not (place / name).stat().st_size)
    if missing or not names:
        what = listed(missing) or _("any weights (*.safetensors, pytorch_model*.bin)")
        raise HostLacks(
            _(
                "{folder} does not have {files}. Remove the folder and fetch it again: {command}.",
                folder=shown,
                files=what,
                command=command_line("model"),
            )
        )


def index(place: Path, shown: str) -> Tuple[str, Dict[str, str]]:
    """(name, {weight: file}) of a model folder's index; ("", {}) if it has none. Raises HostLacks if it is damaged."""
    for name in INDEXES:
        if name == INDEXES[1] and list(place.glob("model*.safetensors")):  # which go before PyTorch's
            break
        if (place / name).is_file():
            try:
                files = dict(json.loads((place / name).read_text(encoding="utf-8"))["weight_map"])
                set(files.values())  # raises TypeError for values that are not names
                return name, files
            except (ValueError, KeyError, TypeError):
                raise HostLacks(
                    _(
                        "{file} is damaged. Remove it and fetch it again: {command}.",
                        file=f"{shown}/{name}",
                        command=command_line("model"),
                    )
                )
    return "", {}


def weights(place: Path) -> List[Path]:
    """Weight files of a model folder: safetensors if there are any, else PyTorch's."""
    return sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))


def fingerprint(place: Path) -> Dict[str, str]:
    """File → sha256 of a model folder. Weights without a record are identified by their size and samples, because
    hashing 15 GB takes longer than most stages.
    """
    check_complete(place, str(place))
    files = (read_record(place) or {"files": {}})["files"]
    heavy = {path.name for path in weights(place)}
    found = {}
    for path in sorted(path for path in place.iterdir() if path.is_file()):
        if is_unchanged(place, path.name, files.get(path.name, {})):
            found[path.name] = files[path.name]["sha256"]
        else:
            found[path.name] = _sampled(path) if path.name in heavy and path.name not in files else digest(path)
    return found


def _sampled(path: Path, samples: int = 16, length: int = 1 << 16) -> str:
    """sha256 of a file's size and of `samples` evenly spaced pieces of `length` bytes, including the first and last."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for number in range(samples):
            stream.seek(max(0, size - length) * number // (samples - 1))
            total.update(stream.read(length))
    return total.hexdigest()
