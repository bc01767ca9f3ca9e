"""Adapter + base → a model folder that loads anywhere: W + (alpha/r)·B·A, shard by shard.

Computed in fp32 and rounded once to the base's type, with one shard of the base and one of the result in
memory. Everything that is not a weight (config, tokenizer, the model's own code) is copied.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from . import model
from .errors import HostLacks, InputWrong
from .stages import Run

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
PEFT_PREFIX = "base_model.model."


def size(text: str) -> int:
    """Bytes of a size such as "2GB" (decimal units, as transformers counts them)."""
    return int(text[:-2]) * UNITS[text[-2:]]


def base_tensors(place: Path) -> Iterator[Tuple[str, Any]]:
    """(name, tensor) of every weight of a model folder, one shard in memory at a time."""
    import torch
    from safetensors import safe_open

    for path in model.weights(place):
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 (a handle, no dict)
                    yield name, shard.get_tensor(name)
        else:
            for name, tensor in torch.load(str(path), map_location="cpu").items():
                yield name, tensor


def load_adapter(place: Path) -> Tuple[Dict[str, Tuple[Any, Any]], float]:
    """({weight name: (A [r, in], B [out, r])}, scaling) of a PEFT adapter.

    Raises InputWrong for adapter kinds whose merge is not this arithmetic.
    """
    from safetensors.torch import load_file

    settings = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    for key in ("use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out"):
        if settings.get(key):
            raise InputWrong(f"{place}: adapters with {key}={settings[key]!r} cannot be merged here.")
    if settings["peft_type"] != "LORA":
        raise InputWrong(f"{place}: {settings['peft_type']} adapters cannot be merged; only LoRA.")
    weights = load_file(str(place / "adapter_model.safetensors"))
    pairs = {}
    for name, tensor in weights.items():
        matched = re.fullmatch(re.escape(PEFT_PREFIX) + r"(.+)\.lora_A\.weight", name)
        if matched:
            other = weights[name.replace(".lora_A.", ".lora_B.")]
            pairs[f"{matched[1]}.weight"] = (tensor, other)
    return pairs, settings["lora_alpha"] / settings["r"]


def merged_tensor(weight: Any, a: Any, b: Any, scaling: float) -> Any:
    """weight [out, in] + scaling · b [out, r] @ a [r, in], in fp32, rounded once to the weight's type."""
    return (weight.float() + scaling * (b.float() @ a.float())).to(weight.dtype)


class ShardWriter:
    """Collects tensors and writes a safetensors shard whenever the next one would exceed `limit` bytes."""

    def __init__(self, place: Path, limit: int) -> None:
        self.place, self.limit = place, limit
        self.pending: Dict[str, Any] = {}
        self.pending_bytes = 0
        self.shards: List[Tuple[Path, List[str]]] = []
        self.total = 0

    def add(self, name: str, tensor: Any) -> None:
        count = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_bytes + count > self.limit:
            self._flush()
        self.pending[name] = tensor.contiguous()
        self.pending_bytes += count
        self.total += count

    def _flush(self) -> None:
        from safetensors.torch import save_file

        path = self.place / f"shard-{len(self.shards)}.part"
        save_file(self.pending, str(path), metadata={"format": "pt"})
        self.shards.append((path, list(self.pending)))
        self.pending, self.pending_bytes = {}, 0

    def close(self) -> int:
        """Write what is left, give the shards their names and write the index; return the number of shards."""
        self._flush()
        names = {}
        for number, (path, tensors) in enumerate(self.shards, start=1):
            name = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            os.replace(str(path), str(self.place / name))
            names.update({tensor: name for tensor in tensors})
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(names.items()))}
        (self.place / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return len(self.shards)


def is_weight(name: str) -> bool:
    return name.endswith((".safetensors", ".index.json")) or bool(re.match(r"pytorch_model.*\.bin$", name))


def merge(base: Path, adapter: Path, place: Path, limit: int) -> Dict[str, Any]:
    """Write the merged model into the fresh folder `place`.

    Figures: tensors and weights in all, how many of them differ from the base, and shards. Raises InputWrong
    if the adapter does not belong to this base: a module or shape that the base does not have.
    """
    pairs, scaling = load_adapter(adapter)
    place.mkdir(parents=True)
    writer = ShardWriter(place, limit)
    tensors = weights = tensors_changed = weights_changed = 0
    for name, tensor in base_tensors(base):
        tensors += 1
        weights += tensor.numel()
        if name in pairs:
            a, b = pairs.pop(name)
            if tuple(tensor.shape) != (b.shape[0], a.shape[1]):
                raise InputWrong(
                    f"{adapter} does not fit {base}: {name} is {tuple(tensor.shape)} in the base, "
                    f"{(b.shape[0], a.shape[1])} in the adapter. It was trained on another model."
                )
            new = merged_tensor(tensor, a, b, scaling)
            changed = int((new != tensor).sum())
            tensors_changed += changed > 0
            weights_changed += changed
            tensor = new
        writer.add(name, tensor)
    if pairs:
        raise InputWrong(f"{adapter} does not fit {base}: the base has no {', '.join(sorted(pairs)[:3])}.")
    shards = writer.close()
    for path in base.iterdir():
        if path.is_file() and not is_weight(path.name):
            shutil.copyfile(str(path), str(place / path.name))
    return {
        "tensors": tensors,
        "tensors_changed": tensors_changed,
        "weights": weights,
        "weights_changed": weights_changed,
        "share_changed": weights_changed / weights,
        "shards": shards,
        "bytes": writer.total,
    }


def reads(run: Run) -> Dict[str, Any]:
    return {
        "adapter": run.adapter,
        "base": model.fingerprint(model.folder(run)),
        "settings": run.settings.merge.model_dump(),
        "code": Path(__file__),
    }


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write merged/. Raises HostLacks if the disk cannot hold it."""
    base = model.folder(run)
    needed = sum(p.stat().st_size for p in base.iterdir() if p.is_file())
    free = shutil.disk_usage(str(out)).free
    if free < needed * 1.05:
        raise HostLacks(
            f"The merged model needs {needed / 1e9:.1f} GB in {run.shown(run.folder)}; {free / 1e9:.1f} GB are free."
        )
    return merge(base, run.adapter, out / "merged", size(run.settings.merge.max_shard_size))
