"""Settings under the names of other trainers, and as people type them."""

import hashlib

import pytest

from recipe.cli import grammar, schema
from recipe.core import other_names, settings
from recipe.core.errors import InputWrong
from support.command import ROOT, recipe, refused

KNOWN = settings.known_keys()


def test_every_name_leads_to_a_setting_of_ours():
    assert set(other_names.OURS.values()) <= set(KNOWN)
    ours = {key.rpartition(".")[2] for key in KNOWN}
    assert not other_names.NONE_OF_OURS & (set(other_names.OURS) | ours)


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("train.learning_rate", "train.lr"), ("learning_rate", "train.lr"), ("train.gradient_accumulation_steps",
         "train.accumulative_counts"), ("train.cutoff_len", "train.max_length"), ("data.path", "data.files"),
        ("train.per_device_train_batch_size", "train.batch_size"), ("micro_batch_size", "train.batch_size"),
        ("num_train_epochs", "train.max_epochs"), ("max_seq_length", "train.max_length"), ("sequence_len",
         "train.max_length"), ("lora_rank", "lora.r"), ("train.lora_alpha", "lora.lora_alpha"), ("lora_r", "lora.r"),
        ("model_name_or_path", "model.id"), ("model.base_model", "model.id"), ("val_size", "data.eval_share"),
        ("max-grad-norm", "train.max_norm"), ("data.dataset", "data.files"), ("lora.rank", "lora.r"),
        ("random_state", "train.seed"), ("logging_steps", "train.log_interval"), ("finetuning_type", "train.method"),
        ("sample_packing", "train.pack_to_max_length"), ("system_prompt", "data.system"), ("train.Learning_Rate",
         "train.lr"), ("max_epochs", "train.max_epochs"), ("data.lr", "train.lr"), ("eval_steps",
         "train.evaluation_freq"),
    ],
)  # fmt: skip
def test_names_of_other_trainers_lead_to_ours(tmp_path, given, ours):
    assert other_names.ours(given, KNOWN) == ours
    if "-" in given:
        return
    for check in (lambda words: settings.load("tiny", words), lambda words: grammar.check("plan", ["tiny", *words])):
        with pytest.raises(InputWrong, match=f"unknown key; did you mean {ours}"):
            check([f"{given}=1"])


@pytest.mark.parametrize(
    "given", ["train.lora_target", "optim", "train.lr_scheduler_type", "flash_attn", "load_in_4bit"]
)
def test_what_has_no_counterpart_is_not_guessed(given):
    for check in (lambda words: settings.load("tiny", words), lambda words: grammar.check("plan", ["tiny", *words])):
        with pytest.raises(InputWrong, match="no counterpart here") as caught:
            check([f"{given}=1"])
        assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.sheet=2024", ["2024"]), ("data.sheet=2024-01", ["2024-01"]), ("data.sheet=1.10", ["1.10"]),
        ("data.sheet=007", ["007"]), ("data.sheet=true", ["true"]), ("data.sheet=2024-01-01", ["2024-01-01"]),
        ("data.columns.question=1", "1"), ("model.revision=1e5", "1e5"), ("data.system=2024", "2024"),
        ("data.files=2024", ["2024"]), ("data.sheet=[\"2024\"]", ["2024"]), ("train.evaluation_images=7", ["7"]),
        ("model.id=0x10", "0x10"), ("plan.card=4090", "4090"),
    ],
)  # fmt: skip
def test_texts_that_look_like_numbers_are_texts(override, value):
    from recipe.core.overrides import get

    key = override.partition("=")[0]
    assert get(settings.load("tiny", [override])[1], key) == value
    found = grammar.check("plan", ["tiny", override]).values
    for name in key.split("."):
        found = found[name]
    assert found in (value, value[0])


def test_both_checks_know_the_same_texts():
    known = grammar.load()["settings"]
    assert {key for key in known if schema.wants_text(known[key])} == settings.text_keys()


def test_a_number_for_a_text_in_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    text = (ROOT / "recipe" / "tiny.toml").read_text(encoding="utf-8")
    path.write_text(text.replace("[data]", "[data]\nsheet = 2024"), encoding="utf-8")
    assert settings.load(str(path))[1].data.sheet == ["2024"]
    path.write_text(text.replace("[data]", "[data]\nurl = 2024"), encoding="utf-8")
    with pytest.raises(InputWrong, match="put it in quotes"):
        settings.load(str(path))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.lr=1e-4", "train.lr=2e-4"], "train.lr is given twice: train.lr=1e-4 and train.lr=2e-4"),
        (["data.files=a.xlsx", "train.lr=1e-4", "data.files=b.xlsx"], "data.files is given twice"),
        (["train.seed=1", "train.seed=1"], "train.seed is given twice"),
        (["data.files=~/mine.xlsx"], "~ is not expanded here. Write /"), (['data.files=["~/a.xlsx"]'],
        "~ is not expanded"),
        (["model.path=~/models/x"], "model.path: ~ is not expanded"),
        (['train.evaluation_inputs=["", "好吗？"]'], "train.evaluation_inputs"),
        (['train.evaluation_inputs=["好吗？", " "]'], "a text is empty"), (["train.evaluation_inputs=[]"],
        "evaluation_inputs"),
    ],
)  # fmt: skip
def test_what_people_type_is_refused_with_the_reason(tmp_path, words, told):
    refused(recipe("data", "tiny", *words, "--output", tmp_path), 2, told)


def test_a_home_in_a_recipe_file_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    text = (ROOT / "recipe" / "tiny.toml").read_text(encoding="utf-8")
    path.write_text(text.replace('"data/workplace.xlsx"', '"~/mine.xlsx"'), encoding="utf-8")
    with pytest.raises(InputWrong, match="~ is not expanded here"):
        settings.load(str(path))


@pytest.mark.parametrize("change", [str.upper, str.lower, " {} ".format, str.title])
def test_a_checksum_in_any_case_is_the_same(workbook, tmp_path, change):
    path = workbook(s=[["q", "a"], ["甲？", "一"]])
    right = change(hashlib.sha256(path.read_bytes()).hexdigest())
    words = ["data", "tiny", f"data.files={path}", "--output", tmp_path]
    done = recipe(*words, f"data.sha256={right}")
    assert done.returncode == 0, done.stderr
    refused(recipe(*words, "data.sha256=ABC"), 2, "is not the workbook")


@pytest.mark.parametrize("length", [130, 360, 5000])
def test_a_text_in_the_place_of_a_file_is_shortened(tmp_path, length):
    text = ("我最近总是很累，睡不好，也不想见人。" * 300)[:length]
    for setting, words in (("data.files", []), ("data.eval_files", ["data.files=data/workplace.xlsx"])):
        done = recipe("data", "tiny", f'{setting}=["{text}"]', *words, "--output", tmp_path)
        refused(done, 2, f"{setting} takes the names of files", f"{length} characters")
        assert len(done.stderr) < 400


@pytest.mark.parametrize(
    "question", ["x=2的话，y是多少？", "1+1=?", "a=b", "E=mc2 是什么意思？", "面试=考试吗", "=", "y=kx+b"]
)
def test_questions_that_hold_an_equals_sign_are_asked(question):
    command = grammar.load()["commands"]["chat"]
    assert grammar.sort_words(command, ["tiny", question]).arguments == ["tiny", question]


@pytest.mark.parametrize(
    "word", ["modle=base", "model=base", "data.system=x", "train.lr=1", "learning_rate=1", "dat=1"]
)
def test_settings_of_chat_stay_settings(word):
    command = grammar.load()["commands"]["chat"]
    assert grammar.sort_words(command, ["tiny", word]).arguments == ["tiny"]
