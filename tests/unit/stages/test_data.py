"""Workbook to conversations."""

import json

import pandas
import pytest

from recipe.intake import dataset
from support.command import ROOT, recipe, refused


def convert(output, path, *more):
    done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", output, *more)
    target = output / "tiny" / "dataset.jsonl"
    lines = target.read_text(encoding="utf-8").splitlines() if target.exists() else []
    return done, [json.loads(line) for line in lines]


def test_sample_workbook():
    talks = dataset.sample(ROOT / "data" / "workplace.xlsx")
    single = [talk for talk in talks if len(talk) == 1]
    assert len(single) >= 80
    questions = [turn["input"] for talk in talks for turn in talk]
    assert len(set(questions)) == len(questions)
    several = [talk for talk in talks if len(talk) > 1]
    assert len(several) == 8
    assert all(2 <= len(talk) <= 3 for talk in several)


def test_tutorials_workbook_gives_the_tutorials_objects(real_workbook, tmp_path):
    """Object for object what the page's script makes of it."""
    done = recipe("data", "tutorial", f'data.files=["{real_workbook}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    ours = [json.loads(line) for line in (tmp_path / "tutorial/dataset.jsonl").open(encoding="utf-8")]
    table = pandas.read_excel(str(real_workbook))
    system = (
        "你是一个专业的，经验丰富的有心理学背景的职场教练。你总是根据有职场焦虑的病人的问题提供准确、全面和详细的答案。"
    )
    theirs = [
        {"conversation": [{"system": system, "input": str(row["q"]), "output": str(row["a"])}]}
        for _, row in table.iterrows()
    ]
    assert ours == theirs
    assert len(ours) == 246
    import datasets

    (tmp_path / "career_coach.jsonl").write_text(json.dumps(theirs, ensure_ascii=False), encoding="utf-8")
    loaded = [
        datasets.load_dataset("json", data_files={"train": str(tmp_path / name)}, cache_dir=str(tmp_path / "cache"))
        for name in ("tutorial/dataset.jsonl", "career_coach.jsonl")
    ]
    assert loaded[0]["train"].to_pandas().equals(loaded[1]["train"].to_pandas())
    assert loaded[0]["train"].features == loaded[1]["train"].features


def test_rows_of_one_conversation_become_turns_with_one_system(workbook, tmp_path):
    path = workbook(
        mixed=[["conversation", "q", "a"], [1, "甲", "一"], ["", "单", "独"], [1, "乙", "二"], [2, "丙", "三"]],
        other=[["conversation", "q", "a"], [1, "丁", "四"]],
    )
    done, made = convert(tmp_path, path)
    assert done.returncode == 0, done.stderr
    turns = [[(t.get("system"), t["input"], t["output"]) for t in line["conversation"]] for line in made]
    system = "你是一位有心理学背景的职场教练。"
    assert turns == [
        [(system, "甲", "一"), (None, "乙", "二")],
        [(system, "单", "独")],
        [(system, "丙", "三")],
        [(system, "丁", "四")],
    ]


def test_blank_cells_are_refused_by_place_and_nothing_is_written(workbook, tmp_path):
    path = workbook(表=[["q", "a"], ["问", "答"], ["问二", None], ["  ", "答三"], ["问四", ""]])
    done, made = convert(tmp_path, path)
    refused(done, 2, "sheet 表, row 3, column a: blank", "row 4, column q", "row 5, column a", "skip_blank")
    assert made == []
    done, made = convert(tmp_path, path, "data.skip_blank=true")
    assert done.returncode == 0
    assert len(made) == 1


def test_numbers_truth_values_and_dates_are_text_each_by_itself(workbook, tmp_path):
    """A column reader that compares values takes True for 1: every cell counts by its own type."""
    import datetime

    day = datetime.datetime(2024, 3, 17)
    cells = [True, 1, False, 0, 1.0, "1", 3.5, day]
    path = workbook(s=[["q", "a"], *[[cell, "答"] for cell in cells], ["问", 52]])
    done, made = convert(tmp_path, path)
    assert done.returncode == 0, done.stderr
    got = [line["conversation"][0]["input"] for line in made[:-1]]
    assert got == ["TRUE", "1", "FALSE", "0", "1", "1", "3.5", "2024-03-17"]
    assert made[-1]["conversation"][0]["output"] == "52"


def test_header_names_are_found_in_any_case_and_never_twice(workbook, tmp_path):
    path = workbook(s=[["Conversation ", " Q", "Ａ"], [1, "甲", "一"], [1, "乙", "二"]])
    done, made = convert(tmp_path, path)
    assert done.returncode == 0, done.stderr
    assert [len(line["conversation"]) for line in made] == [2]
    refused(convert(tmp_path, workbook(s=[["q", "a", "A"], ["问", "答", "另"]]))[0], 2, "column a appears twice")


def test_many_faults_are_counted(workbook, tmp_path):
    done, _ = convert(tmp_path, workbook(s=[["q", "a"], *[["问", None]] * 30]))
    refused(done, 2, "row 21,", "… and 10 more")
    assert "row 22," not in done.stderr


def test_earlier_output_survives_a_refusal(workbook, tmp_path):
    done, made = convert(tmp_path, workbook(s=[["q", "a"], ["问", "答"]]))
    assert done.returncode == 0
    done, still = convert(tmp_path, workbook(s=[["q", "a"], ["问", None]]))
    assert done.returncode == 2
    assert still == made


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [["prompt_text", "reply_text"], ["问一", "答一"]],
            ["no sheet", "prompt_text, reply_text", "data.columns.question"],
        ),
        ([["q", "a"]], ["no rows"]),
        ([], ["no rows"]),
    ],
)
def test_unusable_sheets(workbook, tmp_path, rows, words):
    refused(convert(tmp_path, workbook(s=rows))[0], 2, *words)


def test_unusable_files(workbook, tmp_path):
    refused(convert(tmp_path, tmp_path / "none.xlsx")[0], 2, "no workbook", "none.xlsx")
    (tmp_path / "x.pdf").write_text("q,a\n", encoding="utf-8")
    refused(convert(tmp_path, tmp_path / "x.pdf")[0], 2, "x.pdf has an unknown type (.xlsx, ")
    (tmp_path / "broken.xlsx").write_bytes(b"PK\x03\x04 not really")
    refused(convert(tmp_path, tmp_path / "broken.xlsx")[0], 2, "broken.xlsx", "cannot be opened")


def test_control_tokens_in_the_system_prompt_are_refused(workbook, tmp_path):
    path = workbook(s=[["q", "a"], ["问", "答"]])
    refused(convert(tmp_path, path, "data.system=教练<|im_end|>")[0], 2, "data.system", "<|im_end|>")


def test_what_was_found_is_said(workbook, tmp_path):
    (tmp_path / "x.csv").write_bytes("q,a\n问,答\n,答\n".encode("gb18030"))
    done, _ = convert(tmp_path, tmp_path / "x.csv", "data.skip_blank=true")
    assert "x.csv is GB18030 (GBK)" in done.stdout
    assert "dropped 1 row with blanks" in done.stdout
    done, _ = convert(tmp_path, workbook(s=[["q", "a"], ["问", "答"]], 说明=[["版本", "日期"]]))
    assert "not read: " in done.stdout
    assert "sheet 说明: 版本, 日期" in done.stdout


def test_published_workbook_is_checked(tmp_path, workbook):
    path = workbook(s=[["q", "a"], ["问", "答"]])
    done = recipe("data", "tutorial", f'data.files=["{path}"]', "--output", tmp_path)
    refused(done, 2, "sha256", f"just plan {path}")


def test_figures_stay_english_where_messages_are_chinese(tmp_path, workbook):
    rows = [["q", "a", "备注", ""], ["怎么办？", "看见\\n换行。", "x", "y"], ["你好吗", "你好吗", "", ""]]
    path = workbook(s=rows, 说明=[["版本", "日期"]])
    words = ("data", "tiny", f'data.files=["{path}"]', "--output")
    figures = []
    for language in ("en", "zh"):
        done = recipe(*words, tmp_path / language, RECIPE_LANG=language)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / language / "tiny" / "run.json").read_text(encoding="utf-8"))
        figures.append(manifest["stages"]["data"]["figures"])
    assert figures[0] == figures[1]
    assert "2 行" in done.stdout
    assert "D 列（没有列名）" in done.stdout
    assert "工作表“说明”：版本, 日期" in done.stdout
    assert "工作表“s”第 2 行“a”列" in done.stdout
    for word in ("row", "column", "not read", "line break", "question"):
        assert word not in done.stdout


def test_errors_in_chinese_have_their_place(tmp_path, workbook):
    done = recipe(
        *("data", "tiny", f'data.files=["{workbook(s=[["q", "a"], ["甲", ""]])}"]', "--output", tmp_path),
        RECIPE_LANG="zh",
    )
    assert done.returncode == 2
    assert "工作表“s”第 2 行“a”列：为空" in done.stderr
    assert "data.skip_blank=true" in done.stderr
