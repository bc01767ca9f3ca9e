"""A run in an empty folder."""

import pytest

from recipe.core import settings
from recipe.core.run import Run


@pytest.fixture
def run(tmp_path):
    return Run("tiny", settings.load("tiny")[1], tmp_path, tmp_path / "output")
