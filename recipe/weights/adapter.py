"""Turns a checkpoint's LoRA tensors into a PEFT adapter, without the base model or a GPU.

The result equals `xtuner convert pth_to_hf` tensor for tensor; that command loads the whole base model for it.
"""

import json
import math
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder, licence, record, visual_encoder
from recipe.core import tensor_files
from recipe.core.errors import RunFailed
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.weights import checkpoint_reader
from recipe.xtuner import preset_facts

LLAVA_PARTS = ("projector", "visual_encoder_adapter")  # figures of these names hold parameter counts

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def base_checksum(place: Path) -> str:
    """sha256 over sizes and samples of a base model's weight files; an adapter belongs to one base."""
    weight_files = {path.name for path in folder.weights(place)}
    return key_of({name: digest for name, digest in folder.fingerprint(place).items() if name in weight_files})


def write_adapter(run: Run, place: Path, dtype: str, metadata: Dict[str, str]) -> Dict[str, Any]:
    """Write the adapter of the run's checkpoint, or LLaVA's parts, into the new folder `place`; return its figures."""
    from recipe.weights import llava

    settings = run.figures("config")
    if "visual_encoder_lora" in settings:
        return llava.write_parts(run.checkpoint, place, settings, dtype, metadata)
    return convert(run.checkpoint, place, settings["lora"], dtype, metadata)


def convert(
    checkpoint: Path, place: Path, lora: Dict[str, Any], dtype: str, metadata: Dict[str, str], model: str = "llm"
) -> Dict[str, Any]:
    """Write a checkpoint's PEFT adapter into the new folder `place`; return the adapter stage's figures.

    `lora` holds r, lora_alpha, lora_dropout, bias and task_type as in the rendered config; `metadata` goes into the
    file header. Raises RunFailed for values that are not finite or that `dtype` cannot hold.
    """
    import torch

    kind = getattr(torch, DTYPES[dtype])
    tensors = {}
    parameters = before = after = 0
    largest = 0.0
    for name, read in checkpoint_reader.lora_tensors(checkpoint, model).items():
        trained = read().float()
        tensors[name] = trained.to(kind).contiguous()
        parameters += trained.numel()
        peak = float(torch.linalg.vector_norm(trained, ord=math.inf))
        if not math.isfinite(peak):
            raise RunFailed(f"{name} holds non-finite values: training diverged. Lower train.lr and train again.")
        if peak > torch.finfo(kind).max:
            raise RunFailed(f"{name} holds {peak:.3g}, which overflows {dtype}. Set adapter.dtype=fp32.")
        if ".lora_B." in name or name.endswith("lora_embedding_A"):  # the matrix initialized to zero
            before += int(torch.count_nonzero(trained))
            after += int(torch.count_nonzero(tensors[name]))
            largest = max(largest, peak)
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors if ".lora_" in name})
    config = {
        "base_model_name_or_path": metadata["base_model"], "inference_mode": True, "peft_type": "LORA",
        "target_modules": targets, "fan_in_fan_out": False, "modules_to_save": None, **lora,
    }  # fmt: skip
    place.mkdir(parents=True)
    (place / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensor_files.save_safetensors(place / "adapter_model.safetensors", tensors, {"format": "pt", **metadata})
    return {
        "tensors": len(tensors),
        "parameters": parameters,
        "targets": targets,
        "dtype": dtype,
        "largest_b": largest,
        "underflow_share": 1 - after / before if before else 1.0,
        **metadata,
    }


def summary(figures: Dict[str, Any]) -> str:
    """One line: tensors, parameters, and the share that the dtype rounds to zero."""
    parts = [f"{name} {figures[name]:,} parameters" for name in LLAVA_PARTS if name in figures]
    if not figures["tensors"]:
        return ", ".join(parts)
    line = f"{figures['tensors']} tensors, {figures['parameters']:,} parameters; of the trained values (largest "
    line += f"{figures['largest_b']:.2g}) {figures['underflow_share']:.1%} underflow in {figures['dtype']}"
    if figures["underflow_share"] > 0.01 and figures["dtype"] == "fp16":
        line += " (adapter.dtype=fp32 keeps them)"
    return "; ".join([line, *parts])


def card(run: Run, figures: Dict[str, Any], place: Path) -> str:
    """Model card of the adapter in `place`: base model, recipe, result."""
    config, train = run.figures("config"), run.figures("train")
    if "projector" in figures:
        return LLAVA_CARD.format(
            name=run.name, base=figures["base_model"], config=config["base"], summary=summary(figures),
            visual_encoder=run.settings.model.visual_encoder, checksum=figures["base_sha256"], updates=train["updates"],
            parts=", ".join(sorted(path.name for path in place.iterdir() if path.is_dir())),
            front_matter=licence.of(run).front_matter(), licence=licence.of(run).sentence(),
            encoder_licence=licence.read_card(visual_encoder.encoder_folder(run)).title or "unknown",
        )  # fmt: skip
    rows = {
        "base model": record.chosen(run).id if run.settings.model.source != "tiny" else figures["base_model"],
        "base checksum": f"sha256 {figures['base_sha256']} (sizes and samples of the weight files)",
        "recipe": f"{run.name}, from XTuner's {config['base']}; {preset_facts.method(run.settings)}, {config['dtype']}",
        "LoRA": f"r {config['lora']['r']}, alpha {config['lora']['lora_alpha']}, on {', '.join(figures['targets'])}",
        "iterations, updates": f"{train['iterations']}, {train['updates']}",
        "seed": train["seed"],
        "peak learning rate": f"{train['lr_peak_logged']:.4g}",
        "loss, first → last": f"{train['loss_first']} → {train['loss_last']}",
        "parameters": f"{figures['parameters']:,} in {figures['tensors']} tensors, {figures['dtype']}",
        "underflow": f"{figures['underflow_share']:.2%} of the trained lora_B values round to zero; the largest is "
        f"{figures['largest_b']:.3g}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    terms = licence.of(run)
    return CARD.format(
        base=rows["base model"], name=run.name, table=table, front_matter=terms.front_matter(), licence=terms.sentence()
    )


CARD = """---
base_model: {base}
{front_matter}
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

`./justw merge` merges both into one model folder.

{licence}
"""

LLAVA_CARD = """---
base_model: {base}
{front_matter}
library_name: xtuner
---

# {name}: LLaVA's trained parts

{parts}, as `xtuner convert pth_to_hf` writes them. Load them with
`xtuner chat {base} --visual-encoder {visual_encoder} --llava` and this folder.
Trained from XTuner's {config} in {updates} updates; {summary}.

The language model is {base} (sha256 {checksum}, of sizes and samples of its weight files), the visual encoder
{visual_encoder}.

{licence} The visual encoder's licence does, too: {encoder_licence}.
"""
