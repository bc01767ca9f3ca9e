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
from recipe.core.translation import _, listed, ngettext, sentences, stored
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
            raise RunFailed(
                _(
                    "{weight} holds non-finite values: training diverged. Lower train.lr and train again.",
                    weight=name,
                )
            )
        if peak > torch.finfo(kind).max:
            raise RunFailed(
                _(
                    "{weight} holds {value:.3g}, which overflows {dtype}. Set adapter.dtype=fp32.",
                    weight=name,
                    value=peak,
                    dtype=dtype,
                )
            )
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
    parts = [
        ngettext("{part} {n:,} parameter", "{part} {n:,} parameters", figures[name], part=name)
        for name in LLAVA_PARTS
        if name in figures
    ]
    if not figures["tensors"]:
        return listed(parts)
    values = {name: figures[name] for name in ("tensors", "parameters", "largest_b", "underflow_share", "dtype")}
    if figures["underflow_share"] > 0.01 and figures["dtype"] == "fp16":
        line = _(
            "{tensors} tensors, {parameters:,} parameters; of the trained values (largest {largest_b:.2g}) "
            "{underflow_share:.1%} underflow in {dtype} (adapter.dtype=fp32 keeps them)",
            **values,
        )
    else:
        line = _(
            "{tensors} tensors, {parameters:,} parameters; of the trained values (largest {largest_b:.2g}) "
            "{underflow_share:.1%} underflow in {dtype}",
            **values,
        )
    return _("; ").join([line, *parts])


def card(run: Run, figures: Dict[str, Any], place: Path) -> str:
    """Model card of the adapter in `place`: base model, recipe, result."""
    config, train, terms = run.figures("config"), run.figures("train"), licence.of(run)
    if "projector" in figures:
        return _llava_card(run, figures, place)
    base = record.chosen(run).id if run.settings.model.source != "tiny" else figures["base_model"]
    rows = {
        _("base model"): base,
        _("base checksum"): _(
            "sha256 {checksum} (sizes and samples of the weight files)", checksum=figures["base_sha256"]
        ),
        _("recipe"): _(
            "{name}, from XTuner's {preset}; {method}, {dtype}",
            name=run.name, preset=config["base"], method=preset_facts.method(run.settings), dtype=config["dtype"],
        ),
        "LoRA": _(
            "r {r}, alpha {alpha}, on {modules}",
            r=config["lora"]["r"], alpha=config["lora"]["lora_alpha"], modules=listed(figures["targets"]),
        ),
        _("iterations, updates"): listed((train["iterations"], train["updates"])),
        _("seed"): train["seed"],
        _("peak learning rate"): f"{train['lr_peak_logged']:.4g}",
        _("loss, first → last"): f"{train['loss_first']} → {train['loss_last']}",
        _("parameters"): _(
            "{parameters:,} in {tensors} tensors, {dtype}",
            parameters=figures["parameters"], tensors=figures["tensors"], dtype=figures["dtype"],
        ),
        _("underflow"): _(
            "{share:.2%} of the trained lora_B values round to zero; the largest is {largest:.3g}",
            share=figures["underflow_share"], largest=figures["largest_b"],
        ),
    }  # fmt: skip
    return CARD.format(
        base=base,
        title=_("{name}: LoRA adapter", name=run.name),
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        front_matter=terms.front_matter(),
        folder=_("this folder"),
        merging=_("`./justw merge` merges both into one model folder."),
        licence=stored(terms.sentence()),
    )


def _llava_card(run: Run, figures: Dict[str, Any], place: Path) -> str:
    base, terms = figures["base_model"], licence.of(run)
    encoder = run.settings.model.visual_encoder
    encoder_licence = licence.read_card(visual_encoder.encoder_folder(run)).title or _("unknown")
    return LLAVA_CARD.format(
        base=base,
        front_matter=terms.front_matter(),
        title=_("{name}: LLaVA's trained parts", name=run.name),
        use=_(
            "{parts}, as `xtuner convert pth_to_hf` writes them. Load them with\n"
            "`xtuner chat {base} --visual-encoder {visual_encoder} --llava` and this folder.",
            parts=listed(sorted(path.name for path in place.iterdir() if path.is_dir())),
            base=base,
            visual_encoder=encoder,
        ),
        training=ngettext(
            "Trained from XTuner's {preset} in {n} update; {summary}.",
            "Trained from XTuner's {preset} in {n} updates; {summary}.",
            run.figures("train")["updates"],
            preset=run.figures("config")["base"],
            summary=summary(figures),
        ),
        models=_(
            "The language model is {base} (sha256 {checksum}, of sizes and samples of its weight files), the visual "
            "encoder\n{visual_encoder}.",
            base=base,
            checksum=figures["base_sha256"],
            visual_encoder=encoder,
        ),
        licence=sentences(
            stored(terms.sentence()), _("The visual encoder's licence does, too: {licence}.", licence=encoder_licence)
        ),
    )


CARD = """---
base_model: {base}
{front_matter}
library_name: peft
tags: [lora, xtuner]
---

# {title}

| | |
|---|---|
{table}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}", trust_remote_code=True)
model = PeftModel.from_pretrained(base, "{folder}")
```

{merging}

{licence}
"""

LLAVA_CARD = """---
base_model: {base}
{front_matter}
library_name: xtuner
---

# {title}

{use}
{training}

{models}

{licence}
"""
