"""The fast step's attention: which kernel on which card and PyTorch, and the chunks for those that have none."""

from types import SimpleNamespace

import pytest
import torch

from recipe.training import bench
from recipe.training.fast import attention, layers
from support.fast_step import models


def plain(query, key, value):
    """The formula, in the type that is given."""
    group = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(group, dim=1) for one in (key, value))
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value


def tensors(kind, batch=2, heads=8, groups=2, tokens=100, size=16):
    shapes = [(batch, heads, tokens, size), *[(batch, groups, tokens, size)] * 2, (batch, heads, tokens, size)]
    *given, upon = (torch.randn(shape, dtype=kind) for shape in shapes)
    return [one.requires_grad_() for one in given], upon


@pytest.mark.parametrize("tokens", [1, 16, 37, 100])
def test_chunks_give_the_formulas_values_and_gradients(monkeypatch, tokens):
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)  # 16 queries at a time
    given, upon = tensors(torch.float64, tokens=tokens)
    found = [torch.autograd.grad(way(*given), given, upon) for way in (attention._Chunked.apply, plain)]
    assert torch.allclose(attention._Chunked.apply(*given), plain(*given), atol=1e-6)
    for got, wanted in zip(*found):
        assert torch.allclose(got, wanted, atol=1e-5)
    again = torch.autograd.grad(attention._Chunked.apply(*given), given, upon)
    assert all(map(torch.equal, found[0], again))


def test_chunks_in_bf16_are_no_further_off_than_the_formula_was(monkeypatch):
    monkeypatch.setattr(attention, "SCORE_BYTES", 1)
    given, upon = tensors(torch.bfloat16)
    wide = [one.detach().double().requires_grad_() for one in given]
    right = torch.autograd.grad(plain(*wide), wide, upon.double())
    errors = []
    for way in (attention._Chunked.apply, plain):
        found = torch.autograd.grad(way(*given), given, upon)
        errors.append([float((got.double() - one).norm() / one.norm()) for got, one in zip(found, right)])
    for chunked, formula in zip(*errors):
        assert chunked < 1.2 * formula


def test_no_tensor_holds_all_scores(monkeypatch):
    given, upon = tensors(torch.float32, heads=2, groups=1, tokens=1024)
    sizes = []
    real = attention._scores
    monkeypatch.setattr(attention, "SCORE_BYTES", 1 << 18)
    monkeypatch.setattr(
        attention, "_scores", lambda *words: (lambda made: sizes.append(made.numel()) or made)(real(*words))
    )
    torch.autograd.grad(attention._Chunked.apply(*given), given, upon)
    assert max(4 * size for size in sizes) <= 1 << 18
    assert len(sizes) == 2 * 64


def test_a_layer_asks_the_card_for_nothing_and_sums_in_no_order():
    """A synchronisation ends the recording of a CUDA graph; index_add sums in any order on a card."""
    layer = models()[1].fast_layers()[0]
    x = torch.randn(2, 40, 64, requires_grad=True)
    cos = torch.randn(40, 8)
    for way in ("chunked", "expanded", "grouped") if attention.HAS_GROUPED else ("chunked", "expanded"):
        with pytest.MonkeyPatch.context() as forced, torch.profiler.profile() as profile:
            forced.setattr(attention, "choose_kernel", lambda query, way=way: way)
            layers.RecomputedLayer.apply(layer, False, x, cos, cos, *layer.parameters()).sum().backward()
            layer(x, cos, cos).sum().backward()
        names = {event.key for event in profile.key_averages()}
        assert "aten::mm" in names
        bad = [
            one
            for one in names
            if "item" in one or "_local_scalar_dense" in one or "index_add" in one or "nonzero" in one
        ]
        assert not bad, (way, bad)


CARDS = {"T4": (7, 5), "A100": (8, 0), "RTX 3090": (8, 6), "RTX 4090": (8, 9), "H100": (9, 0)}


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    ("version", "deterministic", "old", "new"),
    [
        ((2, 0), False, "chunked", "chunked"),
        ((2, 0), True, "chunked", "chunked"),
        ((2, 1), True, "chunked", "chunked"),
        ((2, 1), False, "expanded", "expanded"),
        ((2, 11), False, "expanded", "grouped"),
        ((2, 11), True, "expanded", "grouped"),
    ],
)
def test_which_kernel_on_which_card(monkeypatch, card, version, deterministic, old, new):
    """`old`: on a card below 8.0, which has no fused kernel for groups; `new`: above. PyTorch's own switches count."""
    on = dict(flash=True, mem_efficient=True)
    for name in on:
        monkeypatch.setattr(torch.backends.cuda, f"{name}_sdp_enabled", lambda name=name: on[name])
        monkeypatch.setattr(torch.backends.cuda, f"enable_{name}_sdp", lambda to, name=name: on.update({name: to}))
    monkeypatch.setattr(attention, "VERSION", version)
    monkeypatch.setattr(attention, "HAS_GROUPED", version >= (2, 5))
    monkeypatch.setattr(attention, "IS_DETERMINISTIC", version >= (2, 5))
    monkeypatch.setattr(attention, "_capability", lambda device: CARDS[card])
    attention.restrict_kernels(deterministic)
    assert all(on.values()) == (version >= (2, 5) or (version >= (2, 1) and not deterministic))
    query = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16)
    assert attention.choose_kernel(query) == (new if CARDS[card] >= (8, 0) else old)
    query.dtype = torch.float32  # flash attention has none
    assert attention.choose_kernel(query) in ("expanded", "chunked")


def test_kernels_are_restricted_wherever_the_step_is_built(monkeypatch):
    asked = []
    monkeypatch.setattr(attention, "restrict_kernels", lambda deterministic: asked.append(deterministic))
    models()
    assert asked == [False]
    settings = SimpleNamespace(train=SimpleNamespace(deterministic=True, accumulative_counts=1), lora=_Any())
    bench.build_model("stock", bench.SHAPES_TINY, settings, "cpu", torch.float32)
    assert asked == [False, True]


class _Any:
    def __getattr__(self, name):
        return None


def test_expanded_keys_take_the_grouped_kernels_values(monkeypatch):
    given, upon = tensors(torch.float32)
    found = {}
    for way in ("expanded", "chunked"):
        monkeypatch.setattr(attention, "choose_kernel", lambda query, way=way: way)
        out = attention.attention(*given)
        found[way] = (out, *torch.autograd.grad(out, given, upon))
    for got, wanted in zip(*found.values()):
        assert torch.allclose(got, wanted, atol=1e-5)
