"""The imports that XTuner needs, and the tutorial's config."""

import pytest

from recipe.core import imports, settings
from recipe.xtuner import config


@pytest.fixture(scope="session", autouse=True)
def loaded():
    imports.load()


@pytest.fixture(scope="session")
def cfg():
    return config.effective(settings.load("tutorial")[1])
