"""Checkpoint to PEFT adapter: takes the LoRA tensors and names them as PEFT does. No base model, no GPU.

Equal, tensor for tensor, to `xtuner convert pth_to_hf`, which loads the whole base model to do the same. Only the
LoRA tensors are read, one at a time: neither the optimizer's state nor the libraries that the checkpoint names.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from recipe.base_model import folder
from recipe.core import tensor_files
from recipe.core.errors import RunFailed
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.xtuner import preset_facts

# XTuner: llm.base_model.model.….lora_A.default.weight → PEFT: base_model.model.….lora_A.weight
WHOLE = "llm."  # XTuner: llm.model.layers.… → the model's own model.layers.…

TRAINED = r"\.base_model\.model\..+\.(lora_\w+|modules_to_save)\."

BESIDE = ("projector", "visual_encoder_adapter")  # LLaVA's parts, in the figures by their numbers of parameters

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def tensors(checkpoint: Path, who: str = "llm") -> Dict[str, Callable[[], Any]]:
    """PEFT's name → function that reads the adapter weight, fp32 as trained; sorted by name.

    `who`: XTuner's name of the model that it adapts. `checkpoint` is mmengine's file or DeepSpeed's folder. Raises
    RunFailed if it is damaged or holds no LoRA weights.
    """
    found = {
        name[len(who) + 1 :].replace(".modules_to_save", "").replace(".default", ""): held.read
        for name, held in saved(checkpoint).items()
        if re.match(who + TRAINED, name)
    }
    if not found:
        raise RunFailed(f"The checkpoint {checkpoint} holds no LoRA weights.")
    return dict(sorted(found.items()))


def whole(checkpoint: Path) -> Dict[str, Any]:
    """The model's own name → trained weight of full fine-tuning, to be read by rows. Raises RunFailed."""
    found = {name[len(WHOLE) :]: held for name, held in saved(checkpoint).items() if name.startswith(WHOLE)}
    if not found or any(".lora_" in name for name in found):
        raise RunFailed(f"The checkpoint {checkpoint} does not hold a whole model: it was trained by another method.")
    return found


def saved(checkpoint: Path) -> Dict[str, Any]:
    """name → weight, with `shape`, `numel` and `read(first, last)`."""
    try:
        return _zero(checkpoint) if checkpoint.is_dir() else _file(checkpoint)
    except (tensor_files.Damaged, OSError, LookupError, TypeError, AttributeError) as error:
        raise RunFailed(f"The checkpoint {checkpoint} cannot be read: {error}. Train again to make it anew.")


def _file(path: Path) -> Dict[str, Any]:
    stored = tensor_files.torch_file(path)["state_dict"]
    return {name: tensor for name, tensor in stored.items() if isinstance(tensor, tensor_files.Stored)}


def _zero(folder: Path) -> Dict[str, Any]:
    """The trained weights of DeepSpeed's folder, from the optimizer's fp32 copies.

    ZeRO-1 and 2 lay each group of parameters end to end and cut it into one part a rank: read in place. ZeRO-3 cuts
    every parameter by itself: DeepSpeed's own consolidation puts it together.
    """
    ranks = sorted(folder.glob("*_optim_states.pt"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    if not ranks:
        raise LookupError("the folder has no *_optim_states.pt")
    states = [tensor_files.torch_file(path)["optimizer_state_dict"] for path in ranks]
    parts = states[0]["partition_count"]
    expected = max(parts) if isinstance(parts, list) else parts
    if expected != len(ranks):
        raise LookupError(f"it was saved by {expected} processes, {len(ranks)} *_optim_states.pt are there")
    if "single_partition_of_fp32_groups" not in states[0]:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        whole = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), folder.name, True)
        return {name: Held(tensor) for name, tensor in whole.items()}
    groups = tensor_files.torch_file(sorted(folder.glob("*_model_states.pt"))[0])["param_shapes"]
    found: Dict[str, Any] = {}
    for number, shapes in enumerate(groups):
        flat = [state["single_partition_of_fp32_groups"][number] for state in states]
        start = 0
        for name, shape in shapes.items():
            found[name] = Pieces(flat, start, tuple(shape))
            start += tensor_files.count(shape)
        # DeepSpeed pads a group to a multiple of twice the number of ranks, and no further
        if not 0 <= sum(part.numel for part in flat) - start <= 4 * len(ranks):
            raise LookupError(f"its {len(ranks)} parts do not hold the {start:,} values of parameter group {number}")
    return found


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Values start … of parts laid end to end, as a tensor of `shape`."""

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
        begin, stop, at, pieces = self.start + first * step, self.start + last * step, 0, []
        for part in self.flat:
            low, high = max(begin - at, 0), min(stop - at, part.numel)
            if low < high:
                pieces.append(part.read(low, high))
            at += part.numel
        return torch.cat(pieces).view(last - first, *self.shape[1:]) if self.shape else torch.cat(pieces)[0]


class Held:
    """A tensor in memory, read as one in a file is."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.shape, self.numel = tensor, tuple(tensor.shape), tensor.numel()

    def read(self, first: int = 0, last: Optional[int] = None) -> Any:
        return self.tensor[first:last] if self.shape else self.tensor


def base_checksum(place: Path) -> str:
    """sha256 over size and samples of a base model's weight files: which weights an adapter was trained on."""
    heavy = {path.name for path in folder.weights(place)}
    return key_of({name: digest for name, digest in folder.fingerprint(place).items() if name in heavy})


def write(run: Run, place: Path, dtype: str, metadata: Dict[str, str]) -> Dict[str, Any]:
    """Make what the run's checkpoint holds into the fresh folder `place`: an adapter, or LLaVA's parts."""
    from recipe.weights import llava

    settings = run.figures("config")
    if "visual_encoder_lora" in settings:
        return llava.write(run.checkpoint, place, settings, dtype, metadata)
    return convert(run.checkpoint, place, settings["lora"], dtype, metadata)


def convert(
    checkpoint: Path, place: Path, lora: Dict[str, Any], dtype: str, metadata: Dict[str, str], who: str = "llm"
) -> Dict[str, Any]:
    """Write the PEFT adapter of a checkpoint into the fresh folder `place`; return the figures of `work`.

    `lora`: the config's own settings (r, lora_alpha, lora_dropout, bias, task_type). `metadata` goes into the header.
    """
    import torch

    kind = getattr(torch, DTYPES[dtype])
    made = {}
    parameters = before = after = 0
    largest = 0.0
    for name, read in tensors(checkpoint, who).items():
        trained = read().float()
        made[name] = trained.to(kind).contiguous()
        parameters += trained.numel()
        biggest = float(torch.linalg.vector_norm(trained, ord=math.inf))
        if not math.isfinite(biggest):
            raise RunFailed(
                f"{name} holds values that are no numbers: training diverged. Lower train.lr and train again."
            )
        if biggest > torch.finfo(kind).max:
            raise RunFailed(f"{name} holds {biggest:.3g}, more than {dtype} can: adapter.dtype=fp32 keeps it.")
        if ".lora_B." in name or name.endswith("lora_embedding_A"):  # the matrix that starts from zero
            before += int(torch.count_nonzero(trained))
            after += int(torch.count_nonzero(made[name]))
            largest = max(largest, biggest)
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in made if ".lora_" in name})
    config = {
        "base_model_name_or_path": metadata["base_model"], "inference_mode": True, "peft_type": "LORA",
        "target_modules": targets, "fan_in_fan_out": False, "modules_to_save": None, **lora,
    }  # fmt: skip
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensor_files.save_safetensors(place / "adapter_model.safetensors", made, {"format": "pt", **metadata})
    return {
        "tensors": len(made),
        "parameters": parameters,
        "targets": targets,
        "dtype": dtype,
        "largest_b": largest,
        "vanished": 1 - after / before if before else 1.0,
        **metadata,
    }


def summary(figures: Dict[str, Any]) -> str:
    """One line: how much was trained, and what its type does to it."""
    parts = [f"{name} {figures[name]:,} parameters" for name in BESIDE if name in figures]
    if not figures["tensors"]:
        return ", ".join(parts)
    line = f"{figures['tensors']} tensors, {figures['parameters']:,} parameters; of the trained values (largest "
    line += f"{figures['largest_b']:.2g}) {figures['vanished']:.1%} vanish in {figures['dtype']}"
    if figures["vanished"] > 0.01 and figures["dtype"] == "fp16":
        line += " (adapter.dtype=fp32 keeps it)"
    return "; ".join([line, *parts])


def card(run: Run, figures: Dict[str, Any], place: Path) -> str:
    """The model card of the adapter in `place`: what it was trained from, by which recipe, with which result."""
    config, train = run.figures("config"), run.figures("train")
    if "projector" in figures:
        return LLAVA_CARD.format(
            name=run.name, base=figures["base_model"], config=config["base"], summary=summary(figures),
            eyes=run.settings.model.visual_encoder, checksum=figures["base_sha256"], updates=train["updates"],
            parts=", ".join(sorted(path.name for path in place.iterdir() if path.is_dir())),
        )  # fmt: skip
    rows = {
        "base model": f"{run.settings.model.id if run.settings.model.source != 'tiny' else figures['base_model']}",
        "its checksum": f"sha256 {figures['base_sha256']} (of its weight files' sizes and samples)",
        "recipe": f"{run.name}, from XTuner's {config['base']}; {preset_facts.method(run.settings)}, {config['dtype']}",
        "LoRA": f"r {config['lora']['r']}, alpha {config['lora']['lora_alpha']}, on {', '.join(figures['targets'])}",
        "iterations, updates": f"{train['iterations']}, {train['updates']}",
        "seed": train["seed"],
        "peak learning rate": f"{train['lr_peak_logged']:.4g}",
        "loss, first → last": f"{train['loss_first']} → {train['loss_last']}",
        "parameters": f"{figures['parameters']:,} in {figures['tensors']} tensors, {figures['dtype']}",
        "lost to its type": f"{figures['vanished']:.2%} of the trained lora_B values; the largest is "
        f"{figures['largest_b']:.3g}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return CARD.format(base=rows["base model"], name=run.name, table=table)


CARD = """---
base_model: {base}
library_name: peft
tags: [lora, xtuner]
---

# {name}: LoRA adapter

| | |
|---|---|
{table}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}", trust_remote_code=True)
model = PeftModel.from_pretrained(base, "this folder")
```

`./justw merge` joins both into one model folder. The base model's licence holds for this adapter too.
"""

LLAVA_CARD = """# {name}: LLaVA's trained parts

{parts}: as `xtuner convert pth_to_hf` writes them, for `xtuner chat {base} --visual-encoder {eyes} --llava` and this
folder. From XTuner's {config}, {updates} updates; {says}.

The language model is {base} (sha256 {checksum}, of its weight files' sizes and samples), the visual encoder {eyes};
their licences hold for this too.
"""
