"""Kinds of data: plain texts and conversations with tools, read and counted as XTuner's own maps have it."""

import json

import pytest
from conftest import ROOT, recipe, refused

from recipe.base_model import tokenizer as base_model_tokenizer
from recipe.core import imports, settings
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.intake import agent, documents
from recipe.planning import tokens
from recipe.stages import data
from recipe.xtuner import config, preset_facts

CHAPTER = "职场压力人人都有。说出来，就轻一半。\n先休息，再想办法；" * 9
SAID = [
    {
        "from": "system",
        "value": '可用的工具：{"name": "weather", "description": "查天气", "paths": [{"parameters": [{"name": "city", '
        '"description": "城市"}]}]}',
    },
    {"from": "user", "value": "北京今天的天气？"},
    {
        "from": "assistant",
        "value": '我查一下。<|startofthink|>```JSON\n{"api_name": "weather", "parameters": {"city": "北京"}}```'
        '<|endofthink|><|startofexec|>```JSON\n{"weather": "晴"}```<|endofexec|>今天晴。',
    },
    {"from": "user", "value": "谢谢"},
    {"from": "assistant", "value": "不客气。"},
]


def run_of(tmp_path, kind, files, **more):
    _, found = settings.load("demo", [f"data.kind={kind}", f"data.files={json.dumps(files)}", "data.eval_share=0"])
    for key, value in more.items():
        found = settings.replace(found, key.replace("__", "."), value)
    run = Run("demo", found, ROOT, tmp_path / "output")
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def read(run):
    figures = data.make(run, run.folder)
    return figures, [json.loads(line)["conversation"] for line in run.dataset.read_text("utf-8").splitlines()]


def test_pieces_lose_nothing_and_part_where_it_is_best():
    for text in (CHAPTER, "a" * 5000, "word " * 900, "段一。\n\n段二。\n\n" * 40, ""):
        for most in (32, 100, 1000):
            found = documents.split_text(text, most)
            assert "".join(found) == text
            assert all(len(piece) <= most for piece in found)
    assert documents.split_text("一。二三。四", 4) == ["一。", "二三。四"]
    assert documents.split_text("第一段\n\n第二段", 7) == ["第一段\n\n", "第二段"]


def test_texts_of_every_form(tmp_path, workbook):
    """A folder of folders, GBK, Markdown, JSON Lines, one column of a workbook: all of it, under no question."""
    place = tmp_path / "texts"
    (place / "inner").mkdir(parents=True)
    (place / "one.txt").write_bytes(("今天我们来说说怎么在工作中放松。" * 3).encode("gb18030"))
    (place / "inner" / "two.md").write_text("# 题目\n\n正文。", encoding="utf-8")
    (place / "three.jsonl").write_text('{"text": "第三篇"}\n{"text": "第四篇"}\n', encoding="utf-8")
    book = workbook(s=[["编号", "正文"], [1, "第五篇"], [2, None], [3, "第六篇"]])
    figures, found = read(run_of(tmp_path, "pretrain", [str(place), str(book)]))
    texts = [turn["output"] for one in found for turn in one]
    assert sorted(texts) == sorted(
        ["今天我们来说说怎么在工作中放松。" * 3, "# 题目\n\n正文。", "第三篇", "第四篇", "第五篇", "第六篇"]
    )
    assert {turn["input"] for one in found for turn in one} == {""}
    assert all("system" not in turn for one in found for turn in one)
    assert figures["rows"] == figures["conversations"] == 6
    assert [one["encoding"] for one in figures["read"]].count("GB18030 (GBK)") == 1


def test_long_texts_come_in_pieces(tmp_path):
    (tmp_path / "long.txt").write_text(CHAPTER, encoding="utf-8")
    run = run_of(tmp_path, "pretrain", [str(tmp_path / "long.txt")], data__piece=64)
    _, found = read(run)
    assert len(found) > 3
    assert "".join(one[0]["output"] for one in found).replace("\n", "") == CHAPTER.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.txt", "好<|im_start|>坏", "control token"),
        ("x.txt", "  \n ", "blank"),
        ("x.csv", "a,b\n1,2\n", "no column of texts"),
        ("x.csv", "text,正文\n1,2\n", "2 columns could hold the texts"),
        ("x.jsonl", '{"title": "t"}\n', "no text under 'text'"),
    ],
)
def test_texts_that_are_refused(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputWrong, match=said):
        read(run_of(tmp_path, "pretrain", [str(tmp_path / name)]))


def test_tools(tmp_path):
    lines = [{"conversations": SAID}, {"conversations": json.dumps(SAID)}, {"conversations": repr(SAID)}]
    path = tmp_path / "tools.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    _, found = read(run_of(tmp_path, "agent", [str(path)]))
    assert found[0] == found[1] == found[2]
    first, second, third = found[0]
    assert "weather" in first["system"]
    assert first["output"].startswith("Thought:我查一下。\nAction:weather\n")
    assert (second["input"], second["system"]) == ("", "Response:{'weather': '晴'}\n")
    assert third["output"].startswith("Final Answer:不客气。")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"conversation": []}, "MSAgent-Bench"),
        ({"conversations": "__import__('os').abort()"}, "not a list"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "message 1"),
        (
            {"conversations": [*SAID[:2], {"from": "assistant", "value": "<|startofthink|>{<|endofthink|>"}]},
            "no readable",
        ),
    ],
)
def test_tools_that_are_refused(tmp_path, record, said):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    with pytest.raises(InputWrong, match=said):
        read(run_of(tmp_path, "agent", [str(path)]))


def test_the_plan_counts_as_xtuner_does(tmp_path):
    """Raw rows through XTuner's process with its own dataset map, beside our dataset.jsonl through the plan's."""
    import datasets
    import numpy

    imports.load()
    from xtuner.dataset.huggingface import process
    from xtuner.dataset.map_fns import msagent_react_map_fn, pretrain_map_fn, template_map_fn_factory

    raw = {
        "pretrain": [{"text": f"第{number}篇。{'放松一下。' * (number % 7)}"} for number in range(40)],
        "agent": [{"conversations": repr(SAID)}] * 8,
    }
    for kind, own in (("pretrain", pretrain_map_fn), ("agent", msagent_react_map_fn)):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in raw[kind]), encoding="utf-8")
        run = run_of(tmp_path, kind, [str(path)], train__max_length=512, data__piece=512)
        _, found = read(run)
        cfg, tokenizer = config.effective(run.settings), base_model_tokenizer.tokenizer(run)
        template = config.template(cfg)
        assert (template is None) == (kind == "pretrain")
        numpy.random.seed(0)
        made = process(
            dataset=datasets.Dataset.from_list(raw[kind]), tokenizer=tokenizer, max_length=512, dataset_map_fn=own,
            template_map_fn=template_map_fn_factory(template) if template else None, split=None,
            remove_unused_columns=True, pack_to_max_length=True, map_num_proc=1,
        )  # fmt: skip
        packed = tokens.pack(cfg, run.dataset, tokenizer, 0)
        assert packed["packs"] == len(made)
        assert packed["tokens_kept"] == sum(map(len, made["input_ids"]))
        assert packed["answer_tokens_kept"] == sum(label >= 0 for labels in made["labels"] for label in labels)
        counted = tokens.count(found, template, tokenizer, 512)
        assert 0 <= sum(counted["lengths"]) - packed["tokens_kept"] < 512
        if kind == "pretrain":  # everything but the first token of each text has loss
            assert counted["answers"] == [length - 1 for length in counted["lengths"]]


def test_presets_say_which_kind(tmp_path):
    _, found = settings.load("demo", ["base=internlm2_7b_qlora_msagent_react_e3_gpu8"])
    assert preset_facts.kind(found) == "agent"
    done = recipe("data", "demo", "base=internlm2_7b_qlora_msagent_react_e3_gpu8", "--output", tmp_path)
    refused(done, 2, "of no known kind", ".jsonl")
    assert agent.ROLES == ("system", "user", "assistant")
