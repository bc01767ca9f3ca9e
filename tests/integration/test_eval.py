"""The demo's evaluation on its held-out conversations."""

import json
import math
import re
import shutil

import pytest
import torch

from recipe.core import settings
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.inference import chat_model, loading, prompt
from recipe.intake import dataset
from recipe.planning import tokens
from recipe.stages import evaluate as evaluate_stage
from recipe.stages import pipeline
from support.command import ROOT, recipe, refused

# ---- Measuring


@pytest.fixture(scope="module")
def found(demo):
    """eval.json as the demo wrote it."""
    return json.loads((demo[1] / "eval.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """A copy of the demo's run folder, to measure in and to break."""
    output = tmp_path_factory.mktemp("eval")
    shutil.copytree(str(demo[1]), str(output / "tiny"))
    run = Run("tiny", settings.load("tiny")[1], ROOT, output)
    with run.open():
        run.use_trained_settings()
    return run


@pytest.fixture(scope="module")
def voice(run):
    return chat_model.ChatModel(run.merged, prompt.template(run))


@pytest.fixture(scope="module")
def encoded(run, voice):
    return [
        tokens.encoded(one, voice.template, voice.tokenizer, 256) for one in dataset.conversations(run.eval_dataset)
    ]


def measured(run, **more):
    done = recipe("eval", "tiny", "--output", run.output, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((run.folder / "eval.json").read_text(encoding="utf-8"))


def test_the_demo_measures_what_it_held_out(demo, found):
    assert found["conversations"] == found["answered"] == len(found["samples"]) == 10
    for name in ("base", "tuned"):
        one = found["models"][name]
        assert one["loss_interval"][0] < one["loss"] < one["loss_interval"][1]
        assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
        assert all(0 <= one[score] <= 100 for score in ("bleu4", "rouge_l", "chrf"))
        assert all(0 <= one[share] <= 1 for share in ("repetition", "copied", "never_stops"))
    before, after = (found["models"][name] for name in ("base", "tuned"))
    assert before["loss"] == pytest.approx(math.log(2048), abs=0.2)  # random weights: a guess among the tiny vocabulary
    assert found["difference"]["loss"] == pytest.approx(after["loss"] - before["loss"])
    low, high = found["difference"]["interval"]
    assert found["verdict"] == ("better" if high < 0 else "worse" if low > 0 else "no difference")
    assert after["never_stops"] < before["never_stops"]
    assert after["rouge_l"] > before["rouge_l"]
    manifest = json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))
    assert manifest["stages"]["eval"]["figures"] == {k: v for k, v in found.items() if k != "samples"}
    assert found["summary"] in demo[0].stdout
    held = [one[-1] for one in dataset.conversations(demo[1] / "eval.jsonl")]
    assert [(s["question"], s["reference"]) for s in found["samples"]] == [(t["input"], t["output"]) for t in held]


def test_the_loss_is_transformers_own_whatever_the_batch(found, voice, encoded):
    alone = []
    for one in encoded:
        ids, labels = (torch.tensor([one[name]]) for name in ("input_ids", "labels"))
        with torch.inference_mode():
            alone.append(float(voice.model(input_ids=ids, labels=labels).loss))
    counts = [sum(label >= 0 for label in one["labels"]) for one in encoded]
    for batch_size in (1, 3, 8):
        losses = voice.losses(encoded, batch_size)
        assert [count for _, count in losses] == counts
        assert [total / count for total, count in losses] == pytest.approx(alone, rel=1e-4)
    total = sum(mean * count for mean, count in zip(alone, counts))
    assert found["models"]["tuned"]["loss"] == pytest.approx(total / sum(counts), rel=1e-4)
    assert found["tokens"] == sum(counts)


def test_answers_in_a_batch_are_those_asked_alone(found, run, voice):
    system = run.settings.data.system
    questions = ["压力大怎么办？", "面试前特别紧张，怎么调整？", "早"]
    prompts = [voice.prompt(system, [], question) for question in questions]
    together = voice.answer_batch(prompts, 40, 8)
    assert together == [voice.answer(system, [], question, limit=40) for question in questions]
    assert together[::-1] == voice.answer_batch(prompts[::-1], 40, 2)
    assert any(answer.ended for answer in together)
    assert voice.answer(system, [], questions[0], limit=2).ended is False


def test_the_base_is_measured_once_for_all_recipes(run, found, monkeypatch, tmp_path):
    """Then, from the cache, unless that is damaged; and without a merged model, the adapter on the base."""
    shutil.rmtree(str(run.merged))
    said, first = measured(run, RECIPE_CACHE=str(tmp_path))
    assert (first["tuned"], first["base_cached"]) == ("adapter", False)
    assert first["models"]["base"] == found["models"]["base"]
    assert first["models"]["tuned"]["loss"] == pytest.approx(found["models"]["tuned"]["loss"], abs=1e-3)
    assert "Held out: 10 conversations" in said
    assert first["summary"] in said
    [kept] = (tmp_path / "eval").iterdir()
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))
    cached = evaluate_stage.make(run, tmp_path)
    assert cached == {**{name: value for name, value in first.items() if name != "samples"}, "base_cached": True}
    kept.write_text(kept.read_text(encoding="utf-8")[:500], encoding="utf-8")
    assert evaluate_stage.make(run, tmp_path)["base_cached"] is False
    assert json.loads(kept.read_text(encoding="utf-8"))["losses"]


def test_what_cannot_be_measured_is_told_and_loses_nothing(run, demo, monkeypatch, capsys):
    def broken(*_):
        raise HostLacks("too small a card")

    monkeypatch.setattr(pipeline, "perform", broken)
    pipeline.run_stages(run, "merge", (evaluate_stage.STAGE,))
    assert "not measured: too small a card" in capsys.readouterr().out
    with pytest.raises(HostLacks):
        pipeline.run_stages(run, "eval", (evaluate_stage.STAGE,))
    monkeypatch.undo()
    run.eval_dataset.write_text("", encoding="utf-8")
    pipeline.run_stages(run, "merge", (evaluate_stage.STAGE,))
    assert capsys.readouterr().out == ""
    with pytest.raises(InputWrong, match=r"Nothing is held out of training in .*data.eval_share.*eval_files"):
        evaluate_stage.make(run, run.folder)


def test_what_was_looked_at_since_changes_no_verdict(run, found, monkeypatch, tmp_path):
    """Other data in the folder of a trained model: what is held out of those, it was trained on."""
    monkeypatch.setenv("RECIPE_CACHE", str(tmp_path))  # the base is measured anew, too
    words = ("data.eval_share=0.5", "data.system=另一个助手。", "train.template=vicuna", "--force")
    looked = recipe("config", "tiny", *words, "--output", run.output)
    assert looked.returncode == 0, looked.stderr
    assert len(run.eval_dataset.read_text(encoding="utf-8").splitlines()) > 40
    said, again = measured(run, RECIPE_CACHE=str(tmp_path))
    for what in ("conversations", "measured_on", "verdict"):
        assert again[what] == found[what]
    for which in ("base", "tuned"):
        assert again["models"][which]["loss"] == pytest.approx(found["models"][which]["loss"], abs=1e-3)
    page = (run.folder / "report/index.html").read_text(encoding="utf-8")
    assert "Nothing is trained" not in page
    assert "Left out" not in page
    assert re.search(r"data +94 conversations|data .*94 conversations", said)
    with run.open():
        run.use_trained_settings()
    assert run.settings.data.system == settings.load("tiny")[1].data.system  # export and chat take it too


def test_data_that_changed_since_the_training_measure_nothing(run):
    path = run.folder / "run.json"
    before, data_before = path.read_bytes(), run.dataset.read_bytes()
    manifest = json.loads(before)
    manifest["trained"]["settings"]["data"]["files"] = ["data/gone.xlsx"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    measured(run)  # what was held out is there: the workbook is not asked for
    path.write_bytes(before)
    manifest = json.loads(before)
    manifest["trained"]["data"] = dict.fromkeys(manifest["trained"]["data"], "0" * 64)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    done = recipe("eval", "tiny", "--output", run.output)
    refused(done, 2, "data/workplace.xlsx: it changed since the training", f"just merge tiny --output {run.output}")
    assert run.dataset.read_bytes() == data_before
    path.write_bytes(before)


def test_measuring_and_talking_never_train(run, tmp_path):
    for stage in ("eval", "chat"):
        words = (stage, "tiny", "train.lr=3e-4")
        refused(recipe(*words, "--output", tmp_path), 2, "has been trained in", "just merge tiny --output", "lr=3e-4")
        refused(recipe(*words, "--output", run.output), 2, f"{stage} never trains, and the model", "train.lr was 0.0")
    assert not (tmp_path / "tiny/dataset.jsonl").exists()


def test_a_damaged_model_is_one_clear_error(run):
    """The command that makes it anew has the overrides of the training: without them it would be another."""
    path = run.folder / "run.json"
    before = path.read_bytes()
    manifest = json.loads(before)
    manifest["trained"]["settings"]["train"]["lr"] = 3e-4
    path.write_text(json.dumps(manifest), encoding="utf-8")
    weights = run.peft / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    done = recipe("chat", "tiny", "你好", "model=adapter", "--output", run.output)
    refused(
        done, 3, "adapter model cannot be loaded", f"just adapter tiny --output {run.output} train.lr=0.0003 recreates"
    )
    weights.write_bytes(whole)
    path.write_bytes(before)


def test_what_the_machine_lacks_is_no_damage(run):
    for error in (MemoryError(), RuntimeError("CUDA error: no kernel image is available"), ImportError("x")):
        with pytest.raises(type(error)), loading.explain_load_errors(run, loading.find_model(run, "base")):
            raise error
