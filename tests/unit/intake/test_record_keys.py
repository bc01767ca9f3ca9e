"""Keys and columns beside the texts: they take effect, are refused by name, or are counted."""

import json

import pytest

from support.command import recipe
from support.intake import intake

PAIR = {"query": "那病假呢？", "response": "要医院证明。"}
TURNS = [(None, "年假怎么请？", "填表即可。"), (None, "要几天？", "一天。"), (None, "那病假呢？", "要医院证明。")]
EARLIER = [["年假怎么请？", "填表即可。"], ["要几天？", "一天。"]]
MESSAGES = [
    {"role": "user", "content": "年假怎么请？"}, {"role": "assistant", "content": "填表即可。"},
    {"role": "user", "content": "要几天？"}, {"role": "assistant", "content": "一天。"},
]  # fmt: skip
CHAT = [{"role": "user", "content": "一加一"}, {"role": "assistant", "content": "二"}]


def read(tmp_path, *values):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return intake(path)


@pytest.mark.parametrize(
    "history",
    [
        EARLIER, json.dumps(EARLIER, ensure_ascii=False), [text for pair in EARLIER for text in pair], MESSAGES,
        [{"from": "human", "value": q} if at == 0 else {"from": "gpt", "value": q} for pair in EARLIER
         for at, q in enumerate(pair)],
        [{"query": q, "response": a} for q, a in EARLIER], [{"user": q, "assistant": a} for q, a in EARLIER],
        json.dumps(MESSAGES),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["history", "chat_history", "历史对话", "History"])
def test_history_of_every_notation_gives_the_earlier_turns(tmp_path, key, history):
    assert read(tmp_path, {**PAIR, key: history}) == [TURNS]
    alpaca = {"instruction": PAIR["query"], "output": PAIR["response"], key: history, "system": "教练"}
    assert read(tmp_path, alpaca) == [[("教练", *TURNS[0][1:]), *TURNS[1:]]]


@pytest.mark.parametrize("empty", [[], None, "", "[]", " "])
def test_an_empty_history_is_none(tmp_path, empty):
    assert read(tmp_path, {**PAIR, "history": empty}) == [TURNS[2:]]


def test_history_in_parquet_and_in_a_table(tmp_path, workbook):
    import pandas

    pandas.DataFrame([{**PAIR, "history": EARLIER}, {**PAIR, "history": None}]).to_parquet(str(tmp_path / "x.parquet"))
    assert intake(tmp_path / "x.parquet") == [TURNS, TURNS[2:]]
    rows = [["query", "response", "history"], [*PAIR.values(), json.dumps(EARLIER)], [*PAIR.values(), None]]
    assert intake(workbook(s=rows)) == [TURNS, TURNS[2:]]
    assert "row 2: column history: expected" in intake(workbook(s=[*rows[:1], [*PAIR.values(), "昨天聊过"]]))


@pytest.mark.parametrize(
    "history", [1, True, "昨天聊过", {"a": 1}, [["只有一个"]], [[1, 2]], ["一", "二", "三"], [None], '"x"', "7"]
)
def test_a_history_that_is_none_is_refused_with_its_record(tmp_path, history):
    got = read(tmp_path, PAIR, {**PAIR, "history": history})
    assert "x.jsonl, line 2: history" in got
    assert "expected" in got


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"label": False}, "label"), ({"label": 0}, "label"), ({"kto_tag": False}, "kto_tag"),
        ({"loss_mask": [0, 1]}, "loss_mask"), ({"mask": [1, 0]}, "mask"), ({"train": False}, "train"),
        ({"trainable": "false"}, "trainable"), ({"is_trained": "否"}, "is_trained"), ({"weight": 0.5}, "weight"),
        ({"sample_weight": 2}, "sample_weight"), ({"loss": 0}, "loss"), ({"loss_scale": [0, 1]}, "loss_scale"),
        ({"Masked": True}, "Masked"), ({"ignore_loss": 1}, "ignore_loss"), ({"权重": 0}, "权重"),
        ({"split": "test"}, "split"), ({"tools": [{"name": "x"}]}, "tools"), ({"functions": "[{}]"}, "functions"),
        ({"images": ["a.png"]}, "images"), ({"videos": ["a.mp4"]}, "videos"), ({"rejected": "坏"}, "rejected"),
        ({"rejected_response": "坏"}, "rejected_response"), ({"deleted": "是"}, "deleted"),
        ({"completion_mask": "[0, 1]"}, "completion_mask"), ({"history": EARLIER}, "history"),
    ],
)  # fmt: skip
def test_what_decides_on_training_is_refused_by_name(tmp_path, more, key):
    assert f"x.jsonl, line 2: {key}" in read(tmp_path, PAIR, {"messages": CHAT, **more})
    if key != "history":
        assert f"x.jsonl, line 1: {key}" in read(tmp_path, {**PAIR, **more})


@pytest.mark.parametrize(
    "more",
    [{"loss": False}, {"weight": 0}, {"train": False}, {"trainable": 0}, {"mask": True}, {"loss_weight": 0.1},
     {"tool_calls": [1]}, {"train_detail": [{"begin_offset": 0}]}],
)  # fmt: skip
def test_flags_of_a_message_are_refused_with_its_place(tmp_path, more):
    message = f"line 1: message 2: {next(iter(more))}"
    assert message in read(tmp_path, {"messages": [CHAT[0], {**CHAT[1], **more}]})
    talk = [{"from": "human", "value": "一加一"}, {"from": "gpt", "value": "二", **more}]
    assert message in read(tmp_path, {"conversations": talk})
    assert "line 1: turn 1: " in read(tmp_path, {"conversation": [{"input": "一", "output": "二", **more}]})


@pytest.mark.parametrize(
    "more",
    [{"loss": True}, {"weight": 1}, {"weight": 1.0}, {"label": True}, {"loss_mask": [1, 1]}, {"mask": None},
     {"tools": "[]"}, {"images": []}, {"label": "人事"}, {"split": "train"}, {"masked": False}, {"id": 7},
     {"history": []}],
)  # fmt: skip
def test_flags_that_change_nothing_are_left_alone(tmp_path, more):
    assert read(tmp_path, {"messages": CHAT, **more}) == [[(None, "一加一", "二")]]
    assert read(tmp_path, {**PAIR, **more}) == [TURNS[2:]]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("weight", 0),
        ("是否训练", "否"),
        ("loss", "FALSE"),
        ("label", 0),
        ("split", "test"),
        ("作废", "是"),
        ("mask", "[0]"),
        ("tools", "[{}]"),
    ],
)
def test_flags_of_a_table_are_refused_with_their_row(workbook, column, value):
    rows = [["问题", "回答", column], ["甲怎么办？", "一", None], ["乙怎么办？", "二", value]]
    assert f"row 3: column {column}" in intake(workbook(s=rows))
    assert len(intake(workbook(s=rows[:2]))) == 1


@pytest.mark.parametrize("key", ["system", "system_prompt", "系统提示"])
def test_a_records_own_system_prompt_takes_effect(tmp_path, key):
    turn = [("教练", "一加一", "二")]
    for value in (
        {"messages": CHAT}, {"conversation": [{"input": "一加一", "output": "二"}]},
        {"instruction": "一加一", "output": "二"}, {"q": "一加一", "a": "二"},
    ):  # fmt: skip
        assert read(tmp_path, {**value, key: "教练"}) == [turn], value


def test_what_is_left_alone_is_counted_once(tmp_path, workbook):
    path = tmp_path / "x.jsonl"
    lines = [{**PAIR, "id": number, "source": "网", **({"tags": ["a"]} if number else {})} for number in range(3)]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    done = recipe("data", "tiny", f'data.files=["{path}"]', "data.eval_share=0", "--output", tmp_path)
    assert f"left alone: id (3), source (3), tags (2) of {path}" in done.stdout
    assert done.stdout.count("left alone") == 1
    path = workbook(s=[["序号", "问题", "回答", "备注"], [1, "甲", "一", None], [2, "乙", "二", "好"]])
    done = recipe("data", "tiny", f'data.files=["{path}"]', "data.eval_share=0", "--output", tmp_path)
    assert "left alone: 序号 (2), 备注 (1)" in done.stdout


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[\n {"q": "甲",\n  "a": NaN}]', "line 3, column 8: NaN"), ('[{"q": "甲", "a": -Infinity}]',
        "column 18: -Inf"),
        ('[{"q": "NaN", "a": "NaN"},\n {"q": "甲", "a": Infinity}]', "line 2, column 18: Infinity"),
        ('[{"q": "甲", "a": "一"},\n {"q": "x", "q": "乙", "a": "二"}]', "line 2, column 13: the key q"),
        ('[{"x": {"q": 1}, "q": "甲", "a": "一",\n "q": 2}]', "line 2, column 2: the key q"),
        ('[{"q": "\\"a\\": 1", "a": "b",\n\n "a": "c"}]', "line 3, column 2: the key a"),
    ],
)  # fmt: skip
def test_json_that_python_reports_without_a_place_gets_one(tmp_path, text, place):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    assert place in intake(path)


@pytest.mark.parametrize("beside", [{"errors": []}, {"warnings": [], "code": 0}, {"errors": [], "next": None}])
def test_an_empty_list_beside_the_records_is_no_second_one(tmp_path, beside):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({**beside, "data": [{"q": "甲", "a": "一"}]}), encoding="utf-8")
    assert intake(path) == [[(None, "甲", "一")]]
    path.write_text(json.dumps({"q": "甲", "a": "一", "tags": [], "refs": [{"id": 1}]}), encoding="utf-8")
    assert intake(path) == [[(None, "甲", "一")]]
