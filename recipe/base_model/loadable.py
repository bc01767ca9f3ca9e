"""What transformers would load from a model folder: an extra or missing file gives random weights, or fails late."""

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set

from recipe.base_model import model_code
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.files import lfs_pointer
from recipe.core.translation import _, listed

# In the order in which transformers looks for them: a file alone goes before the index of several.
FILES = (
    ("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)  # fmt: skip
TOKENIZERS = (
    "tokenizer.model", "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "ice_text.model", "*.tiktoken",
    "sentencepiece*.model", "*.vocab",
)  # fmt: skip
SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)$")
SMALL = 1024  # bytes; a Git LFS pointer has about 130


def check_pointers(place: Path, shown: str) -> None:
    """Raise HostLacks for files that are Git LFS pointers."""
    for path in sorted(place.iterdir()):
        if path.is_file() and path.stat().st_size < SMALL:
            pointer = lfs_pointer(path)
            if pointer:
                raise HostLacks(_("{file}: {problem}.", file=f"{shown}/{path.name}", problem=pointer))


def check_weights(place: Path, shown: str, indexed: Dict[str, Set[str]]) -> None:
    """Raise unless transformers loads all weights of the folder. `indexed`: index → the files that it names."""
    for single, index in FILES:
        named = indexed.get(index, set())
        if (place / single).is_file() and named and named != {single}:
            raise InputWrong(
                _(
                    "{folder} has {file} beside {index}: transformers loads {file} alone, and what it lacks gets "
                    "random numbers. Remove {file}, or the index and its shards, whichever does not belong to this "
                    "model.",
                    folder=shown,
                    file=single,
                    index=index,
                )
            )
        if (place / single).is_file() or named:
            return
    shards = sorted(path.name for path in place.iterdir() if SHARD.match(path.name))
    if shards:
        single, index = FILES[0 if shards[0].endswith("safetensors") else 1]
        raise HostLacks(
            _(
                "{folder} has shards such as {file}, but not {index}, without which transformers cannot load them. "
                "Download that file, too.",
                folder=shown,
                file=shards[0],
                index=index,
            )
        )
    others = sorted(path.name for path in place.glob("*.safetensors"))
    if others:
        raise HostLacks(
            _(
                "{folder} has {file}, which transformers does not load: it looks for {wanted}.",
                folder=shown,
                file=others[0],
                wanted=FILES[0][0],
            )
        )


def weight_files(place: Path) -> List[Path]:
    """The safetensors files that transformers loads: one alone, else all."""
    single = place / FILES[0][0]
    return [single] if single.is_file() else sorted(place.glob("*.safetensors"))


def check_tokenizer_and_code(place: Path, shown: str, needs_tokenizer: bool) -> None:
    """Raise HostLacks for a folder without a tokenizer, or without the code that its JSON files name."""
    if needs_tokenizer and not any(any(place.glob(pattern)) for pattern in TOKENIZERS):
        raise HostLacks(
            _(
                "{folder} has no tokenizer (tokenizer.model or tokenizer.json). Copy it there, or name one: "
                "model.tokenizer=…",
                folder=shown,
            )
        )
    if model_code.is_internlm2(place):  # our own code loads it
        return
    missing = sorted({name for name in _code_files(place) if not (place / name).is_file()})
    if missing:
        raise HostLacks(
            _(
                "{folder} does not have {files}, the model's own code. Download it, too.",
                folder=shown,
                files=listed(missing),
            )
        )


def _code_files(place: Path) -> Iterator[str]:
    """The Python files that config.json and tokenizer_config.json name; those of another repository are not here."""
    for name in ("config.json", "tokenizer_config.json"):
        for reference in _references(model_code.read_json_object(place / name).get("auto_map")):
            repository, _dashes, module = reference.rpartition("--")
            file = f"{module.split('.')[0]}.py"
            yield _("%(names)s of %(module)s") % {"names": file, "module": repository} if repository else file


def _references(auto_map: Any) -> Iterator[str]:
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    for value in values:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, str):
                yield one
