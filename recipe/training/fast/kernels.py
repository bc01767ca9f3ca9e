"""The small operations between the matrix products: liger-kernel's on a GPU if it is installed and compiles, else
PyTorch's.
"""

from typing import Any, Tuple

import torch
from torch.nn import functional as F

from recipe.core import compiler
from recipe.training.fast.attention import attention  # noqa: F401

try:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    LIGER = True
except ImportError:
    LIGER = False


def _has_kernels(x: torch.Tensor) -> bool:
    return LIGER and x.is_cuda and not compiler.fault()


def rms_norm(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """RMSNorm of `x` (…, hidden), normalized in fp32, times the weight of `norm`."""
    if _has_kernels(x):
        return LigerRMSNormFunction.apply(x, norm.weight, norm.variance_epsilon, 0.0, "llama", False)
    return _RmsNorm.apply(x, norm.weight, norm.variance_epsilon)


class _RmsNorm(torch.autograd.Function):
    """Saves only its input for the backward pass, like liger-kernel's; autograd would save fp32 copies."""

    @staticmethod
    def forward(ctx, x, weight, epsilon):
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        wide = (grad * weight).float()
        wide = wide - normed * (wide * normed).mean(-1, keepdim=True)
        return wide.mul_(scale).to(x.dtype), None, None


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up."""
    return LigerSiLUMulFunction.apply(gate, up) if _has_kernels(gate) else _SwiGlu.apply(gate, up)


class _SwiGlu(torch.autograd.Function):
    """Saves only its two inputs for the backward pass."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of query and key, each (batch, heads, tokens, head_dim); cos, sin: (tokens, head_dim)."""
    if _has_kernels(query):
        return LigerRopeFunction.apply(query, key, cos[None], sin[None])
    return query * cos + _turned(query) * sin, key * cos + _turned(key) * sin


def _turned(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)
