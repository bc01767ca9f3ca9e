"""The operations of one token: Triton's kernels on a GPU where Triton compiles, else PyTorch's."""

import functools
from typing import Any, Optional, Tuple

import torch
from torch.nn import functional as F

from recipe.core import compiler
from recipe.training.fast import kernels, nf4

if nf4.HAS_KERNEL:
    from recipe.inference.decoding import triton_kernels

MAX_FUSED_ROWS = 16  # up to so many bitsandbytes multiplies; for more the weight is dequantized
Low = Tuple[torch.Tensor, torch.Tensor, float]  # x·Aᵀ, B and the scale of LoRA


@functools.lru_cache(maxsize=None)
def _compiles(device: torch.device) -> bool:
    """Whether Triton compiles for this card; its products need capability 8.0."""
    return (
        nf4.HAS_KERNEL
        and device.type == "cuda"
        and not compiler.fault()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def add_norm(x: torch.Tensor, y: Optional[torch.Tensor], norm: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """(x + y, RMSNorm of it); x may be changed in place."""
    if _compiles(x.device):
        return x, triton_kernels.add_norm(x, y, norm.weight, norm.variance_epsilon)
    x = x if y is None else x + y
    return x, kernels.rms_norm(x, norm)


def rotate(
    fused: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Split wqkv's output (batch, fused), rotate, store keys and values at `positions`; returns the queries.

    cos, sin: (capacity, head_dim); keys, values: (batch, kv_heads, capacity, head_dim).
    """
    batch, kv_heads, _, size = keys.shape
    if _compiles(fused.device) and size & (size - 1) == 0:
        return triton_kernels.rotate(fused, cos, sin, positions, keys, values)
    fused = fused.view(batch, kv_heads, -1, size)
    c, s = (table[positions][:, None, None] for table in (cos, sin))
    turned = fused[:, :, :-1]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * c + torch.cat((-high, low), dim=-1) * s
    rows = torch.arange(batch, device=fused.device)
    keys[rows, :, positions] = turned[:, :, -1]
    values[rows, :, positions] = fused[:, :, -1]
    return turned[:, :, :-1]


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Attention of the queries (batch, kv_heads, group, head_dim) to all keys up to their position: (batch, hidden)."""
    size = query.shape[-1]
    if _compiles(query.device) and query.dtype != torch.float32 and size & (size - 1) == 0:
        return triton_kernels.attend(query, keys, values, positions)
    scores = (query @ keys.transpose(2, 3)).float() * size**-0.5
    later = torch.arange(keys.shape[2], device=query.device) > positions[:, None]
    weights = scores.masked_fill(later[:, None, None], float("-inf")).softmax(-1).to(query.dtype)
    return (weights @ values).reshape(query.shape[0], -1)


def nf4_product(x: torch.Tensor, weight: Any, lora: Optional[Low]) -> torch.Tensor:
    """x (rows, in) times a 4-bit weight, transposed, plus what LoRA adds."""
    if x.shape[0] <= MAX_FUSED_ROWS:
        import bitsandbytes

        out = bitsandbytes.matmul_4bit(x, weight.data.t(), quant_state=weight.quant_state)
    else:
        out = F.linear(x, nf4.dequantize(weight, x.dtype))
    return out if lora is None else out.addmm_(lora[0], lora[1].t(), alpha=lora[2])


def can_record_nf4(weight: Any, rows: int) -> bool:
    """Whether `nf4_product` runs on the current stream, as a CUDA graph needs it.

    bitsandbytes does from 0.44 on, and has a kernel for few rows of any 4-bit weight from 0.50 on.
    """
    import bitsandbytes  # noqa: F401

    fused = rows <= MAX_FUSED_ROWS and hasattr(torch.ops.bitsandbytes, "gemm_4bit")
    return fused or not nf4.graph_obstacle(weight)
