"""The bill of a run: what is measured, what is bounded, what is not known, and money."""

import datetime
import re

import pytest

from recipe.core import measurements, settings, translation
from recipe.planning import bill
from support.plans import plan_of

COACH = {**plan_of(2, 512, 78), "way": "fast", "checkpoints": [39, 78]}


def billed(card, *words, plan=COACH, answers=1950):
    return bill.bill(plan, settings.load("coach", [f"plan.card={card}", *words])[1], answers)


def lines(found):
    return {line["what"]: line for line in found["lines"]}


def test_the_sum_is_of_its_lines_and_the_setup_is_paid_once():
    found = billed("H100")
    assert found["seconds_in_all"] == sum(line["seconds"] for line in found["lines"])
    setup = sum(lines(found)[name]["seconds"] for name in bill.SETUP)
    assert found["seconds_again"] == found["seconds_in_all"] - setup
    assert lines(found)["training: questions"]["seconds"] == 287  # 1,950 tokens at 6.8 a second
    assert lines(found)["training: checkpoints"]["seconds"] == 9  # two of 4.5 s
    assert lines(billed("H100", answers=0))["training: questions"]["seconds"] == 0
    assert found["disk_gb"] > 30


def test_downloads_take_the_time_of_the_named_rate():
    slow, fast = (lines(billed("H100", f"plan.download_mbit={mbit}"))["base model"] for mbit in (100, 1000))
    assert (slow["seconds"], fast["seconds"]) == (1240, 124)  # 15.5 GB
    assert "plan.download_mbit=1000" in fast["basis"]


@pytest.mark.parametrize(
    ("card", "bound", "seconds", "basis"),
    [
        ("NVIDIA H100 80GB HBM3", bill.EXACT, 9, "2×512 on H100, fast"),
        ("NVIDIA GeForce RTX 3090", bill.AT_MOST, 99, "XTuner's own step"),
        ("NVIDIA GeForce RTX 4090", bill.AT_MOST, 99, "not measured; RTX 3090, slower"),
        ("NVIDIA A100-SXM4-80GB", bill.AT_MOST, 99, "not measured; RTX 3090, slower"),
        ("NVIDIA H200", bill.AT_MOST, 9, "not measured; H100, slower"),
        ("Tesla T4", bill.AT_LEAST, 99, "not measured; RTX 3090, faster"),  # by XTuner's own step: it has no bf16
        ("4090", bill.AT_MOST, 99, "not measured; RTX 3090, slower"),
        ("rtx4090", bill.AT_MOST, 99, "not measured; RTX 3090, slower"),
        ("NVIDIA GeForce RTX 4090 D", bill.UNKNOWN, None, "not measured on this card"),
        ("RTX 4090D", bill.UNKNOWN, None, "not measured on this card"),
        ("A10", bill.UNKNOWN, None, "not measured on this card"),
        ("Voodoo 2", bill.UNKNOWN, None, "not measured on this card"),
    ],
)
def test_iterations_on_a_card_are_measured_bounded_or_unknown(card, bound, seconds, basis):
    found = billed(card)
    line = lines(found)[bill.ITERATIONS]
    assert (line["bound"], line["seconds"]) == (bound, seconds)
    assert line["basis"].startswith(basis) or basis in line["basis"]
    assert found["bound"] == bound


def test_a_bound_is_never_drawn_from_a_bound():
    """The small step of an RTX 3090 is known only as "at most", so it says nothing of a slower card."""
    line = lines(billed("T4", "train.speed=small", plan={**COACH, "way": "small"}))[bill.ITERATIONS]
    assert "H100, faster" in line["basis"]


def test_what_was_measured_on_another_machine_is_said_and_taken_as_it_is():
    on_h200, elsewhere = (lines(billed(card))["training: load the model"] for card in ("NVIDIA H200", "T4"))
    assert (on_h200["seconds"], elsewhere["seconds"]) == (14, 54)
    assert "H200" in on_h200["basis"]
    assert "H100" in elsewhere["basis"]


def test_answers_are_as_fast_as_measured_on_the_card_else_as_slow_as_anywhere():
    on_h200, elsewhere = (lines(billed(card))["training: questions"] for card in ("NVIDIA H200", "T4"))
    assert on_h200["seconds"] == 12  # 1,950 tokens at 159 a second
    assert elsewhere["seconds"] == 287
    assert "the decoder" in on_h200["basis"]
    assert "generate" in elsewhere["basis"]


def test_money_is_the_whole_time_at_each_platforms_price():
    found = billed("RTX 4090")
    by_platform = {price["platform"]: price for price in found["prices"]}
    assert set(by_platform) == {"AutoDL", "RunPod", "Vast.ai"}
    for price in by_platform.values():
        hours = found["seconds_in_all"] / 3600
        assert price["cost"] == [round(one * hours, 2) for one in price["per_hour"]]
    own = billed("RTX 4090", "plan.price_per_hour=3.6")["prices"]
    assert [price["platform"] for price in own] == ["your price"]
    assert own[0]["cost"] == [round(found["seconds_in_all"] / 1000, 2)] * 2
    two = billed("RTX 4090", "plan.price_per_hour=3.6", plan={**COACH, "ranks": 2})["prices"]
    assert two[0]["cost"][0] == pytest.approx(2 * own[0]["cost"][0], abs=0.01)
    assert billed("T4")["prices"] == []


def test_the_other_cards_are_compared():
    found = billed("NVIDIA GeForce RTX 3090")
    assert [other["card"] for other in found["others"]] == ["T4", "RTX 4090", "A100", "H100", "H200"]
    alone = billed("H100")
    assert found["others"][3]["seconds_in_all"] == alone["seconds_in_all"]
    assert found["others"][3]["prices"] == alone["prices"]


def test_without_a_gpu_the_card_is_said_to_be_assumed(monkeypatch):
    monkeypatch.setattr(bill.host, "gpus", lambda: [])
    assert billed("")["assumed"] is True
    assert billed("")["card"] == "RTX 3090"
    assert billed("A100")["assumed"] is False


def test_every_price_has_an_address_and_a_date():
    names = {card["name"] for card in bill.cards()}
    listed = [price for name in names for price in bill.prices(name)]
    assert len(listed) == len(bill._table()["price"])  # each is of a card that is compared
    for price in listed:
        low, high = price["per_hour"]
        assert 0 < low <= high < 100
        assert isinstance(price["date"], datetime.date)
        assert re.match(r"https://\S+", price["source"])
        assert price["currency"] in ("USD", "CNY")


def test_every_phase_says_where_it_was_measured():
    for phase in measurements.measurements()["phase"]:
        assert phase["card"]
        assert re.search(r"20\d\d-\d\d-\d\d", phase["source"])


@pytest.mark.parametrize("card", ["H100", "T4", "RTX 3090", "RTX 5090"])
def test_its_texts_are_stored_in_english_and_shown_in_chinese(card):
    with translation.use("zh"):
        found = billed(card, "plan.price_per_hour=2")
        for line in found["lines"]:
            assert line["what"].isascii()
            assert not translation.stored(line["what"]).isascii()
            shown = translation.stored(line["basis"])
            assert not re.search(r"\b(measured|second|takes|slower|faster|GB at|shared|log|own|on)\b", shown), shown
    assert translation.stored(found["lines"][0]["basis"]) == found["lines"][0]["basis"]
