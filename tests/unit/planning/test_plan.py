"""The plan: golden numbers of the published run, refusals with working remedies, equality with XTuner."""

import json
import re

import pytest
from conftest import ROOT, recipe, refused

from recipe.core import imports, settings
from recipe.planning import schedule
from recipe.planning.tokens import count
from recipe.xtuner import config

SYSTEM = settings.load("tutorial")[1].data.system


@pytest.fixture(scope="module", autouse=True)
def loaded():
    imports.load()


@pytest.fixture(scope="module")
def cfg():
    return config.effective(settings.load("tutorial")[1])


@pytest.fixture(scope="module")
def real_tokens(real_workbook, real_tokenizer, cfg):
    """Function: token counts of the tutorial's workbook with a system prompt."""
    from recipe.base_model.tiny import tokenizer_from_model
    from recipe.intake import dataset

    tokenizer = tokenizer_from_model(real_tokenizer)
    return lambda system: count(dataset.sample(real_workbook, system), cfg.prompt_template, tokenizer, 512)


# learning rates of the published log (an RTX 3090, 2024-03-17), iterations 10 to 50 of 51
PUBLISHED = {10: 1.8763e-09, 20: 1.4258e-09, 30: 8.1262e-10, 40: 2.7103e-10, 50: 7.8853e-12}


def test_published_learning_rates(cfg):
    trace = schedule.learning_rates(cfg.param_scheduler, cfg.lr, per_epoch=17, iterations=51)
    for iteration, rate in PUBLISHED.items():
        assert f"{trace[iteration - 1]:.4e}" == f"{rate:.4e}"


def test_smallest_warmup_that_ramps():
    assert schedule.smallest_warmup(17, 3) == 0.04


@pytest.mark.parametrize(("ratio", "peak"), [(0.03, False), (0.04, True), (0.1, True)])
def test_warmup_reaches_the_peak_or_not(cfg, ratio, peak):
    schedulers = [dict(item) for item in cfg.param_scheduler]
    schedulers[0]["end"] = schedulers[1]["begin"] = ratio * 3
    trace = schedule.learning_rates(schedulers, 2e-4, per_epoch=17, iterations=51)
    assert (max(trace) > 0.99 * 2e-4) is peak


def test_warmup_that_rounds_to_zero_is_what_mmengine_refuses(cfg):
    with pytest.raises(ValueError, match="end should be larger than begin"):
        schedule.learning_rates(cfg.param_scheduler, cfg.lr, per_epoch=11, iterations=33)


def test_updates_at_the_published_size():
    assert schedule.updates(51, 16, deepspeed=True) == 3
    assert schedule.updates(51, 16, deepspeed=False) == 4


def test_token_counts_of_the_tutorials_workbook(real_tokens):
    tokens = real_tokens(SYSTEM)
    assert sum(tokens["lengths"]) == 27714
    assert max(tokens["lengths"]) == 164
    assert tokens["cut"] == tokens["masked"] == []
    assert sum(real_tokens("")["lengths"]) == 19104


def planned(output, *words):
    done = recipe("plan", *words, "--output", output)
    path = output / words[0] / "plan.json"
    return done, json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


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


def test_ten_rows_are_refused_before_mmengine_crashes(workbook, tmp_path):
    rows = [[f"第{i}个问题怎么办？", f"这是第{i}个答案。"] for i in range(10)]
    path = workbook(s=[["q", "a"], *rows])
    done, found = planned(tmp_path, "demo", f'data.files=["{path}"]', "train.max_epochs=3", "train.warmup_ratio=0.03")
    refused(done, 2, "warm-up has 0 iterations", "train.warmup_ratio=", "optimizer updates")
    assert {refusal["fault"] for refusal in found["refusals"]} >= {"warmup-crash", "few-updates"}


def test_remedies_work(tmp_path):
    """Each refusal's own advice, typed as it stands, is accepted in the end."""
    words = ["train.max_epochs=2", "train.warmup_ratio=0.01", "train.accumulative_counts=16", "train.save_steps=500"]
    done, _ = planned(tmp_path, "demo", *words)
    refused(done, 2, "train.warmup_ratio=", "train.accumulative_counts=", "train.save_steps=0.5")
    remedies = re.findall(r"train\.\w+=[\d.]*\d", done.stderr)
    overrides = dict(word.split("=") for word in [*words, *remedies])
    overrides["train.save_steps"] = "0.5"
    [together] = re.findall(r"^All of it together: (.*) \((\d+) iterations, (\d+) updates, 99% of", done.stderr, re.M)
    done, found = planned(tmp_path, "demo", *words, *together[0].split())
    assert done.returncode == 0, done.stderr
    assert (found["iterations"], found["updates"]) == (int(together[1]), int(together[2]))
    done, found = planned(tmp_path, "demo", *(f"{k}={v}" for k, v in overrides.items()))
    assert done.returncode == 0, done.stderr
    assert found["refusals"] == []


def test_of_more_iterations_the_warm_up_may_be_long_enough(tmp_path, workbook):
    """40 rows by coach's settings: one remedy after the other asked for 0.17 of 3 epochs, then for less of 8."""
    path = workbook(s=[["q", "a"], *[[f"第{i}个问题？", f"第{i}个回答，说得长一些。"] for i in range(40)]])
    words = (f'data.files=["{path}"]', "train.accumulative_counts=4", "train.max_epochs=1", "train.warmup_ratio=0.1")
    done, _ = planned(tmp_path, "demo", *words)
    refused(done, 2, "The warm-up has 0 iterations", "optimizer updates", "All of it together: ")
    [together] = re.findall(r"^All of it together: (.*) \(", done.stderr, re.M)
    assert "train.warmup_ratio" not in together
    done, found = planned(tmp_path, "demo", *words, *together.split())
    assert (done.returncode, found["refusals"]) == (0, []), done.stderr


def test_prices_do_not_draw_another_seed(tmp_path, workbook):
    """A recipe without a seed draws one for its folder: looking at the price must not throw training away."""
    path = tmp_path / "noseed.toml"
    text = (ROOT / "recipe/demo.toml").read_text(encoding="utf-8").replace("seed = 0\n", "")
    path.write_text(text, encoding="utf-8")
    seeds = []
    for more in ([], ["plan.price_per_hour=2.0"], ["--force"]):
        assert recipe("plan", path, *more, "--output", tmp_path).returncode == 0
        seeds.append(json.loads((tmp_path / "noseed/plan.json").read_text(encoding="utf-8"))["seed"])
    assert len(set(seeds)) == 1


def test_nothing_to_learn_from_is_refused(tmp_path):
    done, found = planned(tmp_path, "demo", "train.max_length=32", "train.max_epochs=1")
    refused(done, 2, "No token with loss reaches the trainer", "train.max_length=256")
    assert found is None


def test_evaluations_happen_at_checkpoints_too(tmp_path):
    _, found = planned(tmp_path, "demo")
    quarter = found["iterations"] // 4
    assert found["evaluations"] == [0, quarter, 2 * quarter, 3 * quarter, found["iterations"]]
    assert found["checkpoints_kept"] == 2


def test_long_answers_are_refused_by_line(workbook, tmp_path):
    path = workbook(
        s=[["q", "a"], ["问", "短。"], ["问二", "很长的答案" * 200], *[[f"问{i}", "答。"] for i in range(60)]]
    )
    done, _ = planned(tmp_path, "demo", f'data.files=["{path}"]')
    refused(
        done,
        2,
        "1 conversation(s) are longer",
        "lines 2 of dataset.jsonl",
        "would not learn to stop",
        "train.max_length=",
    )


def test_force_goes_on_and_is_recorded(tmp_path):
    words = ("train.max_epochs=2", "train.accumulative_counts=16")
    done, _ = planned(tmp_path, "demo", *words)
    assert done.returncode == 2
    done, found = planned(tmp_path, "demo", *words, "--force")
    assert done.returncode == 0
    assert found["updates"] == 5
    assert "forced: Only 5 optimizer updates" in done.stdout
    assert " --force" in done.stdout.split("Next: ")[1], "without it the next command is refused"
    assert json.loads((tmp_path / "demo/run.json").read_text(encoding="utf-8"))["forced"] is True


def test_turns_reach_the_trainer_with_loss_on_the_outputs_only(cfg, workbook):
    """Labels of a two-turn conversation after XTuner's own map and encode: the outputs and their end, no more."""
    import datasets
    from xtuner.dataset.huggingface import process
    from xtuner.dataset.map_fns import template_map_fn_factory

    from recipe.base_model import tokenizer as base_model_tokenizer
    from recipe.core.run import Run
    from recipe.intake import dataset

    _, recipe_settings = settings.load("demo")
    tokenizer = base_model_tokenizer.tokenizer(Run("demo", recipe_settings, ROOT, ROOT / "output"))
    rows = [["conversation", "q", "a"], [1, "压力大怎么办？", "先休息。"], [1, "然后呢？", "再说出来。"]]
    (conversation,) = dataset.sample(workbook(s=rows), "系统")
    made = process(
        dataset=datasets.Dataset.from_list([{"conversation": conversation}]),
        tokenizer=tokenizer,
        max_length=512,
        template_map_fn=template_map_fn_factory(cfg.prompt_template),
        split=None,
        remove_unused_columns=True,
        pack_to_max_length=False,
        map_num_proc=1,
    )[0]
    with_loss = [token for token, label in zip(made["input_ids"], made["labels"]) if label >= 0]
    assert all(label in (-100, token) for token, label in zip(made["input_ids"], made["labels"]))
    assert tokenizer.decode(with_loss) == "先休息。<|im_end|>再说出来。<|im_end|>"
    assert tokenizer.decode(made["input_ids"]) == (
        "<s><|im_start|>system\n系统<|im_end|>\n<|im_start|>user\n压力大怎么办？<|im_end|>\n<|im_start|>assistant\n先休息。"
        "<|im_end|>\n<|im_start|>user\n然后呢？<|im_end|>\n<|im_start|>assistant\n再说出来。<|im_end|>\n"
    )
