"""The page on larger models: made again, and its figures against what is known of the models."""

import memory
import pytest

from recipe import cost


def test_the_page_is_what_the_command_makes():
    assert memory.PAGE.read_text(encoding="utf-8") == memory.page()


def test_sizes_are_the_models_own():
    seven, twenty, seventy = memory.MODELS
    assert seven.parameters == 7_737_708_544  # of the merged 7B model's files
    assert seven.trained == 157_179_904
    assert twenty.parameters == 19_861_149_696  # from its published shape, 48 layers of 6144
    assert seventy.parameters == 68_976_648_192  # as published


def test_what_is_computed_is_what_was_measured():
    computed = memory.states(memory.MODELS[0], 1, 1)["QLoRA, ZeRO-2"][0] / 2**20
    assert computed == pytest.approx(cost.memory_mib(0, "H100"), rel=0.02)
