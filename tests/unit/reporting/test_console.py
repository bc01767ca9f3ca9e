"""The plan's page, its curve and its cost."""

import json

import pytest
from conftest import recipe

from recipe.core import measurements
from recipe.planning import schedule
from recipe.reporting import console


def test_curve():
    assert console.curve([]) == ""
    assert console.curve([0, 1]) == "▁█"
    assert console.curve([0.0, 0.0]) == "▁▁"
    assert len(console.curve(list(range(1000)), width=48)) == 48
    assert len(console.curve(list(range(81)), width=48)) == 48


def plan_of(batch_size, max_length, iterations):
    return {"batch_size": batch_size, "max_length": max_length, "iterations": iterations}


def test_cost_is_the_measured_one_where_it_was_measured():
    found = measurements.estimate(plan_of(2, 512, 51), "NVIDIA GeForce RTX 3090", price=1.5)
    assert found["memory_mib"] == 10580
    assert found["seconds"] == pytest.approx(62, abs=4)  # the published run took 62 s
    assert found["price"] == pytest.approx(0.03, abs=0.01)
    assert "published log" in found["source"]


def test_cost_scales_from_the_nearest_size():
    long = measurements.estimate(plan_of(1, 2048, 100), "NVIDIA H100 80GB HBM3", price=0)
    assert (long["seconds"], long["memory_mib"], long["price"]) == (44, 10494, None)  # 0.445 s: 44.5, to even
    double = measurements.estimate(plan_of(4, 512, 100), "RTX 3090", price=0)
    assert double["seconds"] == 254
    assert double["memory_mib"] > 10580


def test_a_card_never_measured_gets_a_figure_for_memory_alone():
    """The most that a measured one takes: memory depends on the card by a few percent, as the doctor says too."""
    found = measurements.estimate(plan_of(2, 512, 51), "Voodoo 2", price=1)
    assert found["seconds"] is found["price"] is None
    assert found["memory_mib"] == max(measurements.memory_mib(1024, card) for card in ("H100", "RTX 3090"))
    assert found["disk_gb"] > 30


def test_questions_are_reckoned_beside_the_iterations():
    asking = {"type": "EvaluateChatHook", "evaluation_inputs": ["a", "b", "c"], "max_new_tokens": 300}
    cfg = {"custom_hooks": [{"type": "DatasetInfoHook"}, asking]}
    asked = schedule.generated_tokens(cfg, [39], 78, once=True)
    assert asked == schedule.generated_tokens(cfg, [39, 78], 78, once=True) == 3 * (50 + 300 + 300)
    assert schedule.generated_tokens(cfg, [39, 78], 78, once=False) == 3 * (50 + 300 + 300 + 300)  # at its end again
    asking["max_new_tokens"] = 20
    assert schedule.generated_tokens(cfg, [], 78, once=True) == 3 * (50 + 20)  # the first ones have XTuner's own limit
    assert (
        schedule.generated_tokens({"custom_hooks": []}, [39], 78, once=True)
        == schedule.generated_tokens({}, [], 78, once=True)
        == 0
    )
    found = measurements.estimate(plan_of(2, 512, 78), "H100", 0, asked)
    assert (found["answers"], found["answers_seconds"]) == (asked, 287)  # 6.8 a second


def test_page_and_png(tmp_path):
    words = ("train.accumulative_counts=8", "gpus=2")
    done = recipe("plan", "demo", *words, "--png", tmp_path / "curve.png", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    planned = json.loads((tmp_path / "demo/plan.json").read_text(encoding="utf-8"))
    for word in (
        "answer tokens",
        "optimizer updates",
        "8 GPUs",
        "2 GPUs share each update of 8 sequences",
        "█",
        "evaluation at",
        "checkpoints at",
    ):
        assert word in done.stdout, word
    assert f"{planned['tokens_kept']:,}" in done.stdout
    for asked, told in ((1950, True), (0, False)):
        planned["cost"] = measurements.estimate(plan_of(2, 512, 78), "NVIDIA H100 80GB HBM3", 0, asked)
        lines = "\n".join(" ".join(line) for line in console.rows(planned))
        assert "39 s of iterations" in lines
        assert ("questions up to 287 s beside them (1,950 tokens" in lines) is told
    for packed, told in ((True, "256 tokens, by 1 process(es)"), (False, "up to 256 tokens, a conversation each")):
        lines = "\n".join(" ".join(line) for line in console.rows({**planned, "packed": packed}))
        assert told in lines
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(planned["lr_trace"]) == planned["iterations"]
    assert planned["lr_peak"] == max(planned["lr_trace"])
    fields = {
        *("rows", "tokens", "tokens_kept", "answer_tokens", "answer_tokens_kept", "packs", "iterations_per_epoch"),
        *("iterations", "updates", "lr_configured", "lr_peak", "lr_trace", "warmup_iterations", "refusals", "warnings"),
    }
    assert fields <= set(planned)


def test_a_refused_plan_is_shown_and_written_but_not_taken(tmp_path):
    done = recipe("plan", "demo", "train.accumulative_counts=64", "train.max_epochs=2", "--output", tmp_path)
    assert done.returncode == 2
    assert "optimizer updates" in done.stdout
    planned = json.loads((tmp_path / "demo/plan.json").read_text(encoding="utf-8"))
    assert [refusal["fault"] for refusal in planned["refusals"]] == ["few-updates"]
    again = recipe("config", "demo", "train.accumulative_counts=64", "train.max_epochs=2", "--output", tmp_path)
    assert again.returncode == 2
    assert not (tmp_path / "demo/config.py").exists()
