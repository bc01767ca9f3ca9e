"""Plans of the tutorial's data."""

import json

import pytest

from benchmarks import cost
from recipe.core import settings
from support.command import ROOT, recipe
from support.plans import planned


@pytest.mark.slow
def test_tutorial_with_the_real_tokenizer(real_workbook, real_tokenizer, tmp_path):
    """51 packs and 78 iterations with one process, 12 of 246 held out; 32 to 36 packs with the page's 32."""
    words = (f'data.files=["{real_workbook}"]', f"model.tokenizer={real_tokenizer}")
    done, found = planned(tmp_path, "coach", *words)
    assert done.returncode == 0, done.stderr
    assert (found["tokens"], found["packs"], found["iterations"], found["updates"]) == (26322, 51, 78, 78)
    assert (found["rows"], found["held_out"]) == (234, 12)
    assert found["tokens_kept"] / found["tokens"] >= 0.99
    assert found["lr_peak"] == pytest.approx(2e-4)
    assert found["intervals"] == {"evaluation_freq": 39, "save_steps": 39}
    assert found["refusals"] == []
    assert found["cost"]["answers"] == cost.ANSWERS
    assert cost.COACH.items() <= found.items()

    done, found = planned(tmp_path, "tutorial", *words)
    assert done.returncode == 0, done.stderr
    assert (found["tokens"], found["held_out"]) == (27714, 0)
    assert 32 <= found["packs"] <= 36
    assert found["iterations"] in (48, 51, 54)
    assert found["updates"] == 3
    assert found["lr_peak"] == pytest.approx(2e-9)
    faults = {refusal["fault"]: refusal["why"] for refusal in found["refusals"]}
    assert set(faults) == set(settings.load("tutorial")[1].known_faults)
    assert "known: Only 3 optimizer updates" in done.stdout


@pytest.mark.slow
def test_prices_do_not_draw_another_seed(tmp_path, workbook):
    """A recipe without a seed draws one for its folder: looking at the price must not throw training away."""
    path = tmp_path / "noseed.toml"
    text = (ROOT / "recipe/tiny.toml").read_text(encoding="utf-8").replace("seed = 0\n", "")
    path.write_text(text, encoding="utf-8")
    seeds = []
    for more in ([], ["plan.price_per_hour=2.0"], ["--force"]):
        assert recipe("plan", path, *more, "--output", tmp_path).returncode == 0
        seeds.append(json.loads((tmp_path / "noseed/plan.json").read_text(encoding="utf-8"))["seed"])
    assert len(set(seeds)) == 1


@pytest.mark.slow
def test_evaluations_happen_at_checkpoints_too(tmp_path):
    _, found = planned(tmp_path, "tiny")
    quarter = found["iterations"] // 4
    assert found["evaluations"] == [0, quarter, 2 * quarter, 3 * quarter, found["iterations"]]
    assert found["checkpoints_kept"] == 2
