"""Tries what training needs of the environment, without a model: `docker/runtime/host selftest [TRIAL …]`.

The doctor and `just image check` ask it, in the image too. A line for each trial: status, name, what was found and the
remedy, with tabs between. Exit code 3 if one says stop.
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

from lines import JUST, ok, stop, warning

AGAIN = f"{JUST} image" if os.environ.get("RECIPE_ENV") else "remove the environment's folder, which makes it again"
STOCK = "train.speed=stock trains without it"


def check_bitsandbytes(torch):
    """Its library for this PyTorch's CUDA, which needs CUDA's own by names that PyTorch's wheels may not carry."""
    name = f"libbitsandbytes_cuda{torch.version.cuda.replace('.', '')}.so"
    try:
        ctypes.CDLL(str(Path(find_spec("bitsandbytes").origin).with_name(name)))
    except OSError as error:
        return stop("bitsandbytes", f"its CUDA library does not load: {error}", AGAIN)
    return ok("bitsandbytes", f"its {name} finds CUDA's libraries")


def check_compiler(torch):
    """Triton's: a warning, for the fast step does without."""
    from recipe.core import compiler

    if find_spec("liger_kernel") is None:
        return ok("compiler", "not needed: nothing in this variant is compiled here")
    if compiler.fault():
        return warning("compiler", f"{compiler.fault()}: {compiler.LOST}", compiler.remedy())
    return ok("compiler", "a C compiler and Python's headers, for Triton")


def check_kernels(torch):
    """bitsandbytes' 4-bit layer and the fast step's kernels on the card, against the same on the processor."""
    if not torch.cuda.is_available():
        return ok("kernels", "not tried: PyTorch sees no card")
    import bitsandbytes

    from recipe.training.fast import kernels, nf4

    kind = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    torch.manual_seed(0)
    try:
        plain = torch.randn(64, 256)
        packed = bitsandbytes.nn.Params4bit(plain.to(kind), requires_grad=False, quant_type="nf4").cuda()
        full = nf4.full(packed, kind)
        norm = torch.nn.Module()
        norm.weight, norm.variance_epsilon = torch.ones(256, dtype=kind, device="cuda"), 1e-6
        on_card = kernels.rms_norm(full, norm).float().cpu()
        norm.weight = norm.weight.cpu()
        off = (on_card - kernels.rms_norm(full.cpu(), norm).float()).abs().max().item()
        lost = (full.float().cpu() - plain).abs().max().item()
    except Exception as error:  # whatever it is, training would meet it after the model is loaded
        return stop("kernels", f"a kernel fails on the card: {type(error).__name__}: {str(error)[:300]}", STOCK)
    if off > 0.1 or lost > 1:
        return stop("kernels", f"the card computes something else: off by {off:.3f}, 4-bit by {lost:.3f}", STOCK)
    return ok("kernels", f"4-bit weights and the fast step's kernels run on {torch.cuda.get_device_name()}")


def check_deepspeed(torch):
    """Its import, where there is no card with one that is only said to be there: it looks for more then."""
    if not torch.cuda.is_available():
        _pretend_card(torch)
    try:
        import deepspeed
    except Exception as error:
        found = f"DeepSpeed cannot be imported: {type(error).__name__}: {error}"
        return stop("deepspeed", found, 'train.deepspeed="" trains without it')
    return ok("deepspeed", f"{deepspeed.__version__} can be imported where there is a card")


def _pretend_card(torch):
    class Properties:
        major, minor, name, total_memory, multi_processor_count = 9, 0, "none", 1 << 36, 132

    cuda = torch.cuda
    cuda.is_available, cuda.device_count, cuda.current_device = lambda: True, lambda: 1, lambda: 0
    cuda.get_device_properties = lambda *which: Properties
    cuda.get_device_capability = lambda *which: (9, 0)
    cuda.device = lambda *which: contextlib.nullcontext()


# The last pretends that there is a card.
TRIALS = {
    "bitsandbytes": check_bitsandbytes,
    "compiler": check_compiler,
    "kernels": check_kernels,
    "deepspeed": check_deepspeed,
}


def main(names):
    """Run the trials of these names, or all; the exit code."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        import torch

        found = [trial(torch) for name, trial in TRIALS.items() if name in (names or TRIALS)]
    for line in found:
        print("\t".join(" ".join(part.split()) for part in (line.status, line.name, line.found, line.remedy)))
    return 3 if any(line.status == "stop" for line in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
