"""Reads trained weights from a checkpoint without the optimizer state or the libraries that the checkpoint names."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from recipe.core import tensor_files
from recipe.core.errors import RunFailed
from recipe.core.translation import _

# XTuner: llm.base_model.model.….lora_A.default.weight → PEFT: base_model.model.….lora_A.weight
LLM = "llm."  # XTuner: llm.model.layers.… → the model's own model.layers.…
ADAPTER_WEIGHT = r"\.base_model\.model\..+\.(lora_\w+|modules_to_save)\."


def lora_tensors(checkpoint: Path, model: str = "llm") -> Dict[str, Callable[[], Any]]:
    """PEFT name → function that reads the adapter weight as trained (fp32), sorted by name.

    `model` is XTuner's name of the adapted model. `checkpoint` is mmengine's file or DeepSpeed's folder. Raises
    RunFailed if it is damaged or holds no LoRA weights.
    """
    found = {
        name[len(model) + 1 :].replace(".modules_to_save", "").replace(".default", ""): stored.read
        for name, stored in read_checkpoint(checkpoint).items()
        if re.match(model + ADAPTER_WEIGHT, name)
    }
    if not found:
        raise RunFailed(_("The checkpoint {checkpoint} holds no LoRA weights.", checkpoint=checkpoint))
    return dict(sorted(found.items()))


def full_weights(checkpoint: Path) -> Dict[str, Any]:
    """Model's own name → weight trained by full fine-tuning, readable by rows. Raises RunFailed."""
    found = {name[len(LLM) :]: stored for name, stored in read_checkpoint(checkpoint).items() if name.startswith(LLM)}
    if not found or any(".lora_" in name for name in found):
        raise RunFailed(
            _(
                "The checkpoint {checkpoint} does not hold all of the model's weights: it was trained by "
                "another method.",
                checkpoint=checkpoint,
            )
        )
    return found


def read_checkpoint(checkpoint: Path) -> Dict[str, Any]:
    """Name → trained weight with `shape`, `numel` and `read(first, last)`. Raises RunFailed for a damaged file."""
    try:
        return _read_zero_folder(checkpoint) if checkpoint.is_dir() else _read_file(checkpoint)
    except (tensor_files.Damaged, OSError, LookupError, TypeError, AttributeError) as error:
        raise RunFailed(
            _("The checkpoint {checkpoint} cannot be read: {error}. Train again.", checkpoint=checkpoint, error=error)
        )


def _read_file(path: Path) -> Dict[str, Any]:
    stored = tensor_files.torch_file(path)["state_dict"]
    return {name: tensor for name, tensor in stored.items() if isinstance(tensor, tensor_files.Stored)}


def _read_zero_folder(folder: Path) -> Dict[str, Any]:
    """Trained weights of DeepSpeed's folder, from the optimizer's fp32 copies.

    ZeRO-1 and 2 concatenate each parameter group and split it evenly across ranks: read in place. ZeRO-3 splits every
    parameter on its own: DeepSpeed's consolidation rebuilds it.
    """
    ranks = sorted(folder.glob("*_optim_states.pt"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    if not ranks:
        raise LookupError(_("the folder has no *_optim_states.pt"))
    states = [tensor_files.torch_file(path)["optimizer_state_dict"] for path in ranks]
    parts = states[0]["partition_count"]
    expected = max(parts) if isinstance(parts, list) else parts
    if expected != len(ranks):
        raise LookupError(
            _(
                "it was saved by {processes} processes but has {files} *_optim_states.pt",
                processes=expected,
                files=len(ranks),
            )
        )
    if "single_partition_of_fp32_groups" not in states[0]:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name, True)
        return {name: MemoryTensor(tensor) for name, tensor in weights.items()}
    groups = tensor_files.torch_file(sorted(folder.glob("*_model_states.pt"))[0])["param_shapes"]
    found: Dict[str, Any] = {}
    for number, shapes in enumerate(groups):
        flat = [state["single_partition_of_fp32_groups"][number] for state in states]
        start = 0
        for name, shape in shapes.items():
            found[name] = FlatSlice(flat, start, tuple(shape))
            start += tensor_files.count(shape)
        # DeepSpeed pads a group to a multiple of twice the number of ranks
        if not 0 <= sum(part.numel for part in flat) - start <= 4 * len(ranks):
            raise LookupError(
                _(
                    "its {parts} parts do not hold the {values:,} values of parameter group {number}",
                    parts=len(ranks),
                    values=start,
                    number=number,
                )
            )
    return found


@dataclasses.dataclass(frozen=True)
class FlatSlice:
    """A tensor of `shape` that begins at value `start` of concatenated parts."""

    flat: List[tensor_files.Stored]
    start: int
    shape: Tuple[int, ...]

    @property
    def numel(self) -> int:
        return tensor_files.count(self.shape)

    def read(self, first: int = 0, last: Optional[int] = None) -> Any:
        """The tensor, or its rows first … last-1."""
        import torch

        rows = self.shape[0] if self.shape else 1
        last = rows if last is None else last
        step = self.numel // max(1, rows)
        begin, stop, at, slices = self.start + first * step, self.start + last * step, 0, []
        for part in self.flat:
            low, high = max(begin - at, 0), min(stop - at, part.numel)
            if low < high:
                slices.append(part.read(low, high))
            at += part.numel
        return torch.cat(slices).view(last - first, *self.shape[1:]) if self.shape else torch.cat(slices)[0]


class MemoryTensor:
    """A tensor in memory with the interface of one in a file."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape, self.numel = tensor, tuple(tensor.shape), tensor.numel()

    def read(self, first: int = 0, last: Optional[int] = None) -> Any:
        return self.tensor[first:last] if self.shape else self.tensor
