"""The fast step on a machine without a compiler."""

import pytest

from support.environment import CU13


@pytest.mark.skipif(not CU13, reason="only cu13 compiles")
def test_the_fast_step_does_without_a_compiler(compiler, monkeypatch):
    """On what says that it is on a card, PyTorch's own operations."""
    import bitsandbytes
    import torch

    from recipe.training.fast import kernels, nf4

    class OnCard(torch.Tensor):
        is_cuda = True

    def on_card(value):
        return value.as_subclass(OnCard)

    norm = torch.nn.LayerNorm(64)
    norm.variance_epsilon = 1e-6
    x, y, angle = torch.randn(2, 2, 5, 64), torch.randn(2, 2, 5, 64), torch.randn(5, 64)
    for work in (
        lambda a, b: kernels.rms_norm(a, norm),
        kernels.swiglu,
        lambda a, b: torch.cat(kernels.rotate(a, b, angle.cos(), angle.sin())),
    ):
        assert torch.equal(work(on_card(x), on_card(y)).as_subclass(torch.Tensor), work(x, y))
    packed, state = bitsandbytes.functional.quantize_4bit(x.reshape(-1, 64), quant_type="nf4")
    packed.quant_state = state
    plain = nf4.dequantize(packed, torch.float32)
    weight = on_card(packed)
    weight.quant_state = state
    assert torch.equal(nf4.dequantize(weight, torch.float32).as_subclass(torch.Tensor), plain)
    monkeypatch.setattr(compiler, "fault", lambda: "")
    with pytest.raises(Exception, match=r"(?i)triton|cuda|driver|pointer"):
        kernels.swiglu(on_card(x), on_card(y))
