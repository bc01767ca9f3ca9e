"""Scores of answers."""

import sys

import pytest

from recipe.core.errors import HostLacks
from recipe.inference import scores


def test_scores():
    assert scores.is_repetitive("先休息，先休息，先休息，先休息，")
    assert scores.is_repetitive("好好好好好好好好好好")
    assert not scores.is_repetitive("先休息，再休息，先说出来，再说清楚。哈哈哈")
    texts = ["先睡够，再慢慢想。", "找一个人说说你的感受吧。"]
    assert scores.overlap(texts, texts) == pytest.approx({"bleu4": 100, "rouge_l": 100, "chrf": 100})
    assert scores.overlap(["", "天"], texts) == pytest.approx({"bleu4": 0, "rouge_l": 0, "chrf": 0}, abs=1)
    half = scores.overlap(["先睡够。", "找一个朋友说说。"], texts)
    assert all(10 < value < 90 for value in half.values())


def test_without_their_packages_the_scores_say_who_brings_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "rjieba", None)
    with pytest.raises(HostLacks, match="docker/runtime/host provides"):
        scores.overlap(["甲"], ["乙"])
