"""Times a training step on this machine's card, for `just bench`: about two minutes.

For each way to train, with the recipe's batch and length: step time, memory and tokens per second, next to a lower
bound from two measured rates (matrix products, and dequantizing 4-bit weights). The model has the 7B model's shapes and
random weights, on which time and memory do not depend, so nothing is downloaded. Without a GPU: the tiny model's shapes
in fp32, not quantized. The results go to output/bench.json, from which plan and doctor estimate
(recipe/core/measurements.py).
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
from typing import Any, Callable, Dict, List, Optional, Tuple

from recipe.core import compiler, imports, measurements
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.host import gpus, versions
from recipe.core.settings import Settings
from recipe.core.text_width import ljust
from recipe.core.translation import _, mark
from recipe.training.fast import verdict
from recipe.xtuner import config_edits, step_choice

Sizes = Dict[str, int]  # of InternLM2Config

SHAPES_7B: Sizes = dict(
    vocab_size=92544, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip
SHAPES_TINY: Sizes = dict(
    vocab_size=2048, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2,
)  # fmt: skip
TIMED_STEPS, WARMUP_STEPS = 10, 4  # the warm-up compiles kernels, records the CUDA graph and fills caches
WAYS = {
    "stock": mark("XTuner's own step"),
    "fast": mark("fast, layers recomputed"),
    "kept": mark("fast, nothing recomputed"),
    "small": mark("small: least memory"),
}


class StepMismatch(Exception):
    """The fast step differs from XTuner's own by more than rounding; the text says by how much."""


def run(settings: Settings, output: Path, say: Callable[[str], None]) -> Dict[str, Any]:
    """Measure every way, report by `say`, write output/bench.json; returns its content.

    Raises InputWrong for a base model other than InternLM2-7B.
    """
    imports.load()
    import torch

    if not re.match(r"internlm2_.*7b", settings.base):
        raise InputWrong(
            _(
                "base = {base!r}: {command} only has the shapes of InternLM2-7B.",
                base=settings.base,
                command=command_line("bench"),
            )
        )
    has_gpu, cards = torch.cuda.is_available(), gpus()
    device = "cuda" if has_gpu else "cpu"
    sizes = SHAPES_7B if has_gpu else SHAPES_TINY
    dtype = torch.float32
    if has_gpu:
        dtype = torch.bfloat16 if step_choice.dtype(settings) == "bf16" else torch.float16
    batch, length = step_choice.batch_shape(settings)
    card = cards[0]["name"] if has_gpu and cards else "CPU"
    shape = dict(card=card, batch=batch, length=length, version=torch.__version__)
    say(
        _("{card}, 7B model, {batch} × {length} tokens, torch {version}", **shape)
        if has_gpu
        else _("{card}, tiny model, {batch} × {length} tokens, torch {version}", **shape)
    )
    ceilings = measure_ceilings(sizes, device, dtype, batch * length)
    rate, layout = ceilings["matmul"] / 1e12, ceilings["layout"] * 1e6
    say(
        _(
            "matrix products {rate:,.2f} TFLOP/s; a layer's 4-bit weights in {microseconds:,.0f} µs",
            rate=rate,
            microseconds=layout,
        )
        if layout
        else _("matrix products {rate:,.2f} TFLOP/s", rate=rate)
    )
    if has_gpu and compiler.fault():
        say(compiler.notice())
    source = f"just bench, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    measured = []
    for way in WAYS:
        entry = _measure_way(way, sizes, settings, device, dtype, ceilings, say)
        if entry:
            measured.append({"card": card, "batch_size": batch, "max_length": length, **entry, "source": source})
        gc.collect()
        if has_gpu:
            torch.cuda.empty_cache()
    # Nothing can be estimated for the 7B model from the tiny one: its results get another name.
    results = {"measurement": measured} if has_gpu else {"measurement": [], "tiny": measured}
    content = {"card": card, "ceilings": ceilings, "versions": versions(), **results}
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / measurements.BENCH.name, json.dumps(content, indent=1) + "\n")
    return content


def _measure_way(
    way: str, sizes: Sizes, settings: Settings, device: str, dtype: Any, ceilings: Dict[str, float],
    say: Callable[[str], None],
) -> Optional[Dict[str, Any]]:  # fmt: skip
    """One way's entry in bench.json; None if it does not fit the card or its step is wrong here."""
    import torch

    shown = ljust(_(WAYS[way]), 26)
    try:
        took = measure_step(way, sizes, settings, device, dtype)
    except torch.cuda.OutOfMemoryError:
        say(_("{way} does not fit this card", way=shown))
        return None
    except StepMismatch as error:
        say(_("{way} differs from XTuner's own step here and is not measured: {reason}", way=shown, reason=error))
        return None
    tokens = math.prod(step_choice.batch_shape(settings))
    floor = step_floor(sizes, ceilings, tokens, recomputed=way != "kept")
    seconds = took["step"] + took["update"] / (settings.train.accumulative_counts or 1)
    say(
        _(
            "{way} {step:8.1f} ms a step (at least {least:.1f}; {ratio:.2f} × the floor of {floor:.1f}), "
            "{update:6.1f} ms an update, {rate:9,.0f} tokens/s, {memory:7,.0f} MiB",
            way=shown,
            step=1e3 * took["step"],
            least=1e3 * took["least"],
            ratio=took["step"] / floor,
            floor=1e3 * floor,
            update=1e3 * took["update"],
            rate=tokens / seconds,
            memory=took["memory_mib"],
        )
    )
    return {"way": way, "seconds": round(seconds, 5), "memory_mib": round(took["memory_mib"]), "floor": round(floor, 5)}


def measure_step(way: str, sizes: Sizes, settings: Settings, device: str, dtype: Any) -> Dict[str, float]:
    """{step, least: median and minimum seconds of a forward and backward pass, update: seconds of the optimizer,
    memory_mib: reserved by PyTorch}.

    Raises torch.cuda.OutOfMemoryError if the card is too small, StepMismatch if the step differs from XTuner's.
    """
    import torch

    batch, length = step_choice.batch_shape(settings)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # a line per layer
        model = build_model(way, sizes, settings, device, dtype)
    ids = torch.randint(5, sizes["vocab_size"], (batch, length), device=device)
    data = dict(input_ids=ids, attention_mask=ids.ne(0), labels=ids.clone())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(way, device)(trained, lr=1e-4)
    accumulation = settings.train.accumulative_counts or 1

    def step() -> None:
        with torch.autocast(device, dtype=dtype) if device == "cuda" else contextlib.nullcontext():
            loss = model(data, mode="loss")["loss"] / accumulation
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
    return {
        "step": statistics.median(steps),
        "least": min(steps),
        "update": median_seconds(update, 3),
        "memory_mib": torch.cuda.max_memory_reserved() / 2**20 if device == "cuda" else 0,
    }


def _optimizer(way: str, device: str) -> Any:
    import torch

    if way != "small" or device == "cpu":
        return torch.optim.AdamW
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit


def build_model(way: str, sizes: Sizes, settings: Settings, device: str, dtype: Any) -> Any:
    """An instance of the model class that a config names for this way, with the recipe's LoRA."""
    from peft import LoraConfig
    from xtuner.model import SupervisedFinetune

    from recipe.training.fast import attention
    from recipe.training.fast.finetune import Finetune

    attention.restrict_kernels(bool(settings.train.deterministic))  # training restricts XTuner's own step too
    lora = settings.lora
    common = dict(r=lora.r or 64, lora_alpha=lora.lora_alpha or 16, bias="none", task_type="CAUSAL_LM")
    base = build_llm(sizes, device, dtype)
    if way == "stock":
        dropout = 0.1 if lora.lora_dropout is None else lora.lora_dropout
        return SupervisedFinetune(base, LoraConfig(lora_dropout=dropout, **common)).to(device).train()
    adapter = LoraConfig(lora_dropout=lora.lora_dropout or 0.0, target_modules=list(config_edits.LINEARS), **common)
    return Finetune(base, adapter, None, way != "kept", small=way == "small").to(device).train()


def build_llm(sizes: Sizes, device: str, dtype: Any, four_bits: bool = True) -> Any:
    """InternLM2 of these sizes with random weights; on a GPU with its layers in bitsandbytes' NF4 if `four_bits`."""
    import torch
    from torch import nn

    from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
    from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM

    with torch.device("meta"):
        model = InternLM2ForCausalLM(InternLM2Config(**sizes, rope_scaling={"type": "dynamic", "factor": 2.0}))

    def draw(shape: Tuple[int, ...]) -> Any:
        return torch.randn(shape, device=device, dtype=dtype).mul_(shape[-1] ** -0.5)

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if four_bits and device == "cuda" and type(child) is nn.Linear and name != "output":
                setattr(parent, name, _quantize(child, draw(tuple(child.weight.shape)), dtype))
        for name, parameter in list(parent._parameters.items()):
            if parameter is not None and parameter.device.type == "meta":
                shape = tuple(parameter.shape)
                values = torch.ones(shape, device=device, dtype=dtype) if len(shape) == 1 else draw(shape)
                parent._parameters[name] = nn.Parameter(values, requires_grad=False)
        for name, buffer in list(parent._buffers.items()):
            if buffer is not None and buffer.device.type == "meta":  # frequencies of the rotary embedding
                parent._buffers[name] = parent.frequencies(parent.base, device)
    model.is_loaded_in_4bit = model.is_quantized = four_bits and device == "cuda"
    return model


def _quantize(layer: Any, weight: Any, dtype: Any) -> Any:
    import bitsandbytes

    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=made).cuda()
    return made


def measure_ceilings(sizes: Sizes, device: str, dtype: Any, tokens: int) -> Dict[str, float]:
    """`matmul`: FLOP/s of products of the model's shapes with this many tokens; `layout`: seconds to dequantize one
    layer's 4-bit weights, 0 without a GPU.
    """
    shapes = matrix_shapes(sizes)
    timed = [_time_matrix(out, inner, device, dtype, tokens) for out, inner in shapes]
    flop = sum(2.0 * tokens * out * inner for out, inner in shapes)
    return {
        "matmul": flop / sum(matmul for matmul, _layout in timed),
        "layout": sum((layout for _matmul, layout in timed), 0.0),
    }


def _time_matrix(out: int, inner: int, device: str, dtype: Any, tokens: int) -> Tuple[float, float]:
    """Seconds of a product of `tokens` rows with an (out, inner) matrix, and to dequantize it (0 without a GPU)."""
    import torch

    from recipe.training.fast import nf4

    repeats = 20 if device == "cuda" else 1  # enough that the card does not wait for Python

    def seconds_per_call(work: Callable[[], Any]) -> float:
        def repeat() -> None:
            for _number in range(repeats):
                work()

        return median_seconds(repeat, TIMED_STEPS) / repeats

    x, weight = (torch.randn(rows, inner, device=device, dtype=dtype) for rows in (tokens, out))
    matmul = seconds_per_call(lambda: x @ weight.t())
    if device != "cuda":
        return matmul, 0.0
    layer = _quantize(torch.nn.Linear(inner, out, device="meta"), weight, dtype)

    def dequantize() -> None:
        nf4.dequantize(layer.weight, dtype)

    # bitsandbytes' kernel may run during the capture and be missing in the replay; ours does not.
    return matmul, graph_seconds(dequantize, repeats) if nf4.HAS_KERNEL else seconds_per_call(dequantize)


def matrix_shapes(sizes: Sizes) -> List[Tuple[int, int]]:
    """(out, in) of a layer's matrices: wqkv, wo, w1, w3, w2."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    fused = hidden + 2 * hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    return [(fused, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)]


def step_floor(sizes: Sizes, ceilings: Dict[str, float], tokens: int, recomputed: bool) -> float:
    """Lower bound of a step's seconds: its matrix products at the measured rate, plus dequantizing the weights twice.

    A layer's weights are multiplied forward, backward and, if recomputed, once more (but for the last one, whose
    result nobody reads); the output head's twice. LoRA, attention and everything else are left out.
    """
    matrices = matrix_shapes(sizes)
    layer = sum(out * inner for out, inner in matrices)
    again = layer - matrices[-1][0] * matrices[-1][1] if recomputed else 0
    work = 2.0 * tokens * (sizes["num_hidden_layers"] * (2 * layer + again))
    work += 4.0 * tokens * sizes["vocab_size"] * sizes["hidden_size"]
    return work / ceilings["matmul"] + sizes["num_hidden_layers"] * 2 * ceilings["layout"]


def median_seconds(work: Callable[[], Any], times: int) -> float:
    return statistics.median(time_calls(work, times))


def time_calls(work: Callable[[], Any], times: int) -> List[float]:
    """Seconds of each of `times` calls, after a warm-up."""
    import torch

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    found = []
    for number in range(WARMUP_STEPS + times):
        synchronize()
        before = time.perf_counter()
        work()
        synchronize()
        if number >= WARMUP_STEPS:
            found.append(time.perf_counter() - before)
    return found


def graph_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of `work` without Python's overhead: `repeats` calls are replayed as a CUDA graph."""
    import torch

    work()  # compile before recording
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _number in range(repeats):
            work()
    return median_seconds(graph.replay, TIMED_STEPS) / repeats
