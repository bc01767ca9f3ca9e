"""Lines of the trainer's log."""

import math

from recipe.training import log_lines
from support.trainer import PUBLISHED


def test_log_lines():
    steps = log_lines.parse_iterations(PUBLISHED)
    assert list(steps) == [10, 20]
    assert steps[10] == {"lr": 1.8763e-09, "loss": 2.0068, "seconds": 1.201, "memory_mb": 9380}
    assert math.isnan(steps[20]["grad_norm"])
    again = log_lines.parse_iterations(PUBLISHED + PUBLISHED.replace("2.0068", "3.5"))
    assert [step["loss"] for step in again.values()] == [3.5, 1.998]
