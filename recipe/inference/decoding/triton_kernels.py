"""Triton kernels of one token; operations.py says when they are used, and has the same in PyTorch.

Import this module only where Triton is installed.
"""

from typing import Optional

import torch
import triton
import triton.language as tl

KEYS = 128  # keys per program of the attention kernel
GROUP_ROWS = 16  # rows of the attention kernel's products, the least that tensor cores take


@triton.jit
def _add_norm(x, y, weight, out, size, epsilon, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * size
    at = tl.arange(0, BLOCK)
    there = at < size
    value = tl.load(x + row + at, mask=there, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(y + row + at, mask=there, other=0.0).to(tl.float32)
        rounded = value.to(x.dtype.element_ty)
        tl.store(x + row + at, rounded, mask=there)
        value = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / size + epsilon)
    normed = (value * scale).to(x.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + at, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row + at, (normed * factor).to(out.dtype.element_ty), mask=there)


def add_norm(x: torch.Tensor, y: Optional[torch.Tensor], weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Add y to x in place; return RMSNorm of the sum. Both are (rows, hidden)."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    other = x if y is None else y
    _add_norm[(x.shape[0],)](
        x, other, weight, out, x.shape[1], epsilon, ADD=y is not None, BLOCK=block, num_warps=8 if block > 1024 else 4
    )
    return out


@triton.jit
def _rotate(
    fused, cos, sin, positions, query, keys, values, kv_heads, capacity,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    batch, head = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + batch)
    rows, at = tl.arange(0, ROWS)[:, None], tl.arange(0, HALF)[None, :]
    there = (rows < GROUP + 2) & (at < HALF)
    place = ((batch * kv_heads + head) * (GROUP + 2) + rows) * (2 * HALF) + at
    low = tl.load(fused + place, mask=there, other=0.0).to(tl.float32)
    high = tl.load(fused + place + HALF, mask=there, other=0.0).to(tl.float32)
    angle = position * (2 * HALF) + at
    c, s = tl.load(cos + angle).to(tl.float32), tl.load(sin + angle).to(tl.float32)
    turns = rows <= GROUP  # the value is not rotated
    new_low = tl.where(turns, low * c - high * s, low).to(query.dtype.element_ty)
    new_high = tl.where(turns, high * c + low * s, high).to(query.dtype.element_ty)
    to = ((batch * kv_heads + head) * GROUP + rows) * (2 * HALF) + at
    tl.store(query + to, new_low, mask=there & (rows < GROUP))
    tl.store(query + to + HALF, new_high, mask=there & (rows < GROUP))
    slot = ((batch * kv_heads + head).to(tl.int64) * capacity + position) * (2 * HALF) + at + 0 * rows
    tl.store(keys + slot, new_low, mask=there & (rows == GROUP))
    tl.store(keys + slot + HALF, new_high, mask=there & (rows == GROUP))
    tl.store(values + slot, new_low, mask=there & (rows == GROUP + 1))
    tl.store(values + slot + HALF, new_high, mask=there & (rows == GROUP + 1))


def rotate(
    fused: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor,
    values: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Rotate queries and keys of wqkv's output (batch, fused), store keys and values at `positions` (batch); return the
    queries (batch, kv_heads, group, head_dim).
    """
    batch, kv_heads, capacity, size = keys.shape
    group = fused.shape[1] // (kv_heads * size) - 2
    query = fused.new_empty(batch, kv_heads, group, size)
    _rotate[(batch, kv_heads)](
        fused, cos, sin, positions, query, keys, values, kv_heads, capacity,
        GROUP=group, ROWS=triton.next_power_of_2(group + 2), HALF=size // 2, num_warps=4,
    )  # fmt: skip
    return query


@triton.jit
def _attend(
    query, keys, values, positions, parts, tops, totals, scale, kv_heads, capacity, splits,
    GROUP: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    batch, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + batch) + 1
    if split * KEYS < length:
        pair = batch * kv_heads + head
        rows, at, number = tl.arange(0, ROWS), tl.arange(0, SIZE), split * KEYS + tl.arange(0, KEYS)
        seen, asked = number < length, rows < GROUP
        place = (pair * GROUP + rows)[:, None] * SIZE + at[None, :]
        q = tl.load(query + place, mask=asked[:, None], other=0.0)
        first = pair.to(tl.int64) * capacity * SIZE
        k = tl.load(keys + first + number[None, :] * SIZE + at[:, None], mask=seen[None, :], other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, k) * scale, float("-inf"))
        top = tl.max(scores, axis=1)
        weights = tl.exp(scores - top[:, None])
        v = tl.load(values + first + number[:, None] * SIZE + at[None, :], mask=seen[:, None], other=0.0)
        out = tl.dot(weights.to(v.dtype), v)
        row = (pair * GROUP + rows) * splits + split
        tl.store(parts + row[:, None] * SIZE + at[None, :], out, mask=asked[:, None])
        tl.store(tops + row, top, mask=asked)
        tl.store(totals + row, tl.sum(weights, axis=1), mask=asked)


@triton.jit
def _combine(
    parts, tops, totals, positions, out, heads, splits, SIZE: tl.constexpr, KEYS: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0)
    count = tl.load(positions + row // heads) // KEYS + 1
    at, several = tl.arange(0, SIZE), tl.arange(0, SPLITS)
    best, total = tl.full((), float("-inf"), tl.float32), tl.full((), 0.0, tl.float32)
    mixed = tl.zeros((SIZE,), tl.float32)
    for first in range(0, count, SPLITS):
        number = first + several
        there = number < count
        top = tl.load(tops + row * splits + number, mask=there, other=float("-inf"))
        higher = tl.maximum(best, tl.max(top, axis=0))
        weights, kept = tl.exp(top - higher), tl.exp(best - higher)
        part = tl.load(parts + (row * splits + number)[:, None] * SIZE + at[None, :], mask=there[:, None], other=0.0)
        mixed = mixed * kept + tl.sum(part * weights[:, None], axis=0)
        total = total * kept + tl.sum(tl.load(totals + row * splits + number, mask=there, other=0.0) * weights, axis=0)
        best = higher
    tl.store(out + row * SIZE + at, (mixed / total).to(out.dtype.element_ty))


def attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Attention of one query per head to all keys up to its position; returns (batch, hidden)."""
    batch, kv_heads, capacity, size = keys.shape
    group, splits = query.shape[2], triton.cdiv(capacity, KEYS)
    heads = kv_heads * group
    parts = torch.empty(batch, heads, splits, size, dtype=torch.float32, device=query.device)
    tops, totals = parts.new_empty(batch, heads, splits), parts.new_empty(batch, heads, splits)
    _attend[(batch, kv_heads, splits)](
        query, keys, values, positions, parts, tops, totals, size**-0.5, kv_heads, capacity, splits,
        GROUP=group, ROWS=max(GROUP_ROWS, triton.next_power_of_2(group)), SIZE=size, KEYS=KEYS, num_warps=4,
    )  # fmt: skip
    out = query.new_empty(batch, heads * size)
    _combine[(batch * heads,)](
        parts, tops, totals, positions, out, heads, splits, SIZE=size, KEYS=KEYS, SPLITS=16, num_warps=4
    )
    return out
