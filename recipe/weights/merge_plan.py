"""Plans a merge before anything is written: sources and changes of tensors, compatibility, shards, disk space."""

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from recipe.base_model import folder, model_code
from recipe.base_model.download import HEAVY
from recipe.core import tensor_files
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.hashing import digest, key_of, stamp
from recipe.core.tensor_files import Stored
from recipe.core.translation import _, listed
from recipe.weights import checkpoint_reader, lora
from recipe.weights.adapter import base_checksum

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
MARGIN = 64 * 10**6  # bytes of disk left free
FLOATS = ("float16", "bfloat16", "float32")
PROGRESS = "progress.json"
CHECKSUMS = "SHA256SUMS"
CODE = sorted([*Path(__file__).parent.glob("*.py"), Path(tensor_files.__file__)])


def parse_size(text: str) -> int:
    """Bytes of a size such as "2GB" (decimal units, as in transformers)."""
    return int(text[:-2]) * UNITS[text[-2:]]


class Target(NamedTuple):
    """One tensor of the merged model: its source, its changes and its place in the new shards."""

    name: str
    source: Stored
    parts: List[lora.WeightChange]
    shard: int
    offset: int  # in the shard's data


class MergePlan(NamedTuple):
    """What a merge will write."""

    base: Path
    targets: List[Target]
    shards: int
    safe: bool  # safetensors; else PyTorch's .bin
    copied: List[Path]  # the base's other files, except code that ours replaces
    code: Sequence[Path]  # our model code; empty for other model families
    key: str  # hash of base, adapters and settings; finished shards are reused only under the same key

    def shard_name(self, shard: int) -> str:
        kind = "model-{:05d}-of-{:05d}.safetensors" if self.safe else "pytorch_model-{:05d}-of-{:05d}.bin"
        return kind.format(shard + 1, self.shards)

    def targets_of(self, shard: int) -> List[Target]:
        return [target for target in self.targets if target.shard == shard]

    @property
    def index_name(self) -> str:
        return folder.INDEXES[0 if self.safe else 1]

    @property
    def nbytes(self) -> int:
        return sum(target.source.nbytes for target in self.targets)


def is_weight(name: str) -> bool:
    """Whether a file of a model folder holds weights in any format, or their index."""
    return name.endswith((*HEAVY, ".ckpt", ".index.json"))


def base_tensors(place: Path) -> Dict[str, Stored]:
    """Name → tensor of every weight of a model folder, in file order. Raises HostLacks for missing or damaged files."""
    folder.check_complete(place, str(place))
    found: Dict[str, Stored] = {}
    for path in folder.weights(place):
        try:
            stored = tensor_files.tensors(path)
        except tensor_files.Damaged as error:
            raise HostLacks(
                _(
                    "{error}. Fetch the base model again: remove the folder, then {command}.",
                    error=error,
                    command=command_line("model"),
                )
            )
        found.update(sorted(stored.items(), key=lambda item: item[1].offset))
    index, weight_map = folder.index(place, str(place))
    missing = sorted(name for name, file in weight_map.items() if name not in found or found[name].path.name != file)
    if missing:
        raise HostLacks(
            _(
                "{index} lists {count} weights that {file} does not hold: {weights}. Fetch the "
                "base model again: remove the folder, then {command}.",
                index=place / index,
                count=len(missing),
                file=weight_map[missing[0]],
                weights=tensor_files.listing(missing),
                command=command_line("model"),
            )
        )
    return found


def make_plan(
    base: Path, adapters: Sequence[Tuple[Path, float]], limit: int, safe: bool = True, force: bool = False,
    checkpoint: Optional[Path] = None,
) -> MergePlan:  # fmt: skip
    """Plan the merge of `adapters` (folder, weight) into shards of at most `limit` bytes.

    The weights of `checkpoint` (full fine-tuning) replace the base's. Raises InputWrong if an adapter or the checkpoint
    does not fit this base, HostLacks if files of the base are missing or damaged.
    """
    stored = base_tensors(base)
    checksum = base_checksum(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise InputWrong(
            _(
                "{base} is quantized ({method}). Merge into the original model.",
                base=base,
                method=config["quantization_config"].get("quant_method"),
            )
        )
    changes = []
    for place, weight in adapters:
        one = lora.load(place, weight)
        _check_fit(place, one, base, stored)
        trained_on = lora.metadata(place).get("base_sha256", checksum)
        if trained_on != checksum and not force:
            raise InputWrong(
                _(
                    "{adapter} was trained on a base with checksum {trained_on}…, but {base} has {checksum}…: "
                    "it is another model or version. Use --force to merge anyway.",
                    adapter=place,
                    trained_on=trained_on[:12],
                    base=base,
                    checksum=checksum[:12],
                )
            )
        changes.append(one)
    if checkpoint is not None:
        changes.append(_checkpoint_changes(checkpoint, base, stored, config))
    total = lora.combine(changes)
    if config.get("tie_word_embeddings") and checkpoint is None:
        tied = sorted(n for n in total if "embed" in n or n.startswith(("output.", "lm_head.")))
        if tied:
            raise InputWrong(
                _(
                    "{base} ties input and output embeddings (tie_word_embeddings): {weight} cannot be changed "
                    "on its own.",
                    base=base,
                    weight=tied[0],
                )
            )
    targets = []
    shard = used = 0
    for name, source in stored.items():
        if used and used + source.nbytes > limit:
            shard, used = shard + 1, 0
        targets.append(Target(name, source, total.get(name, []), shard, used))
        used += source.nbytes
    others = sorted(p for p in base.iterdir() if p.is_file() and not is_weight(p.name) and p.name[0] != ".")
    code = model_code.FILES if model_code.is_internlm2(base) else ()
    copied = [path for path in others if path.name not in ("README.md", CHECKSUMS)]  # the merge writes new ones
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
    return MergePlan(base, targets, shard + 1, safe, copied, code, key)


def _checkpoint_changes(
    checkpoint: Path, base: Path, stored: Dict[str, Stored], config: Dict[str, Any]
) -> lora.Changes:
    """Every weight of a full fine-tuning checkpoint, as a replacement. Raises InputWrong if it is of another model."""
    found: lora.Changes = {
        name: [lora.WeightChange(replacement=stored)]
        for name, stored in checkpoint_reader.full_weights(checkpoint).items()
    }
    if config.get("tie_word_embeddings"):  # the checkpoint holds the shared matrix under both names
        found = {name: parts for name, parts in found.items() if name in stored}
    _check_fit(checkpoint, found, base, stored)
    missing = sorted(name for name, tensor in stored.items() if name not in found and tensor.dtype in FLOATS)
    missing = [name for name in missing if not name.endswith("inv_freq")]  # old models: computed, not trained
    if missing:
        raise InputWrong(
            _(
                "{checkpoint} does not hold {weights} of {base}: it was trained on another model.",
                checkpoint=checkpoint,
                weights=tensor_files.listing(missing),
                base=base,
            )
        )
    return found


def kind_of(name: str) -> str:
    """Module kind of a weight: wqkv for model.layers.0.attention.wqkv.weight."""
    return name.split(".")[-2] if "." in name else name


def _check_fit(place: Path, changes: lora.Changes, base: Path, stored: Dict[str, Stored]) -> None:
    missing = sorted(name for name in changes if name not in stored)
    if missing:
        theirs = sorted({kind_of(name) for name in changes})
        ours = sorted({kind_of(name) for name, tensor in stored.items() if len(tensor.shape) == 2})
        raise InputWrong(
            _(
                "{adapter} does not fit {base}: the base has no {weights} ({missing} of the {changed} "
                "weights it changes). It changes {theirs}; the base has {ours}. It was trained on "
                "another model.",
                adapter=place,
                base=base,
                weights=tensor_files.listing(missing),
                missing=len(missing),
                changed=len(changes),
                theirs=listed(theirs),
                ours=listed(ours),
            )
        )
    for name, parts in changes.items():
        tensor = stored[name]
        if tensor.shape != parts[0].shape:
            raise InputWrong(
                _(
                    "{adapter} does not fit {base}: {weight} is {base_shape} in the base, {shape} in the adapter. It "
                    "was trained on another model.",
                    adapter=place,
                    base=base,
                    weight=name,
                    base_shape=tensor.shape,
                    shape=parts[0].shape,
                )
            )
        if tensor.dtype not in FLOATS or tensor.stride is not None:
            values = {"base": base, "weight": name, "dtypes": listed(FLOATS)}
            if tensor.stride is not None:
                raise InputWrong(
                    _(
                        "{base}: {weight} is not stored row by row. A merge needs {dtypes}: use the original model.",
                        **values,
                    )
                )
            raise InputWrong(
                _(
                    "{base}: {weight} is {dtype}. A merge needs {dtypes}: use the original model.",
                    dtype=tensor.dtype,
                    **values,
                )
            )


def check_disk(plan: MergePlan, part: Path) -> Tuple[int, int]:
    """Return (bytes still to write, bytes free) for the disk of `part`. Raises HostLacks if there is not enough."""
    done = set(finished(plan, part))
    sizes = [sum(t.source.nbytes for t in plan.targets_of(shard)) for shard in range(plan.shards)]
    left = sum(nbytes for shard, nbytes in enumerate(sizes) if plan.shard_name(shard) not in done)
    needed = left + sum(path.stat().st_size for path in plan.copied) + MARGIN
    if not plan.safe:
        needed += max(sizes)  # each shard is written twice
    place = part if part.exists() else part.parent
    free = shutil.disk_usage(str(place)).free
    if free < needed:
        raise HostLacks(
            _(
                "The merged model needs {needed:.2f} GB in {folder}, but only {free:.2f} GB are free. "
                "Free {lacking:.2f} GB, or choose another folder with --output.",
                needed=needed / 1e9,
                folder=place,
                free=free / 1e9,
                lacking=(needed - free) / 1e9,
            )
        )
    return needed, free


def finished(plan: MergePlan, part: Path) -> Dict[str, Any]:
    """Finished shards of an interrupted merge of this plan: name → entry. The files are not verified here."""
    try:
        progress = json.loads((part / PROGRESS).read_text(encoding="utf-8"))
        return progress["shards"] if progress["key"] == plan.key else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
