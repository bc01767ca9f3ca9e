"""Confidence intervals and verdicts."""

import random
import sys
from types import SimpleNamespace

import pytest

from recipe.core.errors import HostLacks
from recipe.core.translation import stored, use
from recipe.inference import evaluate


def test_intervals_are_students_where_all_answers_are_equally_long():
    from scipy import stats

    chance = random.Random(1)
    base, tuned = ([(chance.gauss(mean, 2) * 20, 20) for _ in range(9)] for mean in (50, 48))
    mean, interval = evaluate.ratio(*zip(*tuned))
    theirs = stats.ttest_1samp([value / 20 for value, _ in tuned], 0)
    assert mean == pytest.approx(sum(value for value, _ in tuned) / 180)
    assert interval == pytest.approx(tuple(theirs.confidence_interval()))
    paired = stats.ttest_rel([value / 20 for value, _ in tuned], [value / 20 for value, _ in base])
    assert evaluate.compare(base, tuned)["difference"]["interval"] == pytest.approx(list(paired.confidence_interval()))


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Of unequal lengths, with a loss that depends on them: 95 % of the intervals, give or take, hold the ratio."""
    chance = random.Random(2)
    held = 0
    for _ in range(1000):
        counts = [chance.randrange(10, 100) for _ in range(30)]
        low, high = evaluate.ratio([count * (2 + chance.gauss(0, 0.5)) for count in counts], counts)[1]
        held += low <= 2 <= high
    assert 925 <= held <= 970


def test_verdicts():
    base = [(20.0 + n, 10) for n in range(8)]
    assert evaluate.compare(base, [(v - 1 - n / 10, c) for n, (v, c) in enumerate(base)])["verdict"] == "better"
    assert evaluate.compare(base, [(v + 1 + n / 10, c) for n, (v, c) in enumerate(base)])["verdict"] == "worse"
    noise = evaluate.compare(base, [(v + (-1) ** n, c) for n, (v, c) in enumerate(base)])
    assert (noise["verdict"], noise["difference"]["lower_in"]) == ("no difference", 4)
    assert evaluate.compare(base, base)["verdict"] == "no difference"


def test_the_summary_is_english_in_files_and_chinese_on_a_chinese_terminal():
    base = [(20.0 + n, 10) for n in range(8)]
    found = evaluate.compare(base, [(v - 1 - n / 10, c) for n, (v, c) in enumerate(base)])
    figures = {"models": {"base": {"loss": 2.35}, "tuned": {"loss": 2.2}}, "conversations": 8, **found}
    said = evaluate.summary(figures)
    assert said.startswith("better: held-out loss 2.350 → 2.200 nats per token, difference -0.1350 (95 % interval -")
    assert said.endswith("), lower in 8 of 8 conversations")
    with use("zh"):
        assert stored(said) == evaluate.summary(figures)
        assert stored(said).startswith(
            "更好：留出的对话上的损失 2.350 → 2.200（每 token 的 nat 数），差值 -0.1350（95 % 区间 -"
        )
        assert stored(said).endswith("），8 段对话中有 8 段更低")


def test_missing_packages_are_reported_before_a_model_is_loaded(tmp_path, monkeypatch):
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text("{}\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "rjieba", None)
    monkeypatch.setattr(evaluate.loading, "find_model", lambda *_: pytest.fail("looked for a model"))
    with pytest.raises(HostLacks, match="rjieba"):
        evaluate.measure(SimpleNamespace(eval_dataset=held_out))
