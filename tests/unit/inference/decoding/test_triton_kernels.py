"""Triton's kernels on a machine without a GPU: their results in Triton's interpreter, and that they compile."""

import json
import subprocess
import sys

import pytest

from recipe.training.fast import nf4
from support.command import ROOT

pytestmark = pytest.mark.skipif(not nf4.HAS_KERNEL, reason="Triton 3 is in the variant cu13")


@pytest.mark.slow
def test_results_are_those_of_pytorch():
    words = [sys.executable, "-W", "ignore", "-m", "support.triton_kernels"]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=str(ROOT), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # One rounding to the type is 2^-24 and 2^-11. bf16 is cut off by Triton's interpreter, where a GPU rounds: 2^-8.
    assert found["fp32"] < 1e-6
    assert found["fp16"] < 1e-3
    assert found["bf16"] < 2e-2


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_kernels_compile_for_cards_that_are_not_here(capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from recipe.inference.decoding import triton_kernels

    def build(kernel, constants, warps=4, **types):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
        aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name][0] in "*i"}
        places = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert made.asm["cubin"]

    half = dict.fromkeys(("x", "y", "weight", "out", "fused", "cos", "sin", "query", "keys", "values"), "*bf16")
    wide = dict.fromkeys(("parts", "tops", "totals"), "*fp32")
    positions, size = {"positions": "*i64"}, dict(SIZE=128, KEYS=triton_kernels.KEYS)
    build(triton_kernels._add_norm, dict(ADD=True, BLOCK=4096), 8, **half, epsilon="fp32")
    build(triton_kernels._rotate, dict(GROUP=4, ROWS=8, HALF=64), **half, **positions)
    build(triton_kernels._attend, dict(GROUP=4, ROWS=16, **size), **half, **wide, **positions, scale="fp32")
    build(triton_kernels._combine, dict(SPLITS=16, **size), **half, **wide, **positions)
