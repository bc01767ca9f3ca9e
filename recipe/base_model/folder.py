"""The base model's folder, and the tokenizer, which is enough for planning.

Only this stage uses the network. A download gathers in models/.download and is renamed to models/<id> when every
file is there and checked, so a folder there is always whole; a cut download goes on where it stopped. The folder's
record, .recipe/fetched.json, pins what was fetched: the commit behind the asked revision, and every file's size and
sha256. What is there is compared with it before each use: files that are untouched since (size, time) by that alone,
others by content.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Dict, Iterable, Optional, Tuple

from recipe.base_model import compatibility, model_code
from recipe.base_model.record import check_files, check_source, elsewhere, is_untouched, read_record, staging_folder
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.hashing import digest, key_of
from recipe.core.recipe_files import ROOT
from recipe.core.run import Run
from recipe.core.settings import Encoder
from recipe.xtuner import preset_facts

SAMPLE = ROOT / "data" / "workplace.xlsx"

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

CLIP = "clip"  # what a tiny model is, if it is no InternLM2


def folder(run: Run) -> Path:
    """Where the base model lies or will lie. A tiny one is named after what it is made of."""
    model = run.settings.model
    if model.path:
        return Path(model.path) if Path(model.path).is_absolute() else run.root / model.path
    if model.source != "tiny":
        return run.models / model.id
    if model.id == CLIP:
        return run.models / f"tiny-clip-{key_of({'maker': Path(__file__).parent / 'tiny' / 'clip.py'})[:8]}"
    made_of = {"maker": Path(__file__).parent / "tiny", "texts": SAMPLE, "tokenizer": own_tokenizer(run)}
    return run.models / f"tiny-internlm2-{key_of(made_of)[:8]}"


def has_own_code(run: Run) -> bool:
    """Whether our own code loads the base model: by its config.json, or while that is not here by its preset."""
    for place in (folder(run), staging_folder(run)):
        if model_code.config_of(place):
            return model_code.is_ours(place)
    return preset_facts.is_internlm2(run.settings.base)


def visual(run: Run) -> Run:
    """The run with the visual encoder in the model's place, for what this module does with a model: LLaVA's."""
    name, source = run.settings.model.visual_encoder, run.settings.model.source
    if name == "tiny":
        chosen = Encoder(source="tiny", id=CLIP)
    elif name.startswith(("/", ".")) or (run.root / name).is_dir():
        chosen = Encoder(path=name)
    else:
        chosen = Encoder(source="modelscope" if source == "modelscope" else "huggingface", id=name)
    return dataclasses.replace(run, settings=run.settings.model_copy(update={"model": chosen}))


def is_ours(run: Run) -> bool:
    """Whether nothing of the model has to be asked of a hub."""
    model = run.settings.model
    return model.source == "tiny" or bool(model.path) or folder(run).exists()


def own_tokenizer(run: Run) -> Optional[Path]:
    """The tokenizer.model named by the recipe, which a tiny model then takes instead of training one."""
    given = run.settings.model.tokenizer
    return Path(given) if given else None


def tokenizer_file(place: Path) -> Path:
    """The file that tells one tokenizer from another, of those that a model folder may have."""
    known = (place / name for name in ("tokenizer.model", "tokenizer.json", "qwen.tiktoken", "vocab.json"))
    return next((path for path in known if path.is_file()), place / "tokenizer.model")


def check(run: Run, place: Path) -> None:
    """Raise unless `place` is a whole model folder, the one that was asked for, as it was fetched, and fit for
    this stack. Writes nothing but new times into the record, where it can.
    """
    shown = run.relative(place)
    check_source(run, place)
    complete(place, shown)
    record = read_record(place)
    if record:
        check_files(place, shown, record, run.verify, run.settings.model.placed)
    elif run.verify:
        raise InputWrong(
            f"--verify: {shown} was not fetched by `{command_line('model')}`, so there are no checksums to compare "
            f"with."
        )
    compatibility.check(place, shown, elsewhere(run))


def complete(place: Path, shown: str) -> None:
    """Raise HostLacks unless `place` holds a config and every weight file that its index names."""
    if not place.is_dir():
        raise HostLacks(f"The base model is not here: there is no {shown}. Fetch it first: {command_line('model')}.")
    if not (place / "config.json").is_file():
        raise HostLacks(f"{shown} holds no config.json: it is not a model folder.")
    listed, told = index(place, shown)
    names = set(told.values()) if listed else {p.name for p in weights(place)}
    missing = sorted(name for name in names if not (place / name).is_file() or not (place / name).stat().st_size)
    if missing or not names:
        what = ", ".join(missing) or "any weights (*.safetensors, pytorch_model*.bin)"
        raise HostLacks(f"{shown} lacks {what}. Remove what is left of it and fetch it again: {command_line('model')}.")


def index(place: Path, shown: str) -> Tuple[str, Dict[str, str]]:
    """(name, {weight: file}) of a model folder's index; ("", {}) if it has none. Raises HostLacks if it is damaged."""
    for name in INDEXES:
        if (place / name).is_file():
            try:
                told = dict(json.loads((place / name).read_text(encoding="utf-8"))["weight_map"])
                set(told.values())  # names, or it raises
                return name, told
            except (ValueError, KeyError, TypeError):
                raise HostLacks(f"{shown}/{name} is damaged. Remove it and fetch it again: {command_line('model')}.")
    return "", {}


def weights(place: Path) -> Iterable[Path]:
    """Weight files of a model folder: safetensors if there are any, else PyTorch's."""
    return sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))


def fingerprint(place: Path) -> Dict[str, str]:
    """What identifies a model folder: each file's sha256; of weights without a record, of size and samples.

    Hashing 15 GB before every stage would take longer than most stages.
    """
    complete(place, str(place))
    files = (read_record(place) or {"files": {}})["files"]
    heavy = {p.name for p in weights(place)}
    found = {}
    for path in sorted(p for p in place.iterdir() if p.is_file()):
        if is_untouched(place, path.name, files.get(path.name, {})):
            found[path.name] = files[path.name]["sha256"]
        else:
            found[path.name] = _sampled(path) if path.name in heavy and path.name not in files else digest(path)
    return found


def _sampled(path: Path, samples: int = 16, length: int = 1 << 16) -> str:
    """sha256 of a file's size and of `samples` evenly spread pieces of `length` bytes, first and last included."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for number in range(samples):
            stream.seek(max(0, size - length) * number // (samples - 1))
            total.update(stream.read(length))
    return total.hexdigest()
