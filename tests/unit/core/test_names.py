"""Names for engines and clusters."""

import re

import pytest

from recipe.core.names import label, plain_name

NAMES = [
    "客服", "人事", "客服2", "客 服", "coach", "Coach", "COACH", "my recipe", "my-recipe", "my_recipe", "2024", "-",
    "a" * 60, "a" * 61,
    "mine", "mine.v2", "mine-v2", "Ünïcode",
]  # fmt: skip


def test_different_recipes_have_different_names():
    assert len({plain_name(name).lower() for name in NAMES}) == len(NAMES) - 2  # but for capitals alone
    assert len({label(name) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_names_hold_what_the_engines_take(name):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", plain_name(name)), plain_name(name)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", label(name)), label(name)


def test_plain_names_stay():
    assert (plain_name("mine.v2"), label("coach")) == ("mine.v2", "coach")
