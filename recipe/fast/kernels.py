"""The small operations between the matrix products: liger-kernel's on a GPU where it is installed and can be compiled,
else PyTorch's.
"""

from typing import Any, Tuple

import torch
from torch.nn import functional as F

from . import compiler

try:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    LIGER = True
except ImportError:
    LIGER = False

GROUPED = "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or "")  # from PyTorch 2.5 on


def _has_kernels(x: torch.Tensor) -> bool:
    return LIGER and x.is_cuda and not compiler.fault()


def rms_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """`x` (…, hidden) by the reciprocal of its root mean square, that in fp32, times the norm's weight."""
    if _has_kernels(x):
        return LigerRMSNormFunction.apply(x, norm.weight, norm.variance_epsilon, 0.0, "llama", False)
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * (wide * scale).to(x.dtype)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up."""
    return LigerSiLUMulFunction.apply(gate, up) if _has_kernels(gate) else F.silu(gate) * up


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Query and key, each (batch, heads, tokens, head_dim), turned to their positions; cos, sin: (tokens, head_dim)."""
    if _has_kernels(query):
        return LigerRopeFunction.apply(query, key, cos[None], sin[None])
    return query * cos + _turned(query) * sin, key * cos + _turned(key) * sin


def _turned(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention, (batch, heads, tokens, head_dim); key and value may have fewer heads, one for a group.

    No mask: rows are padded on the right alone, and what comes later is not seen.
    """
    if GROUPED and query.shape[1] != key.shape[1]:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    group = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(group, dim=1) if group > 1 else one for one in (key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)
