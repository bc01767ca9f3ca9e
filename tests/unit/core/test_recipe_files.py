"""The recipes that ship, and lines of a recipe file."""

import pytest
import tomli

from recipe.core import settings
from recipe.core.recipe_files import line_of, recipes


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipes_are_valid(name):
    assert settings.load(name)[0] == name


def test_three_recipes_ship():
    assert recipes() == ["coach", "demo", "tiny", "tutorial"]


def test_line_of_multi_line_values():
    text = 'a = """\nx = 1\n"""\n[t]\n# c\nb = [\n 1,\n]\nx = 2\n'
    assert line_of(text, ["a"], tomli) == 1
    assert line_of(text, ["t", "b"], tomli) == 6
    assert line_of(text, ["t", "x"], tomli) == 9
    assert line_of(text, ["x"], tomli) == 0
