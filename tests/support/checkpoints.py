"""Checkpoints of random weights, as training writes them, and their adapters."""

import torch
from safetensors.torch import load_file

from benchmarks.bench_adapter import LORA
from recipe.weights import adapter


def state(seed=0, scale=1e-3):
    """A checkpoint's trained weights by XTuner's names; odd sizes, so that parts end inside of weights."""
    torch.manual_seed(seed)
    made = {}
    for number in range(3):
        module = f"llm.base_model.model.model.layers.{number}.attention.wo"
        made[f"{module}.lora_A.default.weight"] = torch.randn(3, 7 + number)
        made[f"{module}.lora_B.default.weight"] = torch.randn(11, 3) * scale
    return made


def converted(checkpoint, place, dtype="fp32"):
    figures = adapter.convert(checkpoint, place, LORA, dtype, {"base_model": "base", "base_sha256": "0"})
    return figures, load_file(str(place / "adapter_model.safetensors"))
