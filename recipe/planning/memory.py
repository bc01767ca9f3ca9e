"""Estimates the GPU memory and disk space of a training run from the model's shape, also where nothing was measured.

Memory is the sum of the weights as XTuner holds them, gradients and Adam's moments of what is trained, checkpointed
activations and logits. `core/measurements.py` has measured figures, but only for InternLM2-chat-7B.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from recipe.base_model import folder
from recipe.base_model.visual_encoder import CLIP_LARGE, EncoderShape, VisionLoad
from recipe.core import tensor_files
from recipe.core.run import Run
from recipe.xtuner import preset_editor, preset_facts

GIB, MIB = 1 << 30, 1 << 20
OVERHEAD = 0.5 * GIB  # cuBLAS workspace and fragmentation; without CUDA's own context
BUCKETS = 2.5 * GIB  # DeepSpeed's gradient buckets (5e8 values), which are free while the layers are computed
# Bytes per trained weight during DeepSpeed's update, when the layers' activations are free again: the joined 16-bit
# gradients and their fp32 copy. ZeRO-3 updates at most GROUP weights at a time (the default in XTuner's file).
STEP, GROUP = 6, 1e9
# (layers, hidden size) of the models that XTuner's presets name, by billions of parameters; size of the vocabulary, by
# a part of the name.
LAYERS = {
    0.5: (24, 1024), 1.8: (24, 2048), 2: (18, 2048), 4: (40, 2560), 6: (32, 4096), 6.24: (28, 4096), 6.7: (32, 4096),
    7: (32, 4096), 13: (40, 5120), 14: (40, 5120), 15.5: (40, 6144), 16.4: (28, 2048), 20: (60, 5120), 34: (60, 7168),
    46.7: (32, 4096), 70: (80, 8192), 72: (80, 8192),
}  # fmt: skip
VOCABULARIES = (
    ("internlm2", 92544), ("internlm", 103168), ("baichuan2", 125696), ("baichuan", 64000), ("chatglm", 65024),
    ("qwen", 151936), ("gemma", 256000), ("deepseek-moe", 102400), ("starcoder", 49152), ("yi-", 64000), ("", 32000),
)  # fmt: skip


NO_IMAGES = VisionLoad()


class Shape(NamedTuple):
    """The shape of a language model; `parameters` is their total number."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int


def shape_by_name(name: str) -> Optional[Shape]:
    """The shape of a model of a known size; None if its name does not state one."""
    billions = preset_facts.size_of(name)
    if billions not in LAYERS:
        return None
    vocabulary = next(size for word, size in VOCABULARIES if word in name.lower())
    return Shape(1e9 * billions, *LAYERS[billions], vocabulary)


def shape_of_folder(place: Path) -> Optional[Shape]:
    """The shape of a model folder, from its config and the headers of its weights; None if it is incomplete."""
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        stored = [t for path in folder.weights(place) for t in tensor_files.tensors(path).values()]
        found = Shape(
            sum(tensor.numel for tensor in stored), config["num_hidden_layers"], config["hidden_size"],
            config["vocab_size"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if stored else None


def estimate(
    shape: Shape, method: str, bits: int, tokens: int, rank: int = 64, deepspeed: bool = True,
    vision: VisionLoad = NO_IMAGES,
) -> Dict[str, float]:  # fmt: skip
    """Bytes on one GPU with `tokens` per iteration: {weights, trained (gradients and moments), work, total}.

    Full fine-tuning holds 16 bytes per weight. With DeepSpeed: 2 for the weight, 2 for its gradient, 12 for the fp32
    weight and moments, and STEP more during the update (an H100 took 39,725 MiB for 1.9 billion weights: 22 each).
    With mmengine's runner: 4, 4, 8, and 2 more for autocast's copies. What is not quantized in a frozen model is 16
    bits with DeepSpeed; without it PEFT converts it to fp32, except under a projector alone, which does not use PEFT.
    """
    ends = min(2 * shape.vocabulary * shape.hidden, shape.parameters)  # embeddings and output layer
    wide = 2 if deepspeed else 4
    if method == "full":
        weights, trained = wide * shape.parameters, 14 * shape.parameters
    else:
        unquantized = 2 if method == "projector" else wide
        weights = {4: 0.52, 8: 1.0}.get(bits, unquantized) * (shape.parameters - ends) + unquantized * ends
        # LoRA on every linear layer: four of hidden × hidden, three of hidden × about 2.7 hidden
        trained = 16 * rank * shape.layers * 19 * shape.hidden if method in ("lora", "qlora") else 0
    weights, trained = weights + wide * vision.frozen, trained + 16 * vision.trained
    work = _work(shape, tokens, wide, vision)
    if deepspeed:
        work = max(work, BUCKETS, STEP * _trained_parameters(shape, method, trained, vision))
    else:
        work += OVERHEAD
    return {"weights": weights, "trained": trained, "work": work, "total": weights + trained + work}


def _work(shape: Shape, tokens: int, wide: int, vision: VisionLoad) -> float:
    """Bytes of each layer's checkpointed input, one layer's activations, and logits with fp32 copy and gradients."""
    per_token = wide * shape.layers * shape.hidden + 70 * shape.hidden + 12 * shape.vocabulary
    return tokens * per_token + wide * vision.activations


def _trained_parameters(shape: Shape, method: str, trained: float, vision: VisionLoad = NO_IMAGES) -> float:
    """How many parameters are trained; `trained`: bytes from `estimate`, 16 for each parameter of an adapter."""
    return shape.parameters + vision.trained if method == "full" else trained / 16


def preset_gib(name: str) -> Optional[float]:
    """GiB that a preset as shipped takes on one GPU with ZeRO-2; None if its model's name does not state a size."""
    found = preset_facts.facts(name)
    shape = shape_by_name(found.model)
    if shape is None:
        return None
    batch = _number(found, "batch_size", "training_args.per_device_train_batch_size")
    rank = _number(found, f"{found.lora}.r") if found.method in ("lora", "qlora") else 0
    if found.kind == "image":
        # The preset's max_length leaves room for an image's tokens: max_length = int(2048 - (336 / 14)**2)
        total = re.search(r"max_length = int\((\d+) - \(\d+ / \d+\) ?\*\* ?2\)", preset_editor.source(name))
        tokens = batch * (int(total[1]) - 1 if total else 0)  # the image's placeholder is in both
        vision = CLIP_LARGE.load(shape.hidden, batch, _number(found, "model.visual_encoder_lora.r", default=0))
    else:
        tokens, vision = batch * _number(found, "max_length"), NO_IMAGES
    return estimate(shape, found.method, found.bits, tokens, rank, vision=vision)["total"] / GIB


def _number(found: preset_facts.Facts, *names: str, default: int = 1) -> int:
    return next((int(found.names[name]) for name in names if found.names.get(name, "").isdigit()), default)


def estimate_run(
    run: Run, cfg: Any, deepspeed: bool, checkpoints: int, encoder: Optional[EncoderShape] = None, longest: int = 0
) -> Optional[Dict[str, Any]]:
    """What the recipe's training takes, in MiB: `mib` on one GPU in total, and of it `weights`, `trained`, `work`;
    `zero`, a table by DeepSpeed stage (`zero_stages`); `disk`, with this number of checkpoints. None if neither the
    model's folder nor its name states its shape.

    `encoder`: for a recipe with images, whose longest text has `longest` tokens.
    """
    settings = run.settings
    shape = shape_of_folder(folder.folder(run)) or shape_by_name(settings.model.id)
    if shape is None:
        return None
    method = preset_facts.method(settings)
    lora, vision, length = cfg.model.get("llm_lora" if encoder else "lora"), NO_IMAGES, cfg.max_length
    if encoder:  # nothing is packed, and an image replaces one token of its text
        encoder_lora = cfg.model.get("visual_encoder_lora")
        length = min(length, longest) + encoder.patches - 1
        vision = encoder.load(shape.hidden, cfg.batch_size, encoder_lora.get("r", 64) if encoder_lora else 0)
    bits = {"full": 32}.get(method, 8 if preset_facts.facts(settings.base).bits == 8 else 16)
    if preset_facts.four_bits(settings):
        bits = 4
    arguments = (method, bits, cfg.batch_size * length, lora.get("r", 64) if lora else 0)
    on_one_gpu = estimate(shape, *arguments, deepspeed, vision)
    found = {name: round(value / MIB) for name, value in on_one_gpu.items()}
    zero = zero_stages(shape, *arguments, vision)
    for row in zero:
        row.update({place: {n: round(v / MIB) for n, v in row[place].items()} for place in ("gpu", "host")})
    parameters, trained = (
        round(shape.parameters),
        round(_trained_parameters(shape, method, on_one_gpu["trained"], vision)),
    )
    # The new checkpoint is written before the oldest is deleted.
    copies = checkpoints if cfg.save_total_limit < 1 else min(checkpoints, cfg.save_total_limit + 1)
    return {
        "mib": found.pop("total"), "method": method, "parameters": parameters, **found, "zero": zero,
        "disk": disk(parameters, trained, deepspeed, copies, method != "projector"),
    }  # fmt: skip


def disk(parameters: int, trained: int, deepspeed: bool, copies: int, merges: bool = True) -> Dict[str, int]:
    """Bytes: {model, checkpoint, checkpoints (all copies), merged}; both models in 16 bits.

    A checkpoint holds 12 bytes per trained parameter (fp32 and Adam's two moments), DeepSpeed's also 2 of 16 bits.
    """
    checkpoint = (14 if deepspeed else 12) * trained
    return {
        "model": 2 * parameters, "checkpoint": checkpoint, "checkpoints": copies * checkpoint,
        "merged": 2 * parameters if merges else 0,
    }  # fmt: skip


def zero_stages(
    shape: Shape, method: str, bits: int, tokens: int, rank: int, vision: VisionLoad = NO_IMAGES
) -> List[Dict[str, Any]]:
    """What each DeepSpeed stage needs: [{stage, gpu: bytes on each, host: bytes of RAM in total}], by 1, 2, 4, 8 GPUs.

    For each trained parameter DeepSpeed holds 2 bytes of weight, 2 of gradient, and 12 of fp32 weight and moments.
    ZeRO-1 divides the 12 among the GPUs, ZeRO-2 also the gradients, ZeRO-3 everything. Offload moves the 12 (with
    ZeRO-3 also the weights) into RAM, where the update then runs.
    """
    on_one_gpu = estimate(shape, method, bits, tokens, rank, vision=vision)
    trained = _trained_parameters(shape, method, on_one_gpu["trained"], vision)
    frozen = 2.0 * vision.frozen if method == "full" else on_one_gpu["weights"]
    work = max(_work(shape, tokens, 2, vision), BUCKETS)
    # stage → bytes per trained parameter: on each GPU, divided among the GPUs, in RAM
    stages = {
        "zero1": (4, 12, 0), "zero2": (2, 14, 0), "zero2_offload": (2, 2, 12), "zero3": (0, 16, 0),
        "zero3_offload": (0, 0, 16),
    }  # fmt: skip
    table = []
    for stage, (each, divided, ram) in stages.items():
        zero3, offload = stage.startswith("zero3"), stage.endswith("offload")
        if bits == 4 and zero3:
            continue
        row: Dict[str, Any] = {"stage": stage, "gpu": {}, "host": {}}
        for gpus in (1, 2, 4, 8):
            base = 0.0 if stage == "zero3_offload" else frozen / gpus if zero3 else frozen
            step = 0.0 if offload else STEP * min(trained / gpus, GROUP if zero3 else trained)
            row["gpu"][str(gpus)] = (each + divided / gpus) * trained + base + max(work, step)
            row["host"][str(gpus)] = ram * trained + (frozen if stage == "zero3_offload" else 0.0)
        table.append(row)
    return table
