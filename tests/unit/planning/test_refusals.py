"""Runs that cannot learn are refused, with remedies that work."""

import json
import re

import pytest

from benchmarks.ranks import last_of_each
from recipe.core import translation
from recipe.planning import refusals
from support.command import refused
from support.plans import planned


@pytest.mark.slow
def test_ten_rows_are_refused_before_mmengine_crashes(workbook, tmp_path):
    rows = [[f"第{i}个问题怎么办？", f"这是第{i}个答案。"] for i in range(10)]
    path = workbook(s=[["q", "a"], *rows])
    done, found = planned(tmp_path, "tiny", f'data.files=["{path}"]', "train.max_epochs=3", "train.warmup_ratio=0.03")
    refused(done, 2, "warm-up has 0 iterations", "train.warmup_ratio=", "optimizer updates")
    assert {refusal["fault"] for refusal in found["refusals"]} >= {"warmup-crash", "few-updates"}


@pytest.mark.slow
def test_remedies_work(tmp_path):
    """Each refusal's own advice, typed as it stands, is accepted in the end."""
    words = ["train.max_epochs=2", "train.warmup_ratio=0.01", "train.accumulative_counts=16", "train.save_steps=500"]
    done, _ = planned(tmp_path, "tiny", *words)
    refused(done, 2, "train.warmup_ratio=", "train.accumulative_counts=", "train.save_steps=0.5")
    remedies = re.findall(r"train\.\w+=[\d.]*\d", done.stderr)
    overrides = dict(word.split("=") for word in [*words, *remedies])
    overrides["train.save_steps"] = "0.5"
    [together] = re.findall(r"^All of it together: (.*) \((\d+) iterations, (\d+) updates, 99% of", done.stderr, re.M)
    done, found = planned(tmp_path, "tiny", *last_of_each(*words, *together[0].split()))
    assert done.returncode == 0, done.stderr
    assert (found["iterations"], found["updates"]) == (int(together[1]), int(together[2]))
    done, found = planned(tmp_path, "tiny", *(f"{k}={v}" for k, v in overrides.items()))
    assert done.returncode == 0, done.stderr
    assert found["refusals"] == []


@pytest.mark.slow
def test_of_more_iterations_the_warm_up_may_be_long_enough(tmp_path, workbook):
    """40 rows by coach's settings: one remedy after the other asked for 0.17 of 3 epochs, then for less of 8."""
    path = workbook(s=[["q", "a"], *[[f"第{i}个问题？", f"第{i}个回答，说得长一些。"] for i in range(40)]])
    words = (f'data.files=["{path}"]', "train.accumulative_counts=4", "train.max_epochs=1", "train.warmup_ratio=0.1")
    done, _ = planned(tmp_path, "tiny", *words)
    refused(done, 2, "The warm-up has 0 iterations", "optimizer updates", "All of it together: ")
    [together] = re.findall(r"^All of it together: (.*) \(", done.stderr, re.M)
    assert "train.warmup_ratio" not in together
    done, found = planned(tmp_path, "tiny", *last_of_each(*words, *together.split()))
    assert (done.returncode, found["refusals"]) == (0, []), done.stderr


@pytest.mark.slow
def test_nothing_to_learn_from_is_refused(tmp_path):
    done, found = planned(tmp_path, "tiny", "train.max_length=32", "train.max_epochs=1")
    refused(done, 2, "No token with loss reaches the trainer", "train.max_length=256")
    assert found is None


@pytest.mark.slow
def test_long_answers_are_refused_by_line(workbook, tmp_path):
    path = workbook(
        s=[["q", "a"], ["问", "短。"], ["问二", "很长的答案" * 200], *[[f"问{i}", "答。"] for i in range(60)]]
    )
    done, _ = planned(tmp_path, "tiny", f'data.files=["{path}"]')
    refused(
        done,
        2,
        "1 conversation(s) are longer",
        "lines 2 of dataset.jsonl",
        "would not learn to stop",
        "train.max_length=",
    )


@pytest.mark.slow
def test_force_goes_on_and_is_recorded(tmp_path):
    words = ("train.max_epochs=2", "train.accumulative_counts=16")
    done, _ = planned(tmp_path, "tiny", *words)
    assert done.returncode == 2
    done, found = planned(tmp_path, "tiny", *words, "--force")
    assert done.returncode == 0
    assert found["updates"] == 5
    assert "forced: Only 5 optimizer updates" in done.stdout
    assert " --force" in done.stdout.split("Next: ")[1], "without it the next command is refused"
    assert json.loads((tmp_path / "tiny/run.json").read_text(encoding="utf-8"))["forced"] is True


class SimpleConfig(dict):
    """A config of the attributes that refusals read."""

    __getattr__ = dict.__getitem__


PLAN = {
    "iterations": 4, "iterations_per_epoch": 2, "ranks": 2, "batch_size": 1, "accumulative_counts": 3, "updates": 1,
    "update_sequences": 2048, "packs": 9, "packs_repeated": 1, "duplicates": 1, "warmup_iterations": 1,
    "lr_peak": 2e-5, "lr_configured": 2e-2, "answer_tokens": 100, "answer_tokens_kept": 40, "rows_cut": [3, 8],
    "rows_masked": [], "max_length": 512, "longest_row": 900, "map_num_proc": 4, "intervals": {},
    "updates_with_deepspeed": 1, "updates_without_deepspeed": 2,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"rows_cut": [], "iterations_per_epoch": 40, "iterations": 80, "ranks": 1},
                                     {"rows_cut": [], "map_num_proc": 1, "duplicates": 2}])  # fmt: skip
@pytest.mark.parametrize("crash", ["", "end must be greater than begin"])
def test_texts_are_stored_in_english_and_shown_in_chinese(changes, crash):
    cfg = SimpleConfig(max_epochs=2, evaluation_freq=500, save_steps=500)
    plan = {**PLAN, **changes}
    found = [one["why"] for one in refusals.refusals(plan, cfg, crash, True)] + refusals.warnings(plan)
    assert len(found) > 6
    with translation.use("zh"):
        for text in found:
            assert text.isascii()
            shown = translation.stored(text).replace(crash, "") if crash else translation.stored(text)
            # What is left of English are names: settings, DeepSpeed, GPU, token, mmengine.
            assert not re.search(r"[a-z]{2,} [a-z]{2,}", shown), shown
            assert re.findall(r"train\.\w+=\w+", text) == re.findall(r"train\.\w+=\w+", shown)
