"""The decoder's Triton kernels in Triton's interpreter, on a CPU, beside PyTorch: prints the largest differences."""

import json
import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are defined

import torch

from recipe.inference.decoding import operations, triton_kernels
from recipe.training.fast import kernels


def apart(got, wanted):
    return float((got.float() - wanted.float()).norm() / wanted.float().norm())


def norms(dtype):
    x, y, weight = (torch.randn(size, dtype=dtype) for size in ((3, 96), (3, 96), (96,)))
    norm = SimpleNamespace(weight=weight, variance_epsilon=1e-5)
    total, normed = operations.add_norm(x, y, norm)
    copy = x.clone()
    yield triton_kernels.add_norm(copy, y, weight, 1e-5), normed
    yield copy, total
    yield triton_kernels.add_norm(x, None, weight, 1e-5), kernels.rms_norm(x, norm)


def attention(dtype):
    batch, groups, group, size, capacity = 2, 2, 4, 16, 384
    angles = torch.rand(capacity, size // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    fused = torch.randn(batch, groups * (group + 2) * size, dtype=dtype)
    positions = torch.tensor([5, 300])
    caches = [torch.randn(batch, groups, capacity, size, dtype=dtype) for _ in range(2)]
    copies = [one.clone() for one in caches]
    query = operations.rotate(fused, cos, sin, positions, *caches)
    ours = triton_kernels.rotate(fused, cos, sin, positions, *copies)
    yield ours, query
    yield from zip(copies, caches)
    if dtype != torch.bfloat16:  # of which the interpreter computes no products
        yield triton_kernels.attend(ours, *copies, positions), operations.attend(query, *caches, positions)


def four_bits(dtype):
    out, inner, rank = 5, 64 * 10, 5
    code, packed = torch.linspace(-1, 1, 16), torch.randint(0, 256, (out * inner // 2, 1), dtype=torch.uint8)
    blocks = out * inner // 64
    for nested in (False, True):
        state = SimpleNamespace(shape=torch.Size((out, inner)), nested=nested, code=code, absmax=torch.rand(blocks))
        scales = state.absmax
        if nested:
            state.absmax, state.offset = torch.randint(0, 256, (blocks,), dtype=torch.uint8), torch.tensor(0.3)
            state.state2 = SimpleNamespace(code=torch.rand(256), absmax=torch.rand((blocks + 255) // 256))
            wide = state.state2.absmax.repeat_interleave(256)[:blocks]
            scales = state.state2.code[state.absmax.long()] * wide + state.offset
        pairs = packed.view(-1).long()
        values = torch.stack([code[pairs >> 4], code[pairs & 15]], 1).view(-1) * scales.repeat_interleave(64)
        weight = SimpleNamespace(data=packed, quant_state=state)
        for rows in (1, 4):
            x, low, b = (torch.randn(size).to(dtype) for size in ((rows, inner), (rows, rank), (out, rank)))
            wanted = x.float() @ values.view(out, inner).t()
            if rows == 1:
                yield triton_kernels.nf4_product(x, weight), wanted
            yield triton_kernels.nf4_product(x, weight, (low, b, 0.5)), wanted + 0.5 * low.float() @ b.float().t()


if __name__ == "__main__":
    torch.manual_seed(0)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    print(json.dumps({
        name: max(apart(*pair) for check in (norms, attention, four_bits) for pair in check(dtype))
        for name, dtype in dtypes.items()
    }))  # fmt: skip
