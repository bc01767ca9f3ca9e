"""Conversations with tools."""

import json

import pytest

from recipe.core.errors import InputWrong
from support.kinds import SAID, read, run_of


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
