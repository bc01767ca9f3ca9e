"""Measured memory and cost, and what is scaled from them."""

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from recipe.core import measurements, translation
from support import real_layer
from support.plans import plan_of


@pytest.mark.parametrize(("batch", "tokens"), [(2, 512), (1, 2048), (2, 2048), (4, 2048)])
def test_what_32_layers_keep_fits_the_plan(batch, tokens):
    """Each environment's own attention, on tensors without memory; the rest is what recomputed layers take in all."""
    with FakeTensorMode():
        kept = 32 * real_layer.saved_mib(real_layer.make(), batch, tokens)
    planned = measurements.memory_mib(batch * tokens, "H100", "kept")
    assert kept + measurements.memory_mib(0, "H100", "fast") <= 1.01 * planned
    assert kept / (batch * tokens) == pytest.approx(measurements.measurements()["mib_per_token"]["kept"], rel=0.01)


@pytest.mark.slow
def test_a_recomputed_layer_takes_on_every_stack_what_was_measured_on_one():
    """528 MiB at 2048 tokens on PyTorch 2.11, whose small fits 8 GB; the plain formula took 952 on 2.0."""
    with FakeTensorMode():
        peaks = [real_layer.peak_mib(real_layer.make(), 1, tokens) for tokens in (512, 1024, 2048)]
    assert peaks[2] <= 528
    assert peaks[2] / peaks[1] < 2.1  # nothing grows with the square
    inputs = 32 * 2 * real_layer.HIDDEN / 2**20
    for way in ("fast", "small"):
        assert inputs + peaks[2] / 2048 <= 1.01 * measurements.memory_per_token(way)


def test_cost_is_the_measured_one_where_it_was_measured():
    found = measurements.estimate(plan_of(2, 512, 51), "NVIDIA GeForce RTX 3090")
    assert found["memory_mib"] == 10580
    assert found["seconds"] == pytest.approx(62, abs=4)  # the published run took 62 s
    assert "published log" in found["source"]


def test_cost_scales_from_the_nearest_size():
    long = measurements.estimate(plan_of(1, 2048, 100), "NVIDIA H100 80GB HBM3")
    assert (long["seconds"], long["memory_mib"]) == (44, 10494)  # 0.445 s: 44.5, to even
    double = measurements.estimate(plan_of(4, 512, 100), "RTX 3090")
    assert double["seconds"] == 254
    assert double["memory_mib"] > 10580


def test_a_card_never_measured_gets_a_figure_for_memory_alone():
    """The most that a measured one takes: memory depends on the card by a few percent, as the doctor says too."""
    found = measurements.estimate(plan_of(2, 512, 51), "Voodoo 2")
    assert found["seconds"] is None
    assert found["memory_mib"] == max(measurements.memory_mib(1024, card) for card in ("H100", "RTX 3090"))


def test_what_a_plan_stores_is_shown_in_chinese():
    """English in plan.json, whatever the language was when it was made."""
    with translation.use("zh"):
        found = measurements.estimate({**plan_of(2, 512, 51), "way": "fast"}, "NVIDIA H100 80GB HBM3")
        assert found["scaled_from"] == "2×512 on H100, fast"
        assert translation.stored(found["scaled_from"]) == "H100 上的 2×512，fast"
        for entry in measurements.measurements()["measurement"]:
            assert "log" not in translation.stored(entry["source"])
