"""Causal attention with grouped heads: PyTorch's fused kernels where they are safe, else chunks of queries."""

import functools
import re
from typing import Any, Iterator, Tuple

import torch
from torch.nn import functional as F

VERSION = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
HAS_GROUPED = "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or "")  # from PyTorch 2.5 on
# From PyTorch 2.5 on the fused kernels are deterministic in strict mode.
IS_DETERMINISTIC = hasattr(torch.backends.cuda, "enable_cudnn_sdp")
SCORE_BYTES = 1 << 25  # bytes of fp32 scores per chunk of queries, or as many as all queries take in fp32


def restrict_kernels(deterministic: bool) -> None:
    """Switch off PyTorch's fused attention kernels where they crash, or where they are not `deterministic`.

    In PyTorch 2.0 the backward pass of flash attention fails on capability 8.6 and 8.9 with heads of 128
    (pytorch#98140), and that of memory-efficient attention reads illegal memory on Hopper (pytorch#104766).
    """
    if VERSION < (2, 1) or (deterministic and not IS_DETERMINISTIC):
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of (batch, heads, tokens, head_dim); key and value may have one head per group of query heads.

    It needs no mask: rows are padded on the right, and no token sees a later one. No path holds all scores at once.
    """
    kernel = choose_kernel(query)
    if kernel == "chunked":
        return _Chunked.apply(query, key, value)
    group = query.shape[1] // key.shape[1]
    if group == 1:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    if kernel == "grouped":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    key, value = (one[:, :, None].expand(-1, -1, group, -1, -1).reshape(query.shape) for one in (key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def choose_kernel(query: torch.Tensor) -> str:
    """How to compute attention: grouped (a fused kernel that supports groups of heads), expanded (a fused kernel that
    needs as many key heads as query heads) or chunked.
    """
    if query.device.type != "cuda":
        return "grouped" if HAS_GROUPED else "chunked"
    half = query.dtype in (torch.float16, torch.bfloat16)
    flash = torch.backends.cuda.flash_sdp_enabled() and half and _capability(query.device) >= (8, 0)
    if flash and HAS_GROUPED:
        return "grouped"
    # Memory-efficient attention works on every card, but without groups. Without it PyTorch would hold all scores.
    if VERSION >= (2, 1) and (flash or torch.backends.cuda.mem_efficient_sdp_enabled()):
        return "expanded"
    return "chunked"


@functools.lru_cache(maxsize=None)
def _capability(device: torch.device) -> Tuple[int, int]:
    return torch.cuda.get_device_capability(device)


class _Chunked(torch.autograd.Function):
    """Attention by plain matrix products, a chunk of queries at a time; the backward pass recomputes the scores.

    Deterministic: no sum depends on the order of threads.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, size = query.shape
        out = query.new_empty(batch, tokens, heads, size).transpose(1, 2)
        totals = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        for first, last in _chunks(query):
            scores = _scores(query, key, first, last)
            total = scores.logsumexp(-1, keepdim=True)
            weights = scores.sub_(total).exp_().to(query.dtype)
            out[:, :, first:last] = (weights @ value[:, :, :last]).view(batch, heads, last - first, size)
            totals[:, :, first:last] = total.view(batch, heads, last - first)
        ctx.save_for_backward(query, key, value, out, totals)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        query, key, value, out, totals = ctx.saved_tensors
        batch, heads, _, size = query.shape
        groups, scale = key.shape[1], size**-0.5
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(one, dtype=torch.float32) for one in (key, value))
        for first, last in _chunks(query):
            rows = (batch, groups, -1, size)
            upon, asked = (one[:, :, first:last].reshape(rows) for one in (grad, query))
            inner = (upon.float() * out[:, :, first:last].reshape(rows)).sum(-1, keepdim=True)
            total = totals[:, :, first:last].reshape(batch, groups, -1, 1)
            weights = _scores(query, key, first, last).sub_(total).exp_()
            of_value[:, :, :last] += weights.to(query.dtype).transpose(2, 3) @ upon
            of_scores = (upon @ value[:, :, :last].transpose(2, 3)).float().sub_(inner).mul_(weights)
            of_scores = of_scores.mul_(scale).to(query.dtype)
            of_query[:, :, first:last] = (of_scores @ key[:, :, :last]).view(batch, heads, last - first, size)
            of_key[:, :, :last] += of_scores.transpose(2, 3) @ asked
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype)


def _chunks(query: torch.Tensor) -> Iterator[Tuple[int, int]]:
    """(start, stop) of each chunk of queries."""
    batch, heads, tokens, size = query.shape
    rows = max(size, SCORE_BYTES // (4 * batch * heads * tokens))
    return ((first, min(first + rows, tokens)) for first in range(0, tokens, rows))


def _scores(query: torch.Tensor, key: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """fp32 scores of queries `first` to `last` with all keys before `last`: (batch, kv heads, group x queries, last).

    The queries of a group are rows of one product, so keys are not copied. Keys after the query score minus infinity.
    """
    batch, heads, _, size = query.shape
    asked = query[:, :, first:last].reshape(batch, key.shape[1], -1, size)
    scores = (asked @ key[:, :, :last].transpose(2, 3)).float().mul_(size**-0.5)
    later = torch.ones(last - first, last - first, dtype=torch.bool, device=query.device).triu(1)
    scores.view(batch, heads, last - first, last)[..., first:].masked_fill_(later, float("-inf"))
    return scores
