"""JSON and JSON Lines."""

import json

import pytest

from recipe.core.settings import Columns
from recipe.intake import record_files
from support.intake import assert_told, intake, pairs

TURN = ("教练", "问", "答")


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"conversation": [{"system": "教练", "input": "问", "output": "答"}]}, [TURN]),
        ({"messages": [{"role": "system", "content": "教练"}, {"role": "user", "content": "问"},
                       {"role": "assistant", "content": "答"}]}, [TURN]),
        ({"system": "教练", "conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
         [TURN]),
        ({"conversations": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]},
         [(None, "问", "答")]),
        ({"instruction": "问", "input": "", "output": "答", "system": "教练"}, [TURN]),
        ({"instruction": "译", "input": "好", "output": "答", "history": [["一", "二"]]},
         [(None, "一", "二"), (None, "译\n好", "答")]),
        ({"conversation": [{"system": "教练", "input": "问", "output": "答"},
                           {"system": "教练", "input": "二", "output": "三"}]},
         [TURN, (None, "二", "三")]),
        ({"Instruction": "译", "Input": "好", "Output": "答"}, [(None, "译\n好", "答")]),
        ({"q": "问", "a": "答"}, [(None, "问", "答")]), ({"问题": "问", "回答": "答"}, [(None, "问", "答")]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "问"}]},
                       {"role": "assistant", "content": "答"}]}, [(None, "问", "答")]),
    ],
)  # fmt: skip
def test_json_of_the_common_kinds(tmp_path, record, turns):
    for name, text in [
        ("x.jsonl", json.dumps(record) + "\n"), ("x.json", json.dumps([record], ensure_ascii=False, indent=1)),
        ("y.json", json.dumps(record, indent=1)), ("z.json", json.dumps({"data": [record]}, indent=1)),
        ("one.json", json.dumps({"data": [record]})),
        ("array.jsonl", json.dumps([record])),
    ]:  # fmt: skip
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert intake(tmp_path / name) == [turns], name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"q": "问", "a": "答"}\n{"q": "问" "a": "答"}\n', ["line 2: column 11: expecting ',' delimiter"]),
        ('[{"q": "问",\n "a": "答"},]', ["line 2, column 12: expecting value"]),
        ('{"q": "问", "a": null}\n{"q": 7, "a": "答"}\n', ["line 1: a: expected text, found null",
                                                        "line 2: q: expected text, found a number"]),
        ('{"conversations": [{"input": "问", "output": "答"}]}\n', ["found input, output in conversations",
                                                                 "conversation is the key"]),
        ('{"messages": [{"role": "user", "content": "问"}]}\n', ["the last question has no answer"]),
        ('{"messages": [{"role": "assistant", "content": "答"}]}\n', ["message 1: an answer without a question"]),
        ('{"messages": [{"role": "tool", "content": "答"}]}\n', ["role 'tool' is not known"]),
        ('{"conversation_id": 1, "turn": 2, "q": "问", "a": "答"}\n', ["conversation_id, turn: turns of a"]),
        ('{"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]}\n', ["tool calls are not"]),
        ('{"system": "甲", "messages": [{"role": "system", "content": "乙"}]}\n', ["a second system prompt"]),
        ('{"train": [{"q": "问", "a": "答"}], "test": [{"q": "问", "a": "答"}]}', ["several lists: train, test"]),
        ('{"conversation": []}\n', ["there are no turns in it"]),
        ('{"text": "x"}\n', ["found text; wanted: conversation"]),
        ('{"conversation": [{"input": "问"}]}\n', ["turn 1: found input; output is missing"]),
        ('{"q": "问", "q": "二", "a": "答"}\n', ["the key q appears twice"]),
        ('{"q": NaN, "a": "答"}\n', ["NaN is not valid JSON"]),
        ('{"conversation": [{"input": "问", "output": "答", "output_with_loss": false}]}\n', ["output_with_loss"]),
        ('{"messages": [{"role": "user", "content": "问", "weight": 0}]}\n', ["message 1: weight is not supported"]),
        ('3\n"x"\n', ["line 1: expected an object, found a number", "line 2: expected an object, found text"]),
        ("", ["there are no rows in it"]), ("[]", ["there are no rows in it"]),
        ('{"q": "\\ud800", "a": "答"}\n', ["line 1, question: an invalid character (U+D800)"]),
        ('{"conversation": [{"input": "一", "output": "1"}, {"input": " ", "output": "2"}]}\n',
         ["line 1, turn 2, question: blank"]),
    ],
)  # fmt: skip
def test_faults_of_json_have_their_place(tmp_path, text, words):
    assert_told(tmp_path / "x.jsonl", text, words)


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL"])
def test_a_first_line_that_is_damaged_does_not_hide_the_others(tmp_path, name):
    text = '{"q": "问", "a": }\n{"q": "二", "a": 2}\n'
    assert_told(tmp_path / name, text, ["line 1: column 17", "line 2: a: expected text"])


def test_names_of_the_recipe_go_before_alpacas(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "问", "output": "坏", "better": "好"}\n', encoding="utf-8")
    assert pairs(path, columns=Columns(answer="better")) == [("问", "好")]


def test_lists_of_messages_line_by_line(tmp_path):
    talk = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    (tmp_path / "x.jsonl").write_text((json.dumps(talk) + "\n") * 2, encoding="utf-8")
    assert pairs(tmp_path / "x.jsonl") == [("问", "答")] * 2


def test_records_can_be_told_from_files(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"conversations": [{"conversation": [{"input": "问", "output": "答"}]}]}, indent=1))
    assert pairs(path) == [("问", "答")]
    assert record_files.read(path)[0] == "UTF-8"
