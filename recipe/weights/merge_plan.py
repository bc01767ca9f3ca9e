"""What a merge will do, looked at before anything is written: every tensor's place in the base's files and in the
adapters', whether they fit, the new shards, the disk.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from recipe.base_model import folder, model_code
from recipe.base_model.download import HEAVY
from recipe.core import tensor_files
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.hashing import digest, key_of, stamp
from recipe.core.tensor_files import Stored
from recipe.weights import adapter, lora
from recipe.weights.adapter import base_checksum

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
MARGIN = 64 * 10**6  # bytes of disk left free
FLOATS = ("float16", "bfloat16", "float32")
PROGRESS = "progress.json"
CHECKSUMS = "SHA256SUMS"
CODE = sorted([*Path(__file__).parent.glob("*.py"), Path(tensor_files.__file__)])


def size(text: str) -> int:
    """Bytes of a size such as "2GB" (decimal units, as transformers counts them)."""
    return int(text[:-2]) * UNITS[text[-2:]]


class Target(NamedTuple):
    """One tensor of the merged model: where it comes from, what is added, where it goes."""

    name: str
    source: Stored
    parts: List[lora.Part]
    shard: int
    offset: int  # in the shard's data


class Plan(NamedTuple):
    """What a merge will do; made without writing anything."""

    base: Path
    targets: List[Target]
    shards: int
    safe: bool  # safetensors, or else PyTorch's .bin
    copied: List[Path]  # the base's other files; not its code where ours stands in its place
    code: Sequence[Path]  # our code; none for a family that keeps its own
    key: str  # of base, adapters and settings: a half-made folder of another key is of no use

    def name(self, shard: int) -> str:
        kind = "model-{:05d}-of-{:05d}.safetensors" if self.safe else "pytorch_model-{:05d}-of-{:05d}.bin"
        return kind.format(shard + 1, self.shards)

    def of(self, shard: int) -> List[Target]:
        return [target for target in self.targets if target.shard == shard]

    @property
    def index(self) -> str:
        return folder.INDEXES[0 if self.safe else 1]

    @property
    def nbytes(self) -> int:
        return sum(target.source.nbytes for target in self.targets)


def is_weight(name: str) -> bool:
    """Whether a file of a model folder holds weights, in whatever form, or is their index."""
    return name.endswith((*HEAVY, ".ckpt", ".index.json"))


def base_tensors(place: Path) -> Dict[str, Stored]:
    """name → tensor of every weight of a model folder, in the order of its files.

    Raises HostLacks, with names and numbers, for a missing, damaged or truncated file.
    """
    folder.complete(place, str(place))
    found: Dict[str, Stored] = {}
    for path in folder.weights(place):
        try:
            stored = tensor_files.tensors(path)
        except tensor_files.Damaged as error:
            raise HostLacks(f"{error}. Fetch the base model again: remove the folder, then just model.")
        found.update(sorted(stored.items(), key=lambda item: item[1].offset))
    index, told = folder.index(place, str(place))
    lost = sorted(name for name, file in told.items() if name not in found or found[name].path.name != file)
    if lost:
        raise HostLacks(
            f"{place / index} names {len(lost)} weights that {told[lost[0]]} does not hold: "
            f"{tensor_files.listing(lost)}. Fetch the base model again: remove the folder, then just model."
        )
    return found


def make_plan(
    base: Path, adapters: Sequence[Tuple[Path, float]], limit: int, safe: bool = True, force: bool = False,
    checkpoint: Optional[Path] = None,
) -> Plan:  # fmt: skip
    """Look at everything and decide what goes where; `adapters` are (folder, weight), `limit` bytes of a shard.

    With `checkpoint`, of full fine-tuning, its weights take the place of the base's. Raises InputWrong if an adapter or
    it does not belong to this base, HostLacks if a file of the base is not whole.
    """
    stored = base_tensors(base)
    checksum = base_checksum(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise InputWrong(
            f"{base} is quantized ({config['quantization_config'].get('quant_method')}): merge into the original."
        )
    changes = []
    for place, weight in adapters:
        one = lora.load(place, weight)
        _check_fit(place, one, base, stored)
        told = lora.metadata(place).get("base_sha256", checksum)
        if told != checksum and not force:
            raise InputWrong(
                f"{place} was trained on a base with checksum {told[:12]}…, {base} has {checksum[:12]}…: it is another "
                f"model, or another version of it. --force merges all the same."
            )
        changes.append(one)
    if checkpoint is not None:
        changes.append(_whole(checkpoint, base, stored, config))
    total = lora.together(changes)
    if config.get("tie_word_embeddings") and checkpoint is None:
        tied = sorted(n for n in total if "embed" in n or n.startswith(("output.", "lm_head.")))
        if tied:
            raise InputWrong(
                f"{base} ties input and output embeddings (tie_word_embeddings): {tied[0]} cannot be changed alone."
            )
    targets = []
    shard = used = 0
    for name, source in stored.items():
        if used and used + source.nbytes > limit:
            shard, used = shard + 1, 0
        targets.append(Target(name, source, total.get(name, []), shard, used))
        used += source.nbytes
    others = sorted(p for p in base.iterdir() if p.is_file() and not is_weight(p.name) and p.name[0] != ".")
    code = model_code.FILES if model_code.is_ours(base) else ()
    copied = [path for path in others if path.name not in ("README.md", CHECKSUMS)]  # the merge writes its own
    copied = [path for path in copied if not (code and path.suffix == ".py")]
    key = key_of(
        {
            "base": folder.fingerprint(base),
            "adapters": [
                [digest(lora.file_of(p)), digest(p / "adapter_config.json"), weight] for p, weight in adapters
            ],
            "settings": [limit, safe],
            **({"checkpoint": stamp(checkpoint)} if checkpoint else {}),
            "code": [digest(path) for path in CODE],
        }
    )
    return Plan(base, targets, shard + 1, safe, copied, code, key)


def _whole(checkpoint: Path, base: Path, stored: Dict[str, Stored], config: Dict[str, Any]) -> lora.Changes:
    """Every weight of a checkpoint of full fine-tuning, instead of the base's. Raises InputWrong if they are not of
    one model.
    """
    found: lora.Changes = {name: [lora.Part(instead=held)] for name, held in adapter.whole(checkpoint).items()}
    if config.get("tie_word_embeddings"):  # the checkpoint holds the one matrix under both its names
        found = {name: parts for name, parts in found.items() if name in stored}
    _check_fit(checkpoint, found, base, stored)
    lost = sorted(name for name, tensor in stored.items() if name not in found and tensor.dtype in FLOATS)
    lost = [name for name in lost if not name.endswith("inv_freq")]  # of old models: computed, not trained
    if lost:
        raise InputWrong(f"{checkpoint} lacks {tensor_files.listing(lost)} of {base}: it is not of this model.")
    return found


def kind_of(name: str) -> str:
    """wqkv of model.layers.0.attention.wqkv.weight."""
    return name.split(".")[-2] if "." in name else name


def _check_fit(place: Path, changes: lora.Changes, base: Path, stored: Dict[str, Stored]) -> None:
    missing = sorted(name for name in changes if name not in stored)
    if missing:
        theirs = sorted({kind_of(name) for name in changes})
        ours = sorted({kind_of(name) for name, tensor in stored.items() if len(tensor.shape) == 2})
        raise InputWrong(
            f"{place} does not fit {base}: the base has no {tensor_files.listing(missing)} ({len(missing)} of the "
            f"{len(changes)} weights it changes). It is for a model with {', '.join(theirs)}; this one has "
            f"{', '.join(ours)}. It was trained on another model."
        )
    for name, parts in changes.items():
        tensor = stored[name]
        if tensor.shape != parts[0].shape:
            raise InputWrong(
                f"{place} does not fit {base}: {name} is {tensor.shape} in the base, {parts[0].shape} in the adapter. "
                f"It was trained on another model."
            )
        if tensor.dtype not in FLOATS or tensor.stride is not None:
            how = "not stored row by row" if tensor.stride is not None else tensor.dtype
            raise InputWrong(
                f"{base}: {name} is {how}; a merge needs {', '.join(FLOATS)}, as the original model has them."
            )


def check_disk(plan: Plan, part: Path) -> Tuple[int, int]:
    """(bytes still to write, bytes free) where `part` lies. Raises HostLacks if that is too little."""
    done = set(finished(plan, part))
    sizes = [sum(t.source.nbytes for t in plan.of(shard)) for shard in range(plan.shards)]
    left = sum(nbytes for shard, nbytes in enumerate(sizes) if plan.name(shard) not in done)
    needed = left + sum(path.stat().st_size for path in plan.copied) + MARGIN
    if not plan.safe:
        needed += max(sizes)  # a shard is written twice, one after the other
    place = part if part.exists() else part.parent
    free = shutil.disk_usage(str(place)).free
    if free < needed:
        raise HostLacks(
            f"The merged model needs {needed / 1e9:.2f} GB in {place}, {free / 1e9:.2f} GB are free: "
            f"{(needed - free) / 1e9:.2f} GB too little. Free some, or name another folder with --output."
        )
    return needed, free


def finished(plan: Plan, part: Path) -> Dict[str, Any]:
    """Shards of a half-made folder that belong to this plan: name → their entry. What is there is not yet checked."""
    try:
        noted = json.loads((part / PROGRESS).read_text(encoding="utf-8"))
        return noted["shards"] if noted["key"] == plan.key else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
