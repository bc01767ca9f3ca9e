"""The base model's folder, and the tokenizer, which is enough for planning.

Only this stage uses the network. Downloads land in models/.download and are renamed to models/<id> when
whole, so a folder there is always complete; a cut download goes on where it stopped.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterable, Optional

from filelock import FileLock

from .errors import HostLacks, InputWrong
from .stages import Run, digest, key_of

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "workplace.xlsx"


def folder(run: Run) -> Path:
    """Where the base model lies or will lie. A tiny one is named after what it is made of."""
    model = run.settings.model
    if model.path:
        return Path(model.path) if Path(model.path).is_absolute() else run.root / model.path
    if model.source != "tiny":
        return run.models / model.id
    made_of = {"maker": Path(__file__).parent / "tiny", "texts": SAMPLE, "tokenizer": _own_tokenizer(run)}
    return run.models / f"tiny-internlm2-{key_of(made_of)[:8]}"


def _own_tokenizer(run: Run) -> Optional[Path]:
    """The tokenizer.model named by the recipe, which a tiny model then takes instead of training one."""
    given = run.settings.model.tokenizer
    return Path(given) if given else None


def tokenizer(run: Run) -> Any:
    """The recipe's tokenizer, without weights: model.tokenizer (a folder or a tokenizer.model), else the
    base model's folder, else tokenizer.model alone is fetched. Raises InputWrong, HostLacks.
    """
    from transformers import AutoTokenizer

    from .tiny import tokenizer_from_model

    given = run.settings.model.tokenizer
    place = Path(given) if given else folder(run)
    if given and not place.exists():
        raise InputWrong(f"model.tokenizer: there is no {given}. Name a folder or a tokenizer.model file.")
    if not place.exists():
        if run.settings.model.source == "tiny":
            ensure(run)
        else:
            place = _fetch_tokenizer(run)
    try:
        if place.is_file():
            return tokenizer_from_model(place)
        return AutoTokenizer.from_pretrained(str(place), trust_remote_code=True, padding_side="right")
    except Exception as error:  # sentencepiece, tokenizers and remote code raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputWrong(
            f"{run.shown(place)} is no tokenizer ({reason[:200]}). model.tokenizer takes a tokenizer.model file or a "
            f"folder with one, model.path a whole model folder."
        )


def ensure(run: Run) -> Path:
    """The base model's folder, made or fetched if it is not there yet, and checked for completeness."""
    place = folder(run)
    if not place.exists() and run.settings.model.path:
        raise InputWrong(f"model.path: there is no folder {run.settings.model.path}.")
    if not place.exists():
        run.models.mkdir(parents=True, exist_ok=True)
        with FileLock(str(run.models / ".lock")):  # two runs may want the same model
            if not place.exists():
                if run.settings.model.source == "tiny":
                    _make_tiny(place, _own_tokenizer(run))
                else:
                    _download(run, place)
    check(place, run.shown(place))
    return place


def check(place: Path, shown: str) -> None:
    """Raise HostLacks unless `place` holds a config and every weight file that its index names."""
    if not (place / "config.json").is_file():
        raise HostLacks(f"{shown} holds no config.json: it is not a model folder.")
    names = set()
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (place / index).is_file():
            try:
                names = set(json.loads((place / index).read_text(encoding="utf-8"))["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                raise HostLacks(f"{shown}/{index} is damaged. Remove the folder and fetch the model again: just model.")
            break
    else:
        names = {p.name for p in weights(place)}
    missing = sorted(name for name in names if not (place / name).is_file() or not (place / name).stat().st_size)
    if missing or not names:
        what = ", ".join(missing) or "any weights (*.safetensors, pytorch_model*.bin)"
        raise HostLacks(f"{shown} lacks {what}. Remove the folder and fetch the model again: just model.")


def weights(place: Path) -> Iterable[Path]:
    """Weight files of a model folder: safetensors if there are any, else PyTorch's."""
    return sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))


def fingerprint(place: Path) -> Dict[str, str]:
    """What identifies a model folder: the small files by content, the weights by size and samples.

    Hashing 15 GB before every stage would take longer than most stages.
    """
    heavy = {p.name for p in weights(place)}
    files = sorted(p for p in place.iterdir() if p.is_file())
    return {p.name: _sampled(p) if p.name in heavy else digest(p) for p in files}


def _sampled(path: Path, samples: int = 16, length: int = 1 << 16) -> str:
    """sha256 of a file's size and of `samples` evenly spread pieces of `length` bytes, first and last included."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for number in range(samples):
            stream.seek(max(0, size - length) * number // (samples - 1))
            total.update(stream.read(length))
    return total.hexdigest()


def _make_tiny(place: Path, tokenizer_model: Optional[Path]) -> None:
    """A tiny InternLM2 with the given tokenizer, else with one trained on the sample workbook's text."""
    from . import data, tiny

    texts = [text for turns in data.sample(SAMPLE) for turn in turns for text in turn.values()]
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(str(part), ignore_errors=True)
    tiny.make(part, texts, tokenizer_model=tokenizer_model)
    os.replace(str(part), str(place))


def _download(run: Run, place: Path) -> None:
    model = run.settings.model
    cache = run.models / ".download"
    try:
        if model.source == "modelscope":
            from modelscope.hub.snapshot_download import snapshot_download

            got = snapshot_download(model.id, cache_dir=str(cache), revision=model.revision)
        else:
            from huggingface_hub import snapshot_download as hugging_face

            got = hugging_face(
                model.id, revision=model.revision, local_dir=str(cache / model.id), local_dir_use_symlinks=False
            )
    except Exception as error:
        raise HostLacks(_unreachable(run, error))
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(got, str(place))


def _fetch_tokenizer(run: Run) -> Path:
    model = run.settings.model
    cache = run.models / ".tokenizer"
    try:
        if model.source == "modelscope":
            from modelscope.hub.file_download import model_file_download

            got = model_file_download(model.id, "tokenizer.model", cache_dir=str(cache), revision=model.revision)
        else:
            from huggingface_hub import hf_hub_download

            got = hf_hub_download(model.id, "tokenizer.model", revision=model.revision, cache_dir=str(cache))
    except Exception as error:
        raise HostLacks(_unreachable(run, error))
    return Path(got)


def _unreachable(run: Run, error: Exception) -> str:
    model = run.settings.model
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"{model.id} (revision {model.revision}) could not be fetched from {model.source}: {reason[:300]}. "
        f"Type the same command again to go on where it stopped; or name a folder you have: model.path=/some/folder."
    )


def reads(run: Run) -> Dict[str, Any]:
    return {"settings": run.settings.model.model_dump()}


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Make sure of the base model. Figures: its folder, files and bytes."""
    place = ensure(run)
    sizes = [p.stat().st_size for p in place.iterdir() if p.is_file()]
    return {"folder": run.shown(place), "files": len(sizes), "bytes": sum(sizes), "fingerprint": fingerprint(place)}
