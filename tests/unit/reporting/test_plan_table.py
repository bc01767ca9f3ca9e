"""The plan's page and its curve."""

import json
import re

import pytest

from recipe.core import settings
from recipe.planning import bill
from recipe.reporting import plan_table
from support.command import recipe
from support.plans import plan_of


def test_curve():
    assert plan_table.sparkline([]) == ""
    assert plan_table.sparkline([0, 1]) == "▁█"
    assert plan_table.sparkline([0.0, 0.0]) == "▁▁"
    assert len(plan_table.sparkline(list(range(1000)), width=48)) == 48
    assert len(plan_table.sparkline(list(range(81)), width=48)) == 48


@pytest.mark.slow
def test_page_and_png(tmp_path):
    words = ("train.accumulative_counts=8", "gpus=2")
    done = recipe("plan", "tiny", *words, "--png", tmp_path / "curve.png", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    planned = json.loads((tmp_path / "tiny/plan.json").read_text(encoding="utf-8"))
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
    coach = settings.load("coach", ["plan.card=H100"])[1]
    planned["cost"] = bill.bill({**plan_of(2, 512, 78), "checkpoints": [39, 78]}, coach, 1950)
    lines = "\n".join(" ".join(line) for line in plan_table.plan_rows(planned))
    assert "training: iterations 39 s (2×512 on H100: " in lines
    assert "training: questions at most 4 min 47 s (1,950 tokens; 6.8 a second measured: H100" in lines
    assert re.search(r"in all about \d+ min .*; RunPod [\d.]+ to [\d.]+ USD; Vast.ai [\d.]+ USD\n", lines)
    assert re.search(r"on RTX 4090 about \d+ min .*; AutoDL [\d.]+ to [\d.]+ CNY", lines)
    for packed, told in ((True, "256 tokens, by 1 process(es)"), (False, "up to 256 tokens, one conversation each")):
        lines = "\n".join(" ".join(line) for line in plan_table.plan_rows({**planned, "packed": packed}))
        assert told in lines
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(planned["lr_trace"]) == planned["iterations"]
    assert planned["lr_peak"] == max(planned["lr_trace"])
    fields = {
        *("rows", "tokens", "tokens_kept", "answer_tokens", "answer_tokens_kept", "packs", "iterations_per_epoch"),
        *("iterations", "updates", "lr_configured", "lr_peak", "lr_trace", "warmup_iterations", "refusals", "warnings"),
    }
    assert fields <= set(planned)


@pytest.mark.slow
def test_a_refused_plan_is_shown_and_written_but_not_taken(tmp_path):
    done = recipe("plan", "tiny", "train.accumulative_counts=64", "train.max_epochs=2", "--output", tmp_path)
    assert done.returncode == 2
    assert "optimizer updates" in done.stdout
    planned = json.loads((tmp_path / "tiny/plan.json").read_text(encoding="utf-8"))
    assert [refusal["fault"] for refusal in planned["refusals"]] == ["few-updates"]
    again = recipe("config", "tiny", "train.accumulative_counts=64", "train.max_epochs=2", "--output", tmp_path)
    assert again.returncode == 2
    assert not (tmp_path / "tiny/config.py").exists()
