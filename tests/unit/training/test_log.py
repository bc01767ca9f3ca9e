"""The log of a run that was resumed."""

import json
import random
import shutil

import pytest

from recipe.training import log, log_lines
from support.trainer import PUBLISHED


def test_single_values_come_back_from_mmengines_means():
    from mmengine.logging import HistoryBuffer

    buffer, values, steps = HistoryBuffer(), [random.Random(n).uniform(0, 9) for n in range(200)], {}
    for n, value in enumerate(values, start=1):
        buffer.update(value)
        steps[n] = {"loss": buffer.mean(log.WINDOW)}
    assert list(log.per_iteration(steps).values()) == pytest.approx(values, abs=1e-9)
    assert log.per_iteration({n: steps[n] for n in range(10, 200, 10)}) == {}  # only every tenth one was logged
    assert log.per_iteration({1: {"loss": float("nan")}}) == {}


def test_a_run_that_went_on_counts_from_its_checkpoint(tmp_path):
    for hour, numbered in (("1", range(1, 9)), ("2", range(5, 8)), ("3", range(7, 13))):
        place = tmp_path / hour / "vis_data"
        place.mkdir(parents=True)
        lines = [json.dumps({"step": n, "loss": int(hour), "lr": 1e-4, "time": 1}) for n in numbered]
        (place / "scalars.json").write_text("\n".join([*lines, '{"step": 9, "lo']))
    steps = log.read_iterations(tmp_path)
    assert [int(step["loss"]) for step in steps.values()] == [1] * 4 + [2] * 2 + [3] * 6
    # Begun anew from iteration 5, and stopped at 6: 7 and 8 of the first try are not part of it.
    shutil.rmtree(str(tmp_path / "3"))
    assert list(log.read_iterations(tmp_path)) == [*range(1, 8)]


def test_seconds_of_several_starts_are_added():
    log = "\n$ a\nx - Seconds: start 2.00, iterations 1.50\nx - Seconds: start 2.00, iterations 9.25\n\n$ b\nkilled\n"
    assert log_lines.time_breakdown(f"{log}\n$ c\nx - Seconds: start 3.50, iterations 1.00\n") == {
        "start": 5.5,
        "iterations": 10.25,
    }
    assert log_lines.time_breakdown(PUBLISHED) == {}
