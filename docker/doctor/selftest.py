"""Tests the environment for training, without a model: `docker/runtime/host selftest [NAME …]`.

The doctor and `just image check` run it, also in the image. Prints a line for each test: status, name, finding and
remedy, separated by tabs. Exit code 3 if one says stop.
"""

import contextlib
import ctypes
import io
import logging
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Sequence

from lines import JUST, REMOVE, Line, ok, stop, warning

from recipe.core.translation import _, mark, prepare_streams, stored

STOCK = mark("train.speed=stock trains without it")


def check_bitsandbytes(torch: Any) -> Line:
    """Loads its library for this CUDA: it needs CUDA's libraries by names that PyTorch's wheels may not have."""
    name = f"libbitsandbytes_cuda{torch.version.cuda.replace('.', '')}.so"
    try:
        package = find_spec("bitsandbytes")
        ctypes.CDLL(str(Path(package.origin or "" if package else "").with_name(name)))
    except OSError as error:
        again = f"{JUST} image" if os.environ.get("RECIPE_ENV") else _(REMOVE)
        return stop("bitsandbytes", _("its CUDA library does not load: {error}", error=error), again)
    return ok("bitsandbytes", _("its {file} finds CUDA's libraries", file=name))


def check_compiler(torch: Any) -> Line:
    """Only warns, as the fast step also works without Triton."""
    from recipe.core import compiler

    if find_spec("liger_kernel") is None:
        return ok("compiler", _("not needed: nothing in this variant is compiled here"))
    if compiler.fault():
        slower = _(
            "{fault}: the fast step uses PyTorch's own operations, which are slower", fault=stored(compiler.fault())
        )
        return warning("compiler", slower, compiler.remedy())
    return ok("compiler", _("a C compiler and Python's headers, for Triton"))


def check_kernels(torch: Any) -> Line:
    """Compares bitsandbytes' 4-bit layer and the fast step's kernels on the card with the processor's results."""
    if not torch.cuda.is_available():
        return ok("kernels", _("not tested: PyTorch sees no card"))
    import bitsandbytes

    from recipe.training.fast import kernels, nf4

    kind = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    torch.manual_seed(0)
    try:
        plain = torch.randn(64, 256)
        packed = bitsandbytes.nn.Params4bit(plain.to(kind), requires_grad=False, quant_type="nf4").cuda()
        full = nf4.dequantize(packed, kind)
        norm = torch.nn.Module()
        norm.weight, norm.variance_epsilon = torch.ones(256, dtype=kind, device="cuda"), 1e-6
        on_card = kernels.rms_norm(full, norm).float().cpu()
        norm.weight = norm.weight.cpu()
        off = (on_card - kernels.rms_norm(full.cpu(), norm).float()).abs().max().item()
        lost = (full.float().cpu() - plain).abs().max().item()
    except Exception as error:  # any error would also end training, after the model is loaded
        what = f"{type(error).__name__}: {str(error)[:300]}"
        return stop("kernels", _("a kernel fails on the card: {error}", error=what), _(STOCK))
    if off > 0.1 or lost > 1:
        wrong = _("the card's results are wrong: off by {off:.3f}, 4-bit by {lost:.3f}", off=off, lost=lost)
        return stop("kernels", wrong, _(STOCK))
    card = torch.cuda.get_device_name()
    return ok("kernels", _("4-bit weights and the fast step's kernels run on {card}", card=card))


def check_deepspeed(torch: Any) -> Line:
    """Imports it, with a pretended card where there is none: with a card it needs more."""
    if not torch.cuda.is_available():
        _pretend_card(torch)
    try:
        import deepspeed
    except Exception as error:
        found = _("DeepSpeed cannot be imported: {error}", error=f"{type(error).__name__}: {error}")
        return stop("deepspeed", found, _('train.deepspeed="" trains without it'))
    return ok("deepspeed", _("{version} can be imported where there is a card", version=deepspeed.__version__))


def _pretend_card(torch: Any) -> None:
    class Properties:
        major, minor, name, total_memory, multi_processor_count = 9, 0, "none", 1 << 36, 132

    cuda = torch.cuda
    cuda.is_available, cuda.device_count, cuda.current_device = lambda: True, lambda: 1, lambda: 0
    cuda.get_device_properties = lambda *which: Properties
    cuda.get_device_capability = lambda *which: (9, 0)
    cuda.device = lambda *which: contextlib.nullcontext()


# The last one may pretend that there is a card.
TESTS = {
    "bitsandbytes": check_bitsandbytes,
    "compiler": check_compiler,
    "kernels": check_kernels,
    "deepspeed": check_deepspeed,
}


def main(names: Sequence[str]) -> int:
    """Run the tests of these names, or all; returns the exit code."""
    prepare_streams()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import torch

        found = [test(torch) for name, test in TESTS.items() if name in (names or TESTS)]
    for line in found:
        print("\t".join(" ".join(part.split()) for part in (line.status, line.name, line.found, line.remedy)))
    return 3 if any(line.status == "stop" for line in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
