"""A view of a loaded InternLM2, with or without PEFT's wrapper, and what keeps it from being used here."""

from typing import Any, Tuple

import torch

from recipe.inference.decoding import operations
from recipe.inference.decoding.layers import Layer, Linear
from recipe.training.fast import nf4


class Network:
    """The parts of the model, with LoRA's matrices as they are now, in the dtype of the computation."""

    def __init__(self, model: Any) -> None:
        self.causal_lm = bare(model)
        inner = self.causal_lm.model
        self.embedding, self.norm = inner.tok_embeddings, inner.norm
        self.dtype, self.device = self.embedding.weight.dtype, self.norm.weight.device
        self.layers = [Layer(module, self.dtype) for module in inner.layers]
        self.output = Linear(self.causal_lm.output, self.dtype)
        self.most = int(self.causal_lm.config.max_position_embeddings)

    def zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def angles(self, capacity: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotary embedding, each (capacity, head_dim)."""
        rotary = self.causal_lm.model.layers[0].attention.rotary_emb
        cos, sin = rotary(self.zeros(1, 1, 1, self.layers[0].size), seq_len=capacity)
        return cos.to(self.dtype).contiguous(), sin.to(self.dtype).contiguous()

    def has_lora(self) -> bool:
        return self.layers[0].wqkv.has_lora()

    def can_record(self, batch: int) -> bool:
        """Whether a token of `batch` rows can be recorded as a CUDA graph."""
        if self.device.type != "cuda":
            return False
        weight = self.layers[0].wqkv.base.weight
        return not nf4.is_quantized(weight) or operations.can_record_nf4(weight, batch)


def bare(model: Any) -> Any:
    """The causal language model without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def obstacle(model: Any) -> str:
    """Why `Decoder` cannot answer for this model; "" if it can."""
    if type(bare(model)).__name__ != "InternLM2ForCausalLM":
        return f"{type(bare(model)).__name__} is not InternLM2"
    if len(getattr(model, "peft_config", {})) > 1:
        return "several adapters"
    dtype = bare(model).model.tok_embeddings.weight.dtype
    for name, module in bare(model).named_modules():
        if "Linear" not in type(module).__name__ or "lora_" in name or hasattr(module, "base_layer"):
            continue
        weight = module.weight
        if weight.numel() == 0 or (weight.dtype != dtype and not nf4.is_quantized(weight)):
            return f"{name} has weights of {weight.dtype}, the embeddings {dtype}"
    return ""
