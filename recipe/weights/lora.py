"""What a PEFT adapter does to each weight of a base model: W + scaling·B·A and its variants.

Follows PEFT's arithmetic: rank and alpha patterns, rsLoRA (alpha/√r), DoRA (rows scaled to trained norms), LoRA on
embeddings, modules_to_save (replaced weights). Anything else is refused by name.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core import tensor_files
from recipe.core.errors import InputWrong
from recipe.core.tensor_files import Stored
from recipe.core.translation import _

PREFIX = "base_model.model."
# Settings that change what an adapter computes in ways not supported here.
REFUSED = (
    "fan_in_fan_out", "layer_replication", "megatron_config", "lora_bias", "use_qalora", "alora_invocation_tokens",
    "trainable_token_indices", "target_parameters", "arrow_config", "use_bdlora",
)  # fmt: skip
# Initializations that modify the base weights: the adapter belongs to the modified base, not to the one on disk.
OTHER_BASE = ("loftq", "pissa", "olora", "corda", "lora_ga")


@dataclasses.dataclass
class WeightChange:
    """One adapter's change of one weight [out, in]: adds scaling · b [out, r] @ a [r, in], or replaces it."""

    scaling: float = 1.0
    a: Optional[Stored] = None
    b: Optional[Stored] = None
    embedding: bool = False  # an embedding's a is [r, out] and b [in, r]: transpose both
    magnitude: Optional[Stored] = None  # DoRA's row norms [out]
    replacement: Any = None  # of modules_to_save or full fine-tuning; a Stored or anything with its `read`

    @property
    def shape(self) -> Tuple[int, ...]:
        if self.replacement is not None:
            return self.replacement.shape
        assert self.a is not None
        assert self.b is not None
        return (self.a.shape[1], self.b.shape[0]) if self.embedding else (self.b.shape[0], self.a.shape[1])


Changes = Dict[str, List[WeightChange]]  # weight name → changes to be summed


def file_of(place: Path) -> Path:
    """Weights file of an adapter folder. Raises InputWrong if the folder is not an adapter."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (place / name).is_file() and (place / "adapter_config.json").is_file():
            return place / name
    raise InputWrong(
        _(
            "{folder} is not an adapter folder: it needs adapter_config.json and "
            "adapter_model.safetensors or adapter_model.bin.",
            folder=place,
        )
    )


def metadata(place: Path) -> Dict[str, str]:
    """Metadata in the header of the adapter's file; the adapter stage puts `base_sha256` there."""
    path = file_of(place)
    return tensor_files.safetensors(path)[1] if path.suffix == ".safetensors" else {}


def load(place: Path, weight: float = 1.0) -> Changes:
    """Changes that the adapter in `place`, scaled by `weight`, makes. Raises InputWrong for what cannot be merged."""
    path = file_of(place)
    try:
        config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
        stored = tensor_files.tensors(path)
    except ValueError as error:  # JSON's and tensor_files.Damaged
        raise InputWrong(f"{place}: {error}.")
    _check(place, config)
    parts: Dict[str, WeightChange] = {}
    unknown = []
    for name, tensor in sorted(stored.items()):
        if not name.startswith(PREFIX):
            unknown.append(name)
            continue
        name = name[len(PREFIX) :]
        found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(?:\.weight)?", name)
        if found:
            part = parts.setdefault(found[1] + ".weight", WeightChange())
            part.embedding = bool(found[2])
            setattr(part, found[3].lower(), tensor)
        elif re.fullmatch(r"(.+)\.lora_magnitude_vector(\.weight)?", name):
            parts.setdefault(name.split(".lora_magnitude_vector")[0] + ".weight", WeightChange()).magnitude = tensor
        elif name.endswith(".base_layer.weight"):
            continue  # PEFT saves an embedding's own weights, untouched, along with its LoRA
        elif config.get("modules_to_save") and any(f".{m}." in f".{name}" for m in config["modules_to_save"]):
            parts[name] = WeightChange(replacement=tensor)
        else:
            unknown.append(name)
    if unknown:
        raise InputWrong(
            _("{file}: {weights}: not supported as LoRA weights.", file=path, weights=tensor_files.listing(unknown))
        )
    if not parts:
        raise InputWrong(_("{file} holds no LoRA weights.", file=path))
    for name, part in parts.items():
        _finish(f"{path}: {name}", part, config, name[: -len(".weight")], weight)
    return {name: [part] for name, part in parts.items()}


def _check(place: Path, config: Dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputWrong(
            _("{folder}: peft_type is {kind!r}; only LORA adapters can be merged here.", folder=place, kind=kind)
        )
    if config.get("bias", "none") != "none":
        raise InputWrong(
            _(
                '{folder}: bias is {bias!r}: trained biases cannot be merged here, only bias "none".',
                folder=place,
                bias=config["bias"],
            )
        )
    for key in REFUSED:
        if config.get(key):
            raise InputWrong(
                _(
                    "{folder}: adapters with {setting} ({value!r}) cannot be merged here. Use PEFT's merge.",
                    folder=place,
                    setting=key,
                    value=config[key],
                )
            )
    start = str(config.get("init_lora_weights", True))
    if start.startswith(OTHER_BASE):
        raise InputWrong(
            _(
                "{folder}: init_lora_weights is {start!r}: it was trained on a base that this changed "
                "first. Convert it to plain LoRA with PEFT first.",
                folder=place,
                start=start,
            )
        )


def _finish(what: str, part: WeightChange, config: Dict[str, Any], module: str, weight: float) -> None:
    """Check a change's matrices and rank, and set its scaling. Raises InputWrong."""
    if part.replacement is not None:
        if weight != 1:
            raise InputWrong(
                _(
                    "{weight} is replaced (modules_to_save), which cannot be scaled by {factor}.",
                    weight=what,
                    factor=weight,
                )
            )
        return
    if part.a is None or part.b is None:
        raise InputWrong(
            _("{weight}: {matrix} is missing.", weight=what, matrix="lora_A" if part.a is None else "lora_B")
        )
    if len(part.a.shape) != 2 or len(part.b.shape) != 2:
        raise InputWrong(
            _(
                "{weight}: LoRA on convolutions ({shape}) cannot be merged here. Use PEFT's merge.",
                weight=what,
                shape=part.a.shape,
            )
        )
    rank = part.a.shape[0]
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    # As in PEFT, the first key of either pattern that matches the end of the module's name decides both
    key = next((k for k in (*ranks, *alphas) if re.match(rf".*\.{k}$", module)), module)
    expected = ranks.get(key, config["r"])
    if {rank, part.b.shape[1]} != {expected}:
        raise InputWrong(
            _(
                "{weight}: rank {expected} in adapter_config.json, but {rank_a} and {rank_b} in the weights.",
                weight=what,
                expected=expected,
                rank_a=rank,
                rank_b=part.b.shape[1],
            )
        )
    alpha = alphas.get(key, config["lora_alpha"])
    part.scaling = weight * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if (part.magnitude is not None) != bool(config.get("use_dora")):
        raise InputWrong(
            _("{weight}: lora_magnitude_vector (DoRA) contradicts use_dora in adapter_config.json.", weight=what)
        )
    if part.magnitude is not None and (weight != 1 or part.embedding):
        raise InputWrong(
            _("{weight}: DoRA cannot be scaled by {factor} or used on embeddings.", weight=what, factor=weight)
        )


def combine(changes: List[Changes]) -> Changes:
    """Sum the changes of several adapters. Raises InputWrong for changes that cannot be summed."""
    total: Changes = {}
    for one in changes:
        for name, parts in one.items():
            total.setdefault(name, []).extend(parts)
    for name, parts in total.items():
        for part in parts:
            if len(parts) > 1 and (part.replacement is not None or part.magnitude is not None):
                kind = "modules_to_save" if part.replacement is not None else "DoRA"
                raise InputWrong(
                    _(
                        "{weight}: {adapters} adapters change it, one by {method}. They cannot be combined.",
                        weight=name,
                        adapters=len(parts),
                        method=kind,
                    )
                )
    return total


class LoadedChange:
    """Changes of rows first … last-1 of one weight, with its matrices in memory on `device`."""

    def __init__(
        self, parts: List[WeightChange], first: int, last: int, device: str = "cpu", dtype: str = "float32"
    ) -> None:
        import torch

        self.first = first
        kind = getattr(torch, dtype)
        self.matrices: List[Tuple[float, Any, Any]] = []
        self.replacement: Optional[Any] = None
        self.magnitude: Optional[Any] = None
        for part in parts:
            if part.replacement is not None:
                self.replacement = part.replacement.read(first, last).to(device, kind)
                continue
            assert part.a is not None
            assert part.b is not None
            if part.embedding:
                a, b = part.b.read().t(), part.a.read()[:, first:last].t()
            else:
                a, b = part.a.read(), part.b.read(first, last)
            self.matrices.append((part.scaling, a.to(device, kind), b.to(device, kind)))
            if part.magnitude is not None:
                flat = dataclasses.replace(part.magnitude, shape=(part.magnitude.numel,))
                self.magnitude = flat.read(first, last).to(device, kind)

    def __call__(self, old: Any, first: int, out: Any) -> Any:
        """Write the changed `old` [rows, in], which starts at row `first`, into `out`; return `out`."""
        import torch

        rows = slice(first - self.first, first - self.first + old.shape[0])
        if self.replacement is not None:
            return out.copy_(self.replacement[rows])
        for number, (scaling, a, b) in enumerate(self.matrices):
            torch.addmm(out if number else old, b[rows], a, alpha=scaling, out=out)
        if self.magnitude is not None:
            out.mul_((self.magnitude[rows] / torch.linalg.vector_norm(out, dim=1)).unsqueeze(1))
        return out

    def bound(self, old: Any, first: int) -> Any:
        """|W| + |scaling|·|B|·|A| for `old`: bounds the rounding error of a call."""
        import torch

        rows = slice(first - self.first, first - self.first + old.shape[0])
        if self.replacement is not None:
            return self.replacement[rows].abs()
        total, plain = old.abs(), old.clone()
        for scaling, a, b in self.matrices:
            total = total + abs(scaling) * (b[rows].abs() @ a.abs())
            plain = plain + scaling * (b[rows] @ a)
        if self.magnitude is not None:
            total = total * (self.magnitude[rows].abs() / torch.linalg.vector_norm(plain, dim=1)).unsqueeze(1)
        return total
