"""Prepares this process and the machine for a training: weights into the page cache, kernels compiled."""

import contextlib
import gc
import os
import threading
from pathlib import Path
from typing import Any, Dict, List

from recipe.core.settings import Settings

PROMPT = 40  # tokens of a question


def read_ahead(folder: Path) -> None:
    """Ask the kernel to read the model's weights, if half of the free memory holds them."""
    files = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    if 2 * sum(path.stat().st_size for path in files) < _available_bytes():
        threading.Thread(target=_read_ahead, args=(files,), daemon=True).start()


def _read_ahead(files: List[Path]) -> None:
    for path in files:
        with contextlib.suppress(OSError), path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _available_bytes() -> int:
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as stream:
        for line in stream:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def compile_kernels(settings: Settings, model: Path) -> None:
    """Compile the kernels of the training step and of the answers; does nothing without a GPU.

    `model`: the base model's folder; for models other than InternLM2 nothing is compiled.
    """
    import torch

    if not torch.cuda.is_available():
        return
    try:
        _run_one_layer(settings, model)
    finally:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _run_one_layer(settings: Settings, model: Path) -> None:
    """A training step and an answer of one layer with the model's widths."""
    import torch

    from recipe.training import bench
    from recipe.xtuner import step_choice

    shapes = _shapes(model)
    if not shapes or not step_choice.has_fast(settings):
        return
    speed = step_choice.speed(settings)
    if speed == "stock":
        return
    batch, length = step_choice.batch_shape(settings)
    kept = speed == "fast" and not step_choice.checkpointing(settings, batch * length)
    dtype = torch.bfloat16 if step_choice.dtype(settings) == "bf16" else torch.float16
    layer = bench.build_model("kept" if kept else speed, shapes, settings, "cuda", dtype)
    ids = torch.randint(5, shapes["vocab_size"], (batch, length), device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        loss = layer(dict(input_ids=ids, attention_mask=ids.ne(0), labels=ids.clone()), mode="loss")["loss"]
    loss.backward()
    _answer(layer.llm, settings, ids)


def _shapes(model: Path) -> Dict[str, int]:
    """The model's sizes for one layer; {} if it is not here, or not InternLM2."""
    from recipe.base_model.model_code import is_internlm2, read_config
    from recipe.training import bench

    if not is_internlm2(model):
        return {}
    config = read_config(model)
    return {**{name: config[name] for name in bench.SHAPES_7B if name in config}, "num_hidden_layers": 1}


def _answer(llm: Any, settings: Settings, ids: Any) -> None:
    """One token of answers to as many questions as the decoder takes at a time."""
    import torch

    from recipe.inference import chat_hook, decoding

    asked = settings.train.evaluation_inputs
    rows = min(chat_hook.ROWS, asked if isinstance(asked, int) else len(settings.train.questions) or 1)
    if decoding.obstacle(llm) or not rows:
        return
    prompts = [ids[0, :PROMPT].tolist()] * rows
    with torch.no_grad():
        decoder = decoding.Decoder(llm)
        if not decoder.fault(prompts):
            decoder.generate(prompts, settings.train.evaluation_max_new_tokens or 300, [], is_complete=lambda *_: True)
