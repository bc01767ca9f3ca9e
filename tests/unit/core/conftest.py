"""A run in an empty folder."""

import pytest

from recipe.core import settings
from recipe.core.run import Run


@pytest.fixture
def run(tmp_path):
    return Run("demo", settings.load("demo")[1], tmp_path, tmp_path / "output")
