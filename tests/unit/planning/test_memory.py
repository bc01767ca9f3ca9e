"""Computed memory and disk against what was measured."""

import pytest

from recipe.base_model import visual_encoder
from recipe.core import measurements
from recipe.planning import memory


def test_computed_memory_against_what_was_measured():
    """measured.toml's three entries of InternLM2-chat-7B, QLoRA: within 10 %."""
    shape = memory.Shape(7_737_708_544, 32, 4096, 92544)
    for entry in measurements.for_step("stock"):
        tokens = entry["batch_size"] * entry["max_length"]
        computed = memory.estimate(shape, "qlora", 4, tokens)["total"] / 2**20
        assert computed == pytest.approx(entry["memory_mib"], rel=0.1), entry


def test_computed_memory_of_other_models_against_what_was_measured():
    """H100 80GB HBM3, PyTorch 2.11, 2026-11-26: MiB allocated at the peak of an iteration (docs/en/other-models.md)."""
    llama, internlm = memory.Shape(6_738_415_616, 32, 4096, 32000), memory.Shape(1_889_110_016, 24, 2048, 92544)
    sights = [visual_encoder.CLIP_LARGE.load(4096, 4, rank) for rank in (0, 64)]  # LLaVA, four images
    text = 4 * 634  # 15,208 tokens in 24 pairs
    for computed, measured, within in (
        (memory.estimate(llama, "qlora", 4, 2048, 64, False), 8336, 0.15),
        (memory.estimate(internlm, "full", 32, 2048, 0), 39725, 0.02),
        (memory.estimate(internlm, "qlora", 4, 1024, 64), 4668, 0.1),
        (memory.estimate(llama, "projector", 4, text, 0, False, sights[0]), 8655, 0.05),
        (memory.estimate(llama, "qlora", 4, text, 512, False, sights[1]), 31055, 0.1),
    ):
        assert computed["total"] / 2**20 == pytest.approx(measured, rel=within)
    two = {row["stage"]: row["gpu"]["2"] / 2**20 for row in memory.zero_stages(internlm, "lora", 16, 8192, 64)}
    assert two["zero2"] == pytest.approx(13789, rel=0.1)
    assert two["zero3"] == pytest.approx(14877, rel=0.15)


def test_computed_disk_against_what_was_measured():
    """measured.toml's checkpoint and model of InternLM2-chat-7B, QLoRA."""
    shape = memory.Shape(7_737_708_544, 32, 4096, 92544)
    trained = round(memory.estimate(shape, "qlora", 4, 1024)["trained"] / 16)
    found = memory.disk(round(shape.parameters), trained, deepspeed=False, copies=3)
    known = measurements.measurements()["disk"]
    assert found["checkpoint"] / 1e9 == pytest.approx(known["checkpoint"], rel=0.05)
    assert found["model"] / 1e9 == pytest.approx(known["model"], rel=0.01)
    assert found["checkpoints"] == 3 * found["checkpoint"]


def test_zero_divides_what_it_says():
    shape = memory.Shape(1e9, 16, 2048, 32000)
    rows = {row["stage"]: row for row in memory.zero_stages(shape, "full", 32, 1024, 0)}
    assert set(rows) == {"zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"}
    rest = rows["zero3_offload"]["gpu"]["1"]
    assert rows["zero3"]["gpu"]["1"] == pytest.approx(16e9 + 6e9)
    assert rows["zero3"]["gpu"]["8"] - rest == pytest.approx(2e9)
    assert rows["zero2"]["gpu"]["1"] == rows["zero1"]["gpu"]["1"] == pytest.approx(16e9 + 6e9)
    assert rows["zero2"]["gpu"]["8"] - rest == pytest.approx(2e9 + 14e9 / 8)
    assert rows["zero2_offload"]["host"]["8"] == pytest.approx(12e9)
    assert not any(row["stage"].startswith("zero3") for row in memory.zero_stages(shape, "qlora", 4, 1024, 64))
