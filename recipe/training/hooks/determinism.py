"""Random numbers and algorithms that repeat."""

import hashlib
import random
from typing import Any

import numpy
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook

from recipe.training.fast import attention


class DeterminismHook(Hook):
    """Makes each iteration's random numbers follow from seed, iteration and rank alone.

    So nothing has to be kept of the generators: a run that was stopped anywhere goes on with the numbers that it
    would have had, whatever was drawn meanwhile (evaluation samples its answers). Algorithms that sum in any order
    are replaced where PyTorch has others.
    """

    priority = "VERY_LOW"  # the last before the forward pass

    def before_run(self, runner: Any) -> None:
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        _use_deterministic(strictly=False)
        attention.restrict_kernels(deterministic=True)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        _use_deterministic(strictly=attention.IS_DETERMINISTIC)
        drawn = hashlib.sha256(f"{runner.seed} {runner.iter} {get_rank()}".encode()).digest()
        random.seed(drawn)
        numpy.random.seed(int.from_bytes(drawn[:4], "big"))
        torch.manual_seed(int.from_bytes(drawn[8:16], "big") >> 1)  # every GPU's generator too


class RelaxDeterminismHook(Hook):
    """Between iterations what cannot be repeated is allowed again: the sampling of evaluation's answers, for one."""

    priority = "VERY_HIGH"  # the first after the iteration

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        _use_deterministic(strictly=False)


def _use_deterministic(strictly: bool) -> None:
    """PyTorch takes algorithms that repeat; what has none raises, or warns in the log."""
    torch.use_deterministic_algorithms(True, warn_only=not strictly)
    if hasattr(torch.utils, "deterministic"):  # since PyTorch 2.2: every new tensor would be filled first
        torch.utils.deterministic.fill_uninitialized_memory = False
