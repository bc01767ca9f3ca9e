"""The whole pipeline, as a new user runs it: what it must show."""

import json
import re
import time

import pytest

from support.command import recipe, refused


@pytest.fixture(scope="module")
def manifest(demo):
    return json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def figures(manifest):
    return {name: entry["figures"] for name, entry in manifest["stages"].items()}


def test_every_stage_ran_and_is_in_the_manifest(manifest):
    assert list(manifest["stages"]) == ["data", "plan", "config", "model", "train", "adapter", "merge", "chat", "eval"]
    assert max(entry["peak_memory_mb"] for entry in manifest["stages"].values()) <= 3000


def test_it_learns(figures):
    train = figures["train"]
    assert train["loss_last"] <= 0.7 * train["loss_first"]
    assert train["iterations"] == train["updates"] == figures["plan"]["iterations"]
    assert train["lr_peak_logged"] == pytest.approx(figures["plan"]["lr_configured"], rel=1e-3)


def test_the_merge_changes_more_than_half_of_the_tensors(figures):
    assert figures["merge"]["tensors_changed"] > figures["merge"]["tensors"] / 2


def test_the_merged_model_answers_ends_and_differs_from_the_base(figures):
    samples = figures["chat"]["samples"]
    assert len(samples) == 2
    for sample in samples:
        assert sample["merged"]
        assert sample["merged_ended"]
        assert sample["merged"] != sample["base"]


def test_closing_table_tells_everything(demo, figures):
    said = demo[0].stdout
    for word in (
        "rows", "tokens", "kept", "iterations", "optimizer updates", "peak learning rate", "loss first → last",
        "weights changed", "seconds", "checkpoint", "adapter", "merged model", "run.json", " chat tiny",
        f"{figures['plan']['tokens']:,}", f"{figures['plan']['tokens_kept']:,}", figures["train"]["checkpoint"],
    ):  # fmt: skip
        assert word in said, word
    assert "Warning" not in demo[0].stderr


def test_run_again_unchanged_it_skips_everything(demo):
    began = time.time()
    done = recipe("demo", "tiny", "--output", demo[1].parent)
    assert done.returncode == 0, done.stderr
    assert time.time() - began < 15
    assert done.stdout.count("unchanged") == 8  # all but the look at the base model
    assert "loss first → last" in done.stdout


def test_chat_never_trains(demo):
    """The merged model is there: its folder's settings may differ from the recipe's by then."""
    before = (demo[1] / "run.json").read_bytes()
    done = recipe("chat", "tiny", "你好", "--output", demo[1].parent)
    assert done.returncode == 0, done.stderr
    assert "iterations" not in done.stdout
    assert (demo[1] / "run.json").read_bytes() == before


def test_an_ascii_terminal_ends_no_run(demo):
    done = recipe("plan", "tiny", "--output", demo[1].parent, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_the_rendered_config_is_an_ordinary_xtuner_config(demo):
    from mmengine.config import Config

    cfg = Config.fromfile(str(demo[1] / "config.py"))
    assert cfg.train_cfg.max_epochs == cfg.max_epochs
    text = (demo[1] / "config.py").read_text(encoding="utf-8")
    hooks = {
        f"recipe.training.hooks.{name}"
        for name in (
            "AtomicCheckpointHook",
            "DeterminismHook",
            "RelaxDeterminismHook",
            "DivergenceHook",
            "DedupeEvalHook",
            "TimingHook",
        )
    }
    assert set(re.findall(r"\brecipe\.[\w.]+", text)) == {
        *hooks,
        "recipe.inference.chat_hook.BatchChatHook",
        "recipe.training.loop.TrainLoop",
        "recipe.base_model.internlm2",
    }


def test_one_question_and_a_pipe(demo):
    question = "面试前特别紧张，怎么调整？"
    done = recipe("chat", "tiny", question, "--output", demo[1].parent)
    assert done.returncode == 0, done.stderr
    samples = json.loads((demo[1] / "samples.json").read_text(encoding="utf-8"))
    assert samples[1]["question"] == question
    assert samples[1]["merged"] in done.stdout


def test_multi_turn_prompt_equals_what_was_trained(demo):
    """chat builds the text that training made of the same turns."""
    from mmengine.config import Config

    from recipe.inference.terminal import ChatModel

    talker = ChatModel.__new__(ChatModel)
    talker.template = Config.fromfile(str(demo[1] / "config.py")).prompt_template
    assert talker.prompt("系统", [("问一", "答一")], "问二") == (
        "<|im_start|>system\n系统<|im_end|>\n<|im_start|>user\n问一<|im_end|>\n<|im_start|>assistant\n答一<|im_end|>\n"
        "<|im_start|>user\n问二<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["demo", "tiny", "data.files=data/none.xlsx"], 2, ["no workbook data/none.xlsx", "workplace-en.xlsx"]),
        (["demo", "no-such-recipe"], 2, ["no recipe", "coach, demo, tiny, tutorial"]),
        (["demo", "tiny", "too", "many"], 2, ["Too many words", "Usage"]),
        (["demo", "tiny", "train.lr=0.05"], 2, ["less than or equal to 0.01"]),
        (["model", "coach", "model.path=/no/such/folder"], 2, ["model.path", "/no/such/folder"]),
        (["plan", "tiny", "model.tokenizer=/no/such/file"], 2, ["model.tokenizer"]),
        (["plan", "tiny", "model.tokenizer=README.md"], 2, ["README.md is not a tokenizer"]),
        (["plan", "tiny", "model.path=docker"], 2, ["docker is not a tokenizer"]),
        (["chat", "tiny", "一", "二"], 2, ["Too many words", "[QUESTION]"]),
        (["config", "tiny", "base=no_such_preset"], 2, ["no preset 'no_such_preset'"]),
    ],
)
def test_mistakes_end_with_one_clear_paragraph(tmp_path, words, code, said):
    refused(recipe(*words, "--output", tmp_path), code, *said)


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(recipe("demo", "tiny", "--output", tmp_path / "file"), 3, "Cannot write the output folder", "--output")


def test_broken_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("base = \n", encoding="utf-8")
    refused(recipe("demo", path, "--output", tmp_path), 2, "not valid TOML", "line 1")


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "folder").mkdir()
    refused(recipe("model", "coach", f"model.path={tmp_path / 'folder'}", "--output", tmp_path), 3, "no config.json")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "folder/config.json").write_text("{}")
    (tmp_path / "folder/model.safetensors.index.json").write_text(json.dumps(index))
    refused(
        recipe("model", "coach", f"model.path={tmp_path / 'folder'}", "--output", tmp_path), 3, "model-00001-of-00002"
    )


def test_earlier_outputs_survive_a_mistake(demo):
    before = sorted((p.name, p.stat().st_mtime_ns) for p in demo[1].iterdir() if not p.name.startswith("."))
    assert recipe("demo", "tiny", 'data.files=["data/none.xlsx"]', "--output", demo[1].parent).returncode == 2
    after = sorted((p.name, p.stat().st_mtime_ns) for p in demo[1].iterdir() if not p.name.startswith("."))
    assert before == after


def test_words_that_would_be_taken_for_others_are_refused(demo):
    refused(recipe("chat", "tiny", "train.lr＝1e-4", "--output", demo[1].parent), 2, "Type = instead")
    for stage in ("verify", "watch", "stop"):
        refused(recipe(stage, "tiny", "train.lr=1", "--output", demo[1].parent), 2, f"{stage} takes no settings")
    refused(recipe("preview", "tiny", "²", "--output", demo[1].parent), 2, "is not a conversation number")
