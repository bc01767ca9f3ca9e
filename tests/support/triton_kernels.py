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
    for size, outlier in ((96, 1.0), (4096, 200.0)):  # a trained model has a few values a hundred times the rest
        x, y, weight = (torch.randn(shape, dtype=dtype) for shape in ((3, size), (3, size), (size,)))
        x[:, 7] *= outlier
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


if __name__ == "__main__":
    torch.manual_seed(0)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    print(json.dumps({
        name: max(apart(*pair) for check in (norms, attention) for pair in check(dtype))
        for name, dtype in dtypes.items()
    }))  # fmt: skip
