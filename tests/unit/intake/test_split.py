"""Held-out conversations share no question with the rest."""

import json
import random

import pytest

from benchmarks import families as tiny_families
from recipe.intake import dataset, split
from recipe.intake import dataset as intake_dataset
from support.command import recipe
from support.llava import FIRST, read, run_of


def talk(*questions):
    return [{"input": question, "output": "答"} for question in questions]


def test_equal_questions_are_found_whatever_their_signs():
    assert split.key("压力大，怎么办？", 0) == split.key(" 压力大怎么办 ?", 0)
    assert split.key("Ｈow？", 0) == split.key("how", 0)
    assert len({split.key(text, 0) for text in ("？", "！", "怎么办", "怎么")}) == 4
    assert split.key("怎么办", 0) != split.key("怎么办", 1)


def test_what_is_held_out_has_no_question_in_common_with_the_rest():
    for seed in range(30):
        chance = random.Random(seed)
        talks = [talk(*(f"问{chance.randrange(150)}" for _ in range(chance.choice([1, 1, 2])))) for _ in range(100)]
        chosen = split.choose(talks, 0.1, seed)
        assert len(chosen) == 10
        asked = [split.keys(talks[number]) for number in chosen]
        rest = set().union(*(split.keys(one) for number, one in enumerate(talks) if number not in chosen))
        assert not rest & set().union(*asked)
        assert sum(map(len, asked)) == len(set().union(*asked))
        # Chosen by what it says: the order of the rows, and rows that are gone, change nothing.
        order = chance.sample(range(100), 100)
        again = split.choose([talks[number] for number in order], 0.1, seed)
        assert {order[number] for number in again} == chosen
        assert split.choose(talks, 0.1, seed + 1) != chosen


def test_too_few_to_hold_out():
    assert split.choose([talk(str(n)) for n in range(14)], 0.1, 0) == set()
    assert len(split.choose([talk(str(n)) for n in range(15)], 0.1, 0)) == 2
    assert split.choose([talk("甲")] * 100, 0.1, 0) == set()


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_data_writes_both_parts_and_files_of_ones_own(tmp_path, workbook):
    for name, more in (("all", ["data.eval_share=0"]), ("part", []), ("other", ["train.seed=1"])):
        done = recipe("data", "tiny", *more, "--output", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert ("10 more held out" in done.stdout) == (name != "all")
    whole = lines(tmp_path / "all/tiny/dataset.jsonl")
    kept, held = (lines(tmp_path / "part/tiny" / name) for name in ("dataset.jsonl", "eval.jsonl"))
    assert [line for line in whole if line not in held] == kept
    assert sorted(kept + held) == sorted(whole)
    assert lines(tmp_path / "all/tiny/eval.jsonl") == []
    assert set(lines(tmp_path / "other/tiny/eval.jsonl")) != set(held)

    asked = [turn["input"] for talk in dataset.conversations(tmp_path / "all/tiny/dataset.jsonl") for turn in talk]
    own = workbook(
        s=[["q", "a"], ["没有人问过的问题", "答"], [asked[5] + "!", "另一个答案"], ["没有人问过的问题？", "答"]]
    )
    done = recipe("data", "tiny", f"data.eval_files={own}", "--output", tmp_path / "own")
    assert "1 more held out; 2 of data.eval_files not: " in done.stdout
    assert lines(tmp_path / "own/tiny/dataset.jsonl") == whole
    [[turn]] = dataset.conversations(tmp_path / "own/tiny/eval.jsonl")
    assert turn["input"] == "没有人问过的问题"
    assert turn["system"] == json.loads(whole[0])["conversation"][0]["system"]
    missing = recipe("data", "tiny", "data.eval_files=data/none.csv", "--output", tmp_path / "own")
    assert missing.returncode == 2
    assert "data.eval_files of recipe tiny" in missing.stderr


def test_whole_images_are_held_out(tmp_path):
    """None of which is in training; and of an exam of one's own, what was asked about the same image in training."""
    files = tiny_families.pictures(tmp_path, times=3)
    run = run_of(tmp_path, "one", FIRST, files, "data.eval_share=0.2")
    figures, kept = read(run)
    out = list(intake_dataset.lines(run.eval_dataset))
    assert (figures["held_out"], figures["conversations"], len(kept), len(out)) == (6, 12, 12, 6)  # two of six images
    assert not {line["image"] for line in out} & {line["image"] for line in kept}
    text = files.read_text(encoding="utf-8").splitlines()
    (tmp_path / "exam.csv").write_text("\n".join([*text[:2], text[3].replace("1：", "9：")]) + "\n", encoding="utf-8")
    run = run_of(tmp_path, "two", FIRST, files, f"data.eval_files={json.dumps([str(tmp_path / 'exam.csv')])}")
    figures, _ = read(run)
    assert (figures["held_out"], figures["held_out_dropped"]) == (1, 1)
