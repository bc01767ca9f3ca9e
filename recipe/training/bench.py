"""What a training iteration takes on this machine's card: `just bench [recipe]`, about two minutes.

Of the recipe's batch and length, in each way that this card can train: step time, memory, tokens a second, beside the
floor that two measured ceilings set (the rate of matrix products, and laying out 4-bit weights). The model has the 7B
model's shapes and random weights, made on the card: time and memory do not depend on them, and nothing is fetched.
Without a GPU, the tiny model's shapes in fp32, unquantized. What was measured goes to output/bench.json, and plan and
doctor reckon with it (recipe/core/measurements.py).
"""

import contextlib
import gc
import io
import json
import math
import re
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from recipe.core import compiler, imports, measurements
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.host import gpus, versions
from recipe.core.settings import Settings
from recipe.training.fast import verdict
from recipe.xtuner import config, step_choice

SHAPES_7B = dict(
    vocab_size=92544, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
SHAPES_TINY = dict(
    vocab_size=2048, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2,
)  # fmt: skip
TIMED_STEPS, WARMUP_STEPS = 10, 4  # timed, and before them (the first ones compile, record and fill)
WAYS = {
    "stock": "XTuner's own step",
    "fast": "fast, layers recomputed",
    "kept": "fast, nothing recomputed",
    "small": "small: least memory",
}


class StepMismatch(Exception):
    """A fast step that is not XTuner's own within rounding; the text says how far apart they are."""


def matrix_shapes(sizes: Dict[str, int]) -> List[Any]:
    """(out, in) of a layer's matrices: wqkv, wo, w1, w3, w2."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    fused = hidden + 2 * hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    return [(fused, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)]


def seconds(work: Callable[[], Any], times: int) -> float:
    """Median seconds of `work`, after a warm-up."""
    return statistics.median(time_calls(work, times))


def time_calls(work: Callable[[], Any], times: int) -> List[float]:
    """Seconds of each `work`, after a warm-up."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    found = []
    for number in range(WARMUP_STEPS + times):
        wait()
        began = time.perf_counter()
        work()
        wait()
        if number >= WARMUP_STEPS:
            found.append(time.perf_counter() - began)
    return found


def graph_seconds(work: Callable[[], Any], many: int) -> float:
    """Seconds of `work` on the card alone: `many` of it replayed as a CUDA graph, without Python's time in between."""
    import torch

    work()  # compiled before it is recorded
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(many):
            work()
    return seconds(graph.replay, TIMED_STEPS) / many


def build_llm(sizes: Dict[str, int], device: str, kind: Any) -> Any:
    """InternLM2 of these sizes with random weights; on a GPU its layers in NF4 as bitsandbytes makes them."""
    import torch
    from torch import nn

    from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
    from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM

    configuration = InternLM2Config(**sizes, rope_scaling={"type": "dynamic", "factor": 2.0})
    with torch.device("meta"):
        model = InternLM2ForCausalLM(configuration)

    def draw(shape: Any) -> Any:
        return torch.randn(shape, device=device, dtype=kind).mul_(shape[-1] ** -0.5)

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if device == "cuda" and type(child) is nn.Linear and name != "output":
                setattr(parent, name, _quantized(child, draw(tuple(child.weight.shape)), kind))
        for name, one in list(parent._parameters.items()):
            if one is not None and one.device.type == "meta":
                made = torch.ones(one.shape, device=device, dtype=kind) if one.dim() == 1 else draw(tuple(one.shape))
                parent._parameters[name] = nn.Parameter(made, requires_grad=False)
        for name, one in list(parent._buffers.items()):
            if one is not None and one.device.type == "meta":  # the rotary positions' frequencies
                parent._buffers[name] = parent.frequencies(parent.base, device)
    model.is_loaded_in_4bit = model.is_quantized = device == "cuda"
    return model


def _quantized(layer: Any, weight: Any, kind: Any) -> Any:
    import bitsandbytes

    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=kind, quant_type="nf4", device="meta"
    )
    made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made).cuda()
    return made


def measure_ceilings(sizes: Dict[str, int], device: str, kind: Any, tokens: int) -> Dict[str, float]:
    """`matmul`: multiplications and additions a second in products of the model's shapes with this many tokens;
    `layout`: seconds to lay out a layer's 4-bit weights, 0 without a GPU.
    """
    import torch

    from recipe.training.fast import nf4

    many = 20 if device == "cuda" else 1  # at a time: the card must not wait for Python

    def each(work: Callable[[], Any]) -> float:
        return seconds(lambda: [work() for _ in range(many)] and None, TIMED_STEPS) / many

    took = done = laid = 0.0
    for out, inner in matrix_shapes(sizes):
        x, weight = (torch.randn(rows, inner, device=device, dtype=kind) for rows in (tokens, out))
        took += each(lambda x=x, weight=weight: x @ weight.t())
        done += 2.0 * tokens * out * inner
        if device == "cuda":
            layer = _quantized(torch.nn.Linear(inner, out, device="meta"), weight, kind)
            # A kernel of bitsandbytes' may run while it is recorded, not in the replay: only ours is.
            clock = (lambda work: graph_seconds(work, many)) if nf4.HAS_KERNEL else each
            laid += clock(lambda layer=layer: nf4.dequantize(layer.weight, kind))
    return {"matmul": done / took, "layout": laid}


def step_floor(sizes: Dict[str, int], found: Dict[str, float], tokens: int, recomputed: bool) -> float:
    """Seconds below which no step comes: its matrix products at the measured rate, its weights laid out as often as
    they are read. Products with a layer's weights: forward, backward, and once more if recomputed (but for the last,
    whose result nobody reads); the output head's: twice. LoRA, attention and all else are left out.
    """
    matrices = matrix_shapes(sizes)
    layer = sum(out * inner for out, inner in matrices)
    again = layer - matrices[-1][0] * matrices[-1][1] if recomputed else 0
    work = 2.0 * tokens * (sizes["num_hidden_layers"] * (2 * layer + again))
    work += 4.0 * tokens * sizes["vocab_size"] * sizes["hidden_size"]
    return work / found["matmul"] + sizes["num_hidden_layers"] * 2 * found["layout"]


def build_model(way: str, sizes: Dict[str, int], settings: Settings, device: str, kind: Any) -> Any:
    """The model class that a config of this way names, with the recipe's LoRA."""
    from peft import LoraConfig
    from xtuner.model import SupervisedFinetune

    from recipe.training.fast import attention
    from recipe.training.fast.finetune import Finetune

    attention.restrict_kernels(bool(settings.train.deterministic))  # as in training, for XTuner's own step too
    words = dict(r=settings.lora.r or 64, lora_alpha=settings.lora.lora_alpha or 16, bias="none", task_type="CAUSAL_LM")
    base = build_llm(sizes, device, kind)
    if way == "stock":
        dropout = 0.1 if settings.lora.lora_dropout is None else settings.lora.lora_dropout
        return SupervisedFinetune(base, LoraConfig(lora_dropout=dropout, **words)).to(device).train()
    lora = LoraConfig(lora_dropout=settings.lora.lora_dropout or 0.0, target_modules=list(config.LINEARS), **words)
    return Finetune(base, lora, None, way != "kept", small=way == "small").to(device).train()


def measure_step(way: str, sizes: Dict[str, int], settings: Settings, device: str, kind: Any) -> Dict[str, float]:
    """{step: median seconds forward and backward, least: their minimum, update: seconds of the optimizer, memory_mib:
    what PyTorch reserves}.

    Raises torch.cuda.OutOfMemoryError where the card does not hold it, StepMismatch where it is not XTuner's step.
    """
    import torch

    batch, length = step_choice.sequences(settings)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # a line for each layer
        model = build_model(way, sizes, settings, device, kind)
    ids = torch.randint(5, sizes["vocab_size"], (batch, length), device=device)
    data = dict(input_ids=ids, attention_mask=ids.ne(0), labels=ids.clone())
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = _optimizer(way, device)(trained, lr=1e-4)
    share = settings.train.accumulative_counts or 1

    def step() -> None:
        with torch.autocast(device, dtype=kind) if device == "cuda" else contextlib.nullcontext():
            loss = model(data, mode="loss")["loss"] / share
        loss.backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step()
    update()
    if not getattr(model, "checked", {}).get("passed", True):
        raise StepMismatch(verdict.describe(model.checked))
    steps = time_calls(step, TIMED_STEPS)
    found = {"step": statistics.median(steps), "least": min(steps), "update": seconds(update, 3)}
    found["memory_mib"] = torch.cuda.max_memory_reserved() / 2**20 if device == "cuda" else 0
    return found


def _optimizer(way: str, device: str) -> Any:
    import torch

    if way != "small" or device == "cpu":
        return torch.optim.AdamW
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit


def run(settings: Settings, output: Path, say: Callable[[str], None]) -> Dict[str, Any]:
    """Measure, tell by `say`, write output/bench.json; returns what is written there: {card, ceilings, measurement}."""
    imports.load()
    import torch

    cards = gpus()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.match(r"internlm2_.*7b", settings.base):
        raise InputWrong(f"base = {settings.base!r}: just bench has the shapes of InternLM2-7B alone.")
    sizes = SHAPES_7B if device == "cuda" else SHAPES_TINY
    half = torch.bfloat16 if step_choice.dtype(settings) == "bf16" else torch.float16
    kind = half if device == "cuda" else torch.float32
    batch, length = step_choice.sequences(settings)
    card = cards[0]["name"] if device == "cuda" and cards else "CPU"
    say(f"{card}, {'7B' if device == 'cuda' else 'tiny'} model, {batch} × {length} tokens, torch {torch.__version__}")
    found = measure_ceilings(sizes, device, kind, batch * length)
    laid = f"; a layer's 4-bit weights in {found['layout'] * 1e6:,.0f} µs" if found["layout"] else ""
    say(f"matrix products {found['matmul'] / 1e12:,.2f} TFLOP/s{laid}")
    if device == "cuda" and compiler.fault():
        say(compiler.notice())
    made = []
    for way in WAYS:
        entry = _measure_way(way, sizes, settings, device, kind, found, say)
        if entry:
            made.append({"card": card, "batch_size": batch, "max_length": length, **entry})
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    said = f"just bench, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    # Of the tiny model nothing can be reckoned for the 7B model: it is told and kept, but under another name.
    name = "measurement" if device == "cuda" else "tiny"
    whole = {"card": card, "ceilings": found, "measurement": [], "versions": versions()}
    whole[name] = [{**one, "source": said} for one in made]
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / measurements.BENCH.name, json.dumps(whole, indent=1) + "\n")
    return whole


def _measure_way(
    way: str, sizes: Dict[str, int], settings: Settings, device: str, kind: Any, found: Dict[str, float],
    say: Callable[[str], None],
) -> Optional[Dict[str, Any]]:  # fmt: skip
    import torch

    tokens = math.prod(step_choice.sequences(settings))
    try:
        took = measure_step(way, sizes, settings, device, kind)
    except torch.cuda.OutOfMemoryError:
        say(f"{WAYS[way]:26} does not fit this card")
        return None
    except StepMismatch as error:
        say(f"{WAYS[way]:26} differs from XTuner's own step here and is not measured: {error}")
        return None
    least = step_floor(sizes, found, tokens, way != "kept")
    whole = took["step"] + took["update"] / (settings.train.accumulative_counts or 1)
    say(
        f"{WAYS[way]:26} {1e3 * took['step']:8.1f} ms a step (at least {1e3 * took['least']:.1f}; "
        f"{took['step'] / least:.2f} × the floor of {1e3 * least:.1f}), "
        f"{1e3 * took['update']:6.1f} ms an update, {tokens / whole:9,.0f} tokens/s, "
        f"{took['memory_mib']:7,.0f} MiB"
    )
    return {"way": way, "seconds": round(whole, 5), "memory_mib": round(took["memory_mib"]), "floor": round(least, 5)}
