"""Prepares a machine for a training that is about to begin: the weights' files are read, kernels are compiled.

`python -m recipe.inference.warm_up` compiles, into Triton's cache, what training and its questions will use: it reads a
line of JSON from stdin, {"settings": the recipe's, "model": the base model's folder}. Once per model and card.
"""

import contextlib
import json
import os
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List

from recipe.core.hashing import key_of
from recipe.core.host import gpus, versions
from recipe.core.settings import Settings
from recipe.inference import loading
from recipe.xtuner import step_choice

PROMPT = 40  # tokens of a question
VOCABULARY = 4096  # no kernel depends on it, and 92,544 would take 1.5 GB


def read_ahead(folder: Path) -> None:
    """Ask the kernel to read the model's weights, if half of the free memory holds them."""
    files = [path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern)]
    if 2 * sum(path.stat().st_size for path in files) < loading.available_memory():
        threading.Thread(target=_read_ahead, args=(files,), daemon=True).start()


def _read_ahead(files: List[Path]) -> None:
    for path in files:
        with contextlib.suppress(OSError), path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def has_kernels(settings: Settings) -> bool:
    """Whether this recipe's training compiles kernels on this machine."""
    return bool(find_spec("liger_kernel") and gpus() and step_choice.has_fast(settings)) and (
        step_choice.speed(settings) != "stock"
    )


def main() -> None:
    wanted = json.loads(sys.stdin.readline() or "{}")
    if not wanted:
        return
    settings = Settings.model_validate(wanted["settings"])
    sizes = one_layer(Path(wanted["model"]))
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    compiled = cache / f"recipe-{_key(settings, sizes)}"
    if not sizes or compiled.exists() or not has_kernels(settings):
        return
    run_layer(settings, sizes)
    compiled.touch()


def one_layer(model: Path) -> Dict[str, int]:
    """The model's sizes for one layer and a small vocabulary; {} if it is not here, or not InternLM2."""
    from recipe.base_model.model_code import is_internlm2, read_config

    if not is_internlm2(model):
        return {}
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = read_config(model)
    return {**{name: config[name] for name in names}, "num_hidden_layers": 1, "vocab_size": VOCABULARY}


def _key(settings: Settings, sizes: Dict[str, int]) -> str:
    train = settings.train.model_dump(mode="json", exclude={"questions"})
    return key_of({"card": gpus()[:1], "versions": versions(), "sizes": sizes, "train": train, "lora": settings.lora.r})


def run_layer(settings: Settings, sizes: Dict[str, int], device: str = "cuda") -> None:
    """A training step and an answer of a model with these sizes."""
    import torch

    from recipe.training import bench

    batch, length = step_choice.batch_shape(settings)
    way = step_choice.way(settings, batch * length)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(step_choice.dtype(settings), torch.float32)
    layer = bench.build_model(way, sizes, settings, device, dtype)
    ids = torch.randint(5, sizes["vocab_size"], (batch, length), device=device)
    with torch.autocast(device, dtype=dtype) if device == "cuda" else contextlib.nullcontext():
        loss = layer(dict(input_ids=ids, attention_mask=ids.ne(0), labels=ids.clone()), mode="loss")["loss"]
    loss.backward()
    _answer(layer.llm, settings, ids)


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


if __name__ == "__main__":
    main()
