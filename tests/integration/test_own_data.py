"""A workbook of one's own from the command line: its plan, its questions, and every command after a training."""

import json
import re
import shutil

import openpyxl
import pytest

from recipe.core import data_source
from recipe.reporting import run_view
from support.command import ROOT, recipe, refused

TEXT = "先把事情写下来，再分清轻重缓急，一次只做一件；做完以后留出十分钟回顾，看看哪里可以做得更好，并把经验告诉同事。"
# What coach needs to train on a CPU, on a model that is made on the spot
ON_CPU = (
    *("model.source=tiny", "train.method=lora", "train.dtype=fp32", "train.speed=stock", "train.deepspeed="),
    *("train.max_length=256", "train.max_epochs=3", "train.lr=4e-3", "train.evaluation_max_new_tokens=4"),
    "eval.answers=2",
)


def titled_chinese(sheet):
    """A title above Chinese headers, and columns that are not of the conversation."""
    sheet.append(["2024 年客服问答（内部）"])
    sheet.append(["序号", "提问", "日期", "答案"])
    for number in range(240):
        sheet.append([number, f"第{number}号客户问：今天的事情太多怎么办？", "2024-03-17", f"{TEXT}编号{number}。"])


def several_turns(sheet):
    """Conversations of two turns by their id, and headers in capitals with blanks."""
    sheet.append([" Conversation ID", "Turn", " Question ", "ANSWER"])
    for number in range(120):
        sheet.append([f"c{number}", 1, f"第{number}次开会前紧张怎么办？", f"{TEXT}会前{number}。"])
        sheet.append([f"c{number}", 2, f"那第{number}次开会后呢？", f"{TEXT}会后{number}。"])


def numbers_and_breaks(sheet):
    """Cells that hold numbers, dates and line breaks, and some rows twice."""
    sheet.append(["q", "a"])
    for number in range(230):
        answer = 52 + number if number % 10 == 0 else f"{TEXT}\r\n第{number}条。"
        sheet.append([f"第{number}项怎么填？\n请说明。", answer])
    for number in range(1, 11):
        sheet.append([f"第{number}项怎么填？\n请说明。", f"{TEXT}\r\n第{number}条。" if number < 10 else 62])


@pytest.fixture(scope="module")
def tokenizer(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tiny["tokenizer.model"])
    return f"model.tokenizer={path}"


@pytest.mark.parametrize(
    ("write", "rows", "conversations", "held_out", "duplicates"),
    [(titled_chinese, 228, 228, 12, 0), (several_turns, 228, 114, 6, 0), (numbers_and_breaks, 228, 228, 12, 10)],
)
def test_a_first_plan_is_right(write, rows, conversations, held_out, duplicates, tokenizer, tmp_path):
    """Nothing but the file is named. A twentieth is held out, and everything else is kept and trained on."""
    book = openpyxl.Workbook()
    write(book.active)
    path = tmp_path / "我的 客服.xlsx"
    book.save(str(path))
    done = recipe("plan", path, tokenizer, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Next: just train '" in done.stdout
    folder = tmp_path / "out/我的 客服"
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    figures = manifest["stages"]["data"]["figures"]
    assert [figures[name] for name in ("rows", "conversations", "held_out", "duplicates")] == [
        *(rows, conversations, held_out, duplicates)
    ]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert plan["refusals"] == []
    assert plan["updates"] >= 30
    assert plan["tokens_kept"] / plan["tokens"] > 0.95
    lines = [json.loads(line)["conversation"] for line in (folder / "dataset.jsonl").open(encoding="utf-8")]
    assert {turn.get("system", "") for line in lines for turn in line} == {""}
    assert data_source.read(folder) == {"data": str(path)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workbook's run as `train` leaves it: (the workbook, its run's folder, what was said)."""
    place = tmp_path_factory.mktemp("own")
    book = place / "我的 数据.xlsx"
    shutil.copy(str(ROOT / "data/workplace.xlsx"), str(book))
    done = recipe("merge", book, *ON_CPU, "system=你是新人的教练。", "--output", place / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return book, place / "out/我的 数据", done.stdout


def test_the_questions_are_those_held_out(trained):
    folder = trained[1]
    held_out = [json.loads(line)["conversation"][0] for line in (folder / "eval.jsonl").open(encoding="utf-8")]
    run = run_view.find_run(str(folder), ROOT, folder.parent)
    assert run.questions == [turn["input"] for turn in held_out][: data_source.QUESTIONS]
    assert {turn["system"] for turn in held_out} == {"你是新人的教练。"}
    config = (folder / "config.py").read_text(encoding="utf-8")
    assert all(question in config for question in run.questions)
    view = run_view.read_run(run)
    assert [reply[0] for reply in view.answers[0].replies] == run.questions


def test_later_commands_need_the_file_alone(trained):
    """Or the run's name. The settings are those of the training, and the prompt is remembered."""
    book, folder, said = trained
    assert (
        f"Next: just chat '{book}' --output '" in said or f"Next: just chat '{book}' --output {folder.parent}" in said
    )
    assert data_source.read(folder) == {"data": str(book), "system": "你是新人的教练。", "recipe": "coach"}
    file, name = str(book), folder.name
    for command in (["eval", file], ["chat", file, "你好"], ["watch", file], ["export", "lmdeploy", file],
                    ["merge", file, "--dry-run", *ON_CPU], ["verify", file], ["diff", file, name],
                    ["chat", name, "你好"], ["report", name]):  # fmt: skip
        done = recipe(*command, "--output", folder.parent)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    again = recipe("merge", book, *ON_CPU, "--output", folder.parent)
    assert re.search(r"(?m)^train .*unchanged$", again.stdout), again.stdout + again.stderr


def test_other_data_of_that_name_are_refused(trained, tmp_path):
    book, folder, _ = trained
    other = tmp_path / book.name
    shutil.copy(str(book), str(other))
    for command in ("plan", "chat", "report", "watch"):
        refused(recipe(command, other, "--output", folder.parent), 2, f"holds the run of {book}", "--output")
    refused(recipe("chat", book, "system=另一个。", "--output", folder.parent), 2, "data.system was", "just merge ")
