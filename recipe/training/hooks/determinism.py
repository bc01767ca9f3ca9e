"""Makes training repeat bit for bit: random numbers by iteration, deterministic algorithms."""

import hashlib
import random
from typing import Any

import numpy
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from recipe.training.fast import attention


class DeterminismHook(Hook):
    """Seeds each iteration from run seed, iteration and rank, and switches on deterministic algorithms.

    A resumed run needs no generator state: it draws the same numbers, even if evaluation drew some in between.
    """

    priority = "VERY_LOW"  # last before the forward pass

    def before_run(self, runner: Any) -> None:
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        _use_deterministic(strict=False)
        attention.restrict_kernels(deterministic=True)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        # Newer PyTorch's attention is deterministic only in strict mode: a warning does not change the kernel.
        _use_deterministic(strict=attention.IS_DETERMINISTIC)
        seed = hashlib.sha256(f"{runner.seed} {runner.iter} {get_rank()}".encode()).digest()
        random.seed(seed)
        numpy.random.seed(int.from_bytes(seed[:4], "big"))
        torch.manual_seed(int.from_bytes(seed[8:16], "big") >> 1)  # also seeds every GPU


class RelaxDeterminismHook(Hook):
    """Allows nondeterministic algorithms between iterations, for example when evaluation samples answers."""

    priority = "VERY_HIGH"  # first after the iteration

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        _use_deterministic(strict=False)


def _use_deterministic(strict: bool) -> None:
    """Choose deterministic algorithms; an operation without one raises if `strict`, else logs a warning."""
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    if hasattr(torch.utils, "deterministic"):  # PyTorch 2.2 and newer would also fill every new tensor
        torch.utils.deterministic.fill_uninitialized_memory = False
