"""Dequantizes bitsandbytes' NF4 weights, double quantization included, in one pass over memory.

bitsandbytes needs two kernels and a copy of the scales; with Triton 3.0 and newer one kernel does it. Without Triton
bitsandbytes is used. Before 0.44 it launches its kernels on CUDA's legacy stream, whatever stream is current
(bitsandbytes#1308). That is also PyTorch's default stream, so training, evaluation and chat are correct. CUDA graphs
are not: the kernel runs during the capture and is missing in every replay. Neither are PyTorch's other streams, which
do not wait for it.
"""

import functools
import re
from importlib import metadata
from typing import Any

import torch

from recipe.core import compiler
from recipe.core.translation import mark

try:
    import triton
    import triton.language as tl

    HAS_KERNEL = hasattr(tl, "interleave")
except ImportError:  # PyTorch without Triton, and on every CPU
    HAS_KERNEL = False

OLD_BITSANDBYTES = mark("bitsandbytes {version} is older than 0.44: its kernels are missing in a replay")
OTHER_KERNEL = mark("bitsandbytes dequantizes the 4-bit weights, not our Triton kernel")
BLOCK = 1024  # bytes, of two values each, per program of the kernel
SCALE_BLOCK = 64  # values per scale: bitsandbytes' block size

if HAS_KERNEL:

    @triton.jit
    def _kernel(
        packed, scale, scale_code, scale_scale, offset, code, out, count, NESTED: tl.constexpr, BLOCK: tl.constexpr
    ):
        first = tl.program_id(0).to(tl.int64) * BLOCK
        at = first + tl.arange(0, BLOCK)
        there = at < count
        pair = tl.load(packed + at, mask=there, other=0).to(tl.int32)
        block = at // 32
        if NESTED:
            number = tl.load(scale + block, mask=there, other=0).to(tl.int32)
            wide = tl.load(scale_scale + block // 256, mask=there, other=0.0)
            factor = tl.load(scale_code + number, mask=there, other=0.0) * wide + tl.load(offset)
        else:
            factor = tl.load(scale + block, mask=there, other=0.0)
        high = tl.load(code + (pair >> 4), mask=there, other=0.0) * factor
        low = tl.load(code + (pair & 15), mask=there, other=0.0) * factor
        values = tl.interleave(high, low).to(out.dtype.element_ty)
        to = 2 * first + tl.arange(0, 2 * BLOCK)
        tl.store(out + to, values, mask=to < 2 * count)


def is_quantized(weight: torch.Tensor) -> bool:
    """Whether `weight` belongs to one of bitsandbytes' 4-bit layers."""
    return getattr(weight, "quant_state", None) is not None


@functools.lru_cache(maxsize=None)
def uses_legacy_stream() -> bool:
    """Whether bitsandbytes' kernels ignore the current stream."""
    release = re.findall(r"\d+", metadata.version("bitsandbytes"))
    return tuple(map(int, release[:2])) < (0, 44)


def uses_own_kernel(weight: Any) -> bool:
    """Whether our kernel dequantizes this 4-bit weight; otherwise bitsandbytes does."""
    state = weight.quant_state
    inner = state.state2 if state.nested else None
    fits = state.quant_type == "nf4" and state.blocksize == SCALE_BLOCK and (inner is None or inner.blocksize == 256)
    return HAS_KERNEL and weight.is_cuda and fits and not compiler.fault()


def graph_obstacle(weight: Any) -> str:
    """Why a step that reads `weight` cannot be recorded as a CUDA graph, in English; "" if it can."""
    if not is_quantized(weight):
        return ""
    if uses_legacy_stream():
        return OLD_BITSANDBYTES.format(version=metadata.version("bitsandbytes"))
    return "" if uses_own_kernel(weight) else OTHER_KERNEL


def dequantize(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """The 4-bit `weight` as a (rows, columns) tensor of `dtype` on its device."""
    state = weight.quant_state
    inner = state.state2 if state.nested else None
    if not uses_own_kernel(weight):
        import bitsandbytes

        if weight.is_cuda and uses_legacy_stream() and torch.cuda.current_stream() != torch.cuda.default_stream():
            raise RuntimeError("bitsandbytes before 0.44 dequantizes 4-bit weights only on the default stream.")
        return bitsandbytes.functional.dequantize_4bit(weight.data, state).to(dtype).reshape(state.shape)
    out = torch.empty(tuple(state.shape), dtype=dtype, device=weight.device)
    nested = (state.absmax, inner.code, inner.absmax, state.offset) if inner is not None else (state.absmax,) * 4
    count = weight.numel() * weight.element_size()
    grid = (triton.cdiv(count, BLOCK),)
    with torch.cuda.device(weight.device):
        _kernel[grid](weight.data, *nested, state.code, out, count, NESTED=inner is not None, BLOCK=BLOCK, num_warps=4)
    return out
