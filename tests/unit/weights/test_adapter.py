"""Checkpoints to adapters: types, underflow, and what is refused."""

import json

import pytest
import torch

from recipe.core.errors import RunFailed
from recipe.weights import adapter
from support.checkpoints import converted, state


def test_the_type_is_chosen_and_its_underflow_said(tmp_path):
    """At 2e-9 the largest lora_B value was 2.2e-9: nothing of it is left in fp16."""
    weights = {name: w / w.abs().max() * (2.2e-9 if "lora_B" in name else 1) for name, w in state().items()}
    torch.save({"state_dict": weights}, str(tmp_path / "iter_1.pth"))
    for dtype, kind, vanished in (("fp16", torch.float16, 1), ("bf16", torch.bfloat16, 0), ("fp32", torch.float32, 0)):
        figures, found = converted(tmp_path / "iter_1.pth", tmp_path / dtype, dtype)
        assert {tensor.dtype for tensor in found.values()} == {kind}
        assert figures["underflow_share"] == vanished
        assert figures["largest_b"] == pytest.approx(2.2e-9)
        said = adapter.summary(figures)
        assert f"(largest 2.2e-09) {vanished:.1%} underflow in {dtype}" in said
        assert ("adapter.dtype=fp32 keeps them" in said) == bool(vanished)


def test_values_that_are_no_numbers_or_too_large_are_refused(tmp_path):
    for value, said in ((float("nan"), "non-finite"), (float("inf"), "non-finite"), (1e6, "overflows fp16")):
        weights = state()
        next(iter(weights.values()))[0, 0] = value
        torch.save({"state_dict": weights}, str(tmp_path / "iter_1.pth"))
        with pytest.raises(RunFailed, match=said):
            converted(tmp_path / "iter_1.pth", tmp_path / "out", "fp16")
        assert not (tmp_path / "out").exists()


def test_modules_to_save_keep_their_names(tmp_path):
    weights = {**state(), "llm.base_model.model.output.modules_to_save.default.weight": torch.ones(4, 2)}
    torch.save({"state_dict": weights}, str(tmp_path / "iter_1.pth"))
    _, found = converted(tmp_path / "iter_1.pth", tmp_path / "out")
    assert torch.equal(found["base_model.model.output.weight"], torch.ones(4, 2))
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["target_modules"] == ["wo"]
