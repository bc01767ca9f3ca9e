"""Iterations that repeat exactly."""

from types import SimpleNamespace

import pytest
import torch

from recipe.training import hooks
from recipe.training.fast import attention


@pytest.mark.parametrize("strict", [True, False])
def test_iterations_repeat_and_what_lies_between_may_not(monkeypatch, strict):
    """As PyTorch itself says; with attention's plain formula where it cannot be told to repeat the others."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.backends.cuda.enable_flash_sdp(True)  # as PyTorch begins, whatever this process did before
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    monkeypatch.setattr(attention, "IS_DETERMINISTIC", strict)
    monkeypatch.setattr(attention, "VERSION", (2, 5) if strict else (2, 4))
    runner = SimpleNamespace(seed=3, iter=0)
    try:
        hooks.DeterminismHook().before_run(runner)
        hooks.DeterminismHook().before_train_iter(runner, 0)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() != strict
        assert torch.backends.cuda.flash_sdp_enabled() == torch.backends.cuda.mem_efficient_sdp_enabled() == strict
        hooks.RelaxDeterminismHook().after_train_iter(runner, 0)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(was)
        torch.backends.cuda.enable_flash_sdp(True)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
