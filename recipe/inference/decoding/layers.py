"""InternLM2's layers for answers: the prompt at once, then one token of each row at a time. No gradients."""

from typing import Any, Tuple

import torch
from torch.nn import functional as F

from recipe.inference.decoding import operations
from recipe.training.fast import kernels, nf4
from recipe.training.fast.layers import LoraLinear


class Linear(LoraLinear):
    """A view of a linear layer, with LoRA's matrices in the dtype of the computation."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__(layer)
        self.layer = layer
        self.lora = tuple(one.detach().to(dtype) for one in self.parameters())

    def has_lora(self) -> bool:
        """Whether LoRA is there and switched on (`disable_adapter` switches it off)."""
        return bool(self.lora) and not self.layer.disable_adapters and not self.layer.merged

    def __call__(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        """x (rows, in) → (rows, out)."""
        weight, lora = self.base.weight, None
        if self.has_lora():
            lora = (x @ self.lora[0].t(), self.lora[1], self.scale)
        if nf4.is_quantized(weight):
            out = operations.nf4_product(x, weight, lora)
        else:
            out = F.linear(x, weight)
            if lora:
                out.addmm_(lora[0], lora[1].t(), alpha=lora[2])
        return out if self.base.bias is None else out + self.base.bias


class Layer:
    """A view of one decoder layer."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        attention, mlp = module.attention, module.feed_forward
        self.attention_norm, self.mlp_norm = module.attention_norm, module.ffn_norm
        self.kv_heads, self.size = attention.num_key_value_heads, attention.head_dim
        self.wqkv, self.wo = Linear(attention.wqkv, dtype), Linear(attention.wo, dtype)
        self.w1, self.w3, self.w2 = Linear(mlp.w1, dtype), Linear(mlp.w3, dtype), Linear(mlp.w2, dtype)

    def read(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """The whole prompts: x (batch, tokens, hidden), padded on the right, so that no token sees padding. The first
        `tokens` of keys and values (batch, kv_heads, capacity, head_dim) are filled.
        """
        batch, tokens, hidden = x.shape
        fused = self.wqkv(kernels.rms_norm(x, self.attention_norm).view(-1, hidden))
        fused = fused.view(batch, tokens, self.kv_heads, -1, self.size)
        query = fused[..., :-2, :].reshape(batch, tokens, -1, self.size).transpose(1, 2)
        key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
        query, key = kernels.rotate(query, key, cos, sin)
        keys[:, :, :tokens], values[:, :, :tokens] = key, value
        mixed = kernels.attention(query, key, value).transpose(1, 2).reshape(-1, hidden)
        x = x + self.wo(mixed).view(x.shape)
        h = kernels.rms_norm(x, self.mlp_norm).view(-1, hidden)
        return x + self.w2(kernels.swiglu(self.w1(h), self.w3(h))).view(x.shape)

    def step(
        self, x: torch.Tensor, y: Any, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor,
        keys: torch.Tensor, values: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """One token of each row. x (batch, hidden); y: what the layer before adds to it, or None. Returns both anew."""
        x, h = operations.add_norm(x, y, self.attention_norm)
        query = operations.rotate(self.wqkv(h), cos, sin, positions, keys, values)
        x, h = operations.add_norm(x, self.wo(operations.attend(query, keys, values, positions)), self.mlp_norm)
        return x, self.w2(kernels.swiglu(self.w1(h), self.w3(h)))
