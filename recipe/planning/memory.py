"""GPU memory and disk that training takes, computed from a model's shape: for models and methods that were never
measured.

What is summed of memory: the weights as XTuner holds them, gradients and Adam's moments of what is trained, the
checkpointed activations and the logits. `core/measurements.py` has what was measured, of InternLM2-chat-7B alone.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from recipe.base_model import download, folder
from recipe.core import tensor_files
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.xtuner import preset_editor, preset_facts

GIB, MIB = 1 << 30, 1 << 20
OVERHEAD = 0.5 * GIB  # cuBLAS' workspace and fragments; CUDA's own context is not in it
BUCKETS = 2.5 * GIB  # DeepSpeed's buckets of gradients (5e8 values), which are free again while the layers work
# Bytes of a trained weight that DeepSpeed's update holds beside: its gradients joined in 16 bits and copied to fp32. By
# then the layers' work is done. ZeRO-3 takes no more than so many weights at a time (XTuner's file has the default).
STEP, GROUP = 6, 1e9
# Layers and width of the models that XTuner's presets name, by their size in billions, and words of the vocabulary.
LAYERS = {
    0.5: (24, 1024), 1.8: (24, 2048), 2: (18, 2048), 4: (40, 2560), 6: (32, 4096), 6.24: (28, 4096), 6.7: (32, 4096),
    7: (32, 4096), 13: (40, 5120), 14: (40, 5120), 15.5: (40, 6144), 16.4: (28, 2048), 20: (60, 5120), 34: (60, 7168),
    46.7: (32, 4096), 70: (80, 8192), 72: (80, 8192),
}  # fmt: skip
WORDS = (
    ("internlm2", 92544), ("internlm", 103168), ("baichuan2", 125696), ("baichuan", 64000), ("chatglm", 65024),
    ("qwen", 151936), ("gemma", 256000), ("deepseek-moe", 102400), ("starcoder", 49152), ("yi-", 64000), ("", 32000),
)  # fmt: skip


class Shape(NamedTuple):
    """`parameters` in all, and what the activations' size follows from."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int


class Eyes(NamedTuple):
    """The half of CLIP that sees: `patches` are the tokens of an image, its own class token not counted."""

    layers: int
    hidden: int
    inner: int
    patch: int
    patches: int

    @property
    def parameters(self) -> int:
        layer = 4 * self.hidden * (self.hidden + 1) + 2 * self.hidden * self.inner + self.inner + 5 * self.hidden
        ends = self.hidden * (3 * self.patch**2 + self.patches + 6)
        return self.layers * layer + ends


LARGE = Eyes(24, 1024, 4096, 14, 576)  # openai/clip-vit-large-patch14-336, by which all of LLaVA's presets see


class Sight(NamedTuple):
    """What seeing adds: parameters that stay as they are, parameters that are trained, values that are kept of an
    iteration's images for their gradients.
    """

    frozen: int = 0
    trained: int = 0
    kept: int = 0


BLIND = Sight()


def sight(eyes: Eyes, hidden: int, images: int, rank: int = 0) -> Sight:
    """Of an iteration of so many images, before a language model of this width; `rank`: of LoRA on CLIP, 0 for none.

    The projector is XTuner's, of two layers. The checkpointed input of every layer of CLIP is kept, also where it is
    frozen: XTuner lets gradients into it.
    """
    projector = eyes.hidden * hidden + hidden * hidden + 2 * hidden
    adapter = rank * eyes.layers * (8 * eyes.hidden + 2 * (eyes.hidden + eyes.inner))
    return Sight(eyes.parameters, projector + adapter, images * (eyes.patches + 1) * eyes.layers * eyes.hidden)


def by_name(name: str) -> Optional[Shape]:
    """The shape that a model's name tells, None where it tells none."""
    billions = preset_facts.size_of(name)
    if billions not in LAYERS:
        return None
    words = next(count for word, count in WORDS if word in name.lower())
    return Shape(1e9 * billions, *LAYERS[billions], words)


def of_folder(place: Path) -> Optional[Shape]:
    """The shape of a model folder, from its config and its weights' headers; None where they do not tell."""
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


def parts(
    shape: Shape, method: str, bits: int, tokens: int, rank: int = 64, deepspeed: bool = True, seeing: Sight = BLIND
) -> Dict[str, float]:
    """Bytes on one GPU with `tokens` an iteration: {weights, trained (gradients and moments), work, total}.

    Full fine-tuning holds 16 bytes a weight in either way: DeepSpeed 2 of weights, 2 of gradients, 12 of fp32 weights
    and moments, at whose update it holds STEP more (an H100 took 39,725 MiB for a model of 1.9 billion: 22 a weight);
    mmengine's runner 4, 4 and 8, and 2 more for autocast's copies. Of a frozen model DeepSpeed keeps what
    is not quantized in 16 bits; without it PEFT makes that fp32, which under a projector alone is not there to do so.
    """
    ends = min(2 * shape.vocabulary * shape.hidden, shape.parameters)
    wide = 2 if deepspeed else 4
    if method == "full":
        weights, trained = wide * shape.parameters, 14 * shape.parameters
    else:
        unquantized = 2 if method == "projector" else wide
        weights = {4: 0.52, 8: 1.0}.get(bits, unquantized) * (shape.parameters - ends) + unquantized * ends
        # Every linear layer: four of width × width, three of width × about 2.7 widths
        trained = 16 * rank * shape.layers * 19 * shape.hidden if method in ("lora", "qlora") else 0
    weights, trained = weights + wide * seeing.frozen, trained + 16 * seeing.trained
    work = _work(shape, tokens, wide, seeing)
    if deepspeed:
        work = max(work, BUCKETS, STEP * _trained(shape, method, trained, seeing))
    else:
        work += OVERHEAD
    return {"weights": weights, "trained": trained, "work": work, "total": weights + trained + work}


def _work(shape: Shape, tokens: int, wide: int, seeing: Sight) -> float:
    """The checkpointed input of every layer, one layer's inside, and logits with their fp32 copy and gradients."""
    of_token = wide * shape.layers * shape.hidden + 70 * shape.hidden + 12 * shape.vocabulary
    return tokens * of_token + wide * seeing.kept


def gib(name: str) -> Optional[float]:
    """GiB that a preset takes as it is shipped, on one GPU with ZeRO-2; None where its model tells no size."""
    found = preset_facts.facts(name)
    shape = by_name(found.model)
    if shape is None:
        return None
    batch = _number(found, "batch_size", "training_args.per_device_train_batch_size")
    rank = _number(found, f"{found.lora}.r") if found.method in ("lora", "qlora") else 0
    if found.kind == "image":
        # The text has what an image leaves of so many tokens: max_length = int(2048 - (336 / 14)**2)
        told = re.search(r"max_length = int\((\d+) - \(\d+ / \d+\) ?\*\* ?2\)", preset_editor.source(name))
        tokens = batch * (int(told[1]) - 1 if told else 0)  # the image's sign is in either
        seeing = sight(LARGE, shape.hidden, batch, _number(found, "model.visual_encoder_lora.r", none=0))
    else:
        tokens, seeing = batch * _number(found, "max_length"), BLIND
    return parts(shape, found.method, found.bits, tokens, rank, seeing=seeing)["total"] / GIB


def of_run(
    run: Run, cfg: Any, deepspeed: bool, checkpoints: int, eyes: Optional[Eyes] = None, text: int = 0
) -> Optional[Dict[str, Any]]:
    """What the recipe's training takes, in MiB: `mib` on one GPU in all and `weights`, `trained`, `work` of it; `zero`,
    a table of DeepSpeed's stages (`of_zero`); `disk`, of the run's so many checkpoints (`of_disk`). None where neither
    the model's folder nor its name tells its shape. `eyes`: of a recipe with images, whose longest text has `text`
    tokens.
    """
    settings = run.settings
    shape = of_folder(folder.folder(run)) or by_name(settings.model.id)
    if shape is None:
        return None
    method = preset_facts.method(settings)
    lora, seeing, length = cfg.model.get("llm_lora" if eyes else "lora"), BLIND, cfg.max_length
    if eyes:  # nothing is packed, and an image takes the place of one token of its text
        on_eyes = cfg.model.get("visual_encoder_lora")
        length = min(length, text) + eyes.patches - 1
        seeing = sight(eyes, shape.hidden, cfg.batch_size, on_eyes.get("r", 64) if on_eyes else 0)
    bits = {"full": 32}.get(method, 8 if preset_facts.facts(settings.base).bits == 8 else 16)
    if preset_facts.four_bits(settings):
        bits = 4
    shared = (method, bits, cfg.batch_size * length, lora.get("r", 64) if lora else 0)
    held = parts(shape, *shared, deepspeed, seeing)
    found = {name: round(value / MIB) for name, value in held.items()}
    zero = of_zero(shape, *shared, seeing)
    for row in zero:
        row.update({place: {n: round(v / MIB) for n, v in row[place].items()} for place in ("gpu", "host")})
    parameters, trained = round(shape.parameters), round(_trained(shape, method, held["trained"], seeing))
    # A new one is written before the oldest goes.
    copies = checkpoints if cfg.save_total_limit < 1 else min(checkpoints, cfg.save_total_limit + 1)
    return {
        "mib": found.pop("total"), "method": method, "parameters": parameters, **found, "zero": zero,
        "disk": of_disk(parameters, trained, deepspeed, copies, method != "projector"),
    }  # fmt: skip


def _trained(shape: Shape, method: str, held: float, seeing: Sight = BLIND) -> float:
    """How many weights are trained, of the bytes that `parts` has as `trained`: an adapter's hold 16 each."""
    return shape.parameters + seeing.trained if method == "full" else held / 16


def of_disk(parameters: int, trained: int, deepspeed: bool, copies: int, merges: bool = True) -> Dict[str, int]:
    """Bytes: {model, checkpoint, checkpoints: all that lie there at once, merged}; the two models in 16 bits.

    A checkpoint holds what is trained in fp32 and Adam's two moments (12 bytes), DeepSpeed's the 16-bit weights too.
    """
    checkpoint = (14 if deepspeed else 12) * trained
    model_files = 2 * parameters
    return {"model": model_files, "checkpoint": checkpoint, "checkpoints": copies * checkpoint,
            "merged": model_files if merges else 0}  # fmt: skip


def _number(found: preset_facts.Facts, *names: str, none: int = 1) -> int:
    return next((int(found.names[name]) for name in names if found.names.get(name, "").isdigit()), none)


def of_zero(
    shape: Shape, method: str, bits: int, tokens: int, rank: int, seeing: Sight = BLIND
) -> List[Dict[str, Any]]:
    """What DeepSpeed's stages need: [{stage, gpu, host: bytes on 1, 2, 4, 8 GPUs}]; `host` is RAM in all.

    DeepSpeed holds 16-bit weights and gradients (2 bytes each) of what is trained, and 12 bytes of fp32 weights and
    moments. ZeRO-1 divides the 12 among the GPUs, ZeRO-2 the gradients too, ZeRO-3 everything; offload moves the 12
    (with ZeRO-3 the weights too) into RAM, where the update then is.
    """
    alone = parts(shape, method, bits, tokens, rank, seeing=seeing)
    trained = _trained(shape, method, alone["trained"], seeing)
    frozen = 2.0 * seeing.frozen if method == "full" else alone["weights"]
    work = max(_work(shape, tokens, 2, seeing), BUCKETS)
    table = []
    for stage in ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"):
        if bits == 4 and stage.startswith("zero3"):
            continue
        row: Dict[str, Any] = {"stage": stage, "gpu": {}, "host": {}}
        for gpus in (1, 2, 4, 8):
            whole = {"zero1": 4.0, "zero2": 2.0}.get(stage[:5], 0.0) * trained
            cut = {"zero1": 12.0, "zero2": 14.0, "zero3": 16.0}[stage[:5]] * trained
            base = frozen / gpus if stage.startswith("zero3") else frozen
            host = 0.0
            if stage == "zero2_offload":
                cut, host = 2.0 * trained, 12.0 * trained
            elif stage == "zero3_offload":
                cut, host, base = 0.0, 16.0 * trained + frozen, 0.0
            step = 0.0 if "offload" in stage else STEP * min(trained / gpus, GROUP if stage == "zero3" else trained)
            row["gpu"][str(gpus)] = whole + cut / gpus + base + max(work, step)
            row["host"][str(gpus)] = host
        table.append(row)
    return table


def eyes(run: Run) -> Eyes:
    """CLIP's shape; its class token, which XTuner leaves out, is no patch. Raises InputWrong for what is no CLIP."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    place = download.visual_facts(run)
    try:
        config = CLIPVisionConfig.from_pretrained(str(place))
        cut = CLIPImageProcessor.from_pretrained(str(place)).crop_size
    except (OSError, ValueError, TypeError) as error:
        raise InputWrong(
            f"model.visual_encoder: {run.relative(place)} is no CLIP ({str(error).splitlines()[0][:200]})."
        )
    if {cut.get("height"), cut.get("width")} != {config.image_size}:
        raise InputWrong(
            f"model.visual_encoder: {run.relative(place)} cuts images to {cut}, and its model takes "
            f"{config.image_size} pixels."
        )
    return Eyes(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.patch_size,
        (config.image_size // config.patch_size) ** 2,
    )  # fmt: skip
