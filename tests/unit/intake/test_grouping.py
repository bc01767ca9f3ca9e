"""Rows of one conversation."""

import pytest

from support.intake import intake


def test_turns_systems_and_ids(workbook):
    path = workbook(
        s=[
            ["conversation", "turn", "system", "q", "a"],
            [1, 2, None, "二", "2"],
            ["1.0", 1, "教练", "一", "1"],
            [None, None, None, "单", "0"],
            ["１", "第3轮", "教练", "三", "3"],
        ]
    )
    assert intake(path) == [[("教练", "一", "1"), (None, "二", "2"), (None, "三", "3")], [(None, "单", "0")]]
    path = workbook(s=[["conversation", "turn", "q", "a"], [1, 1, "一", "1"], [1, 1, "二", "2"], [2, "x", "三", "3"]])
    assert "row 3: turn 1 of conversation 1 appears twice" in intake(path)
    assert "row 4, column turn: expected a number, found 'x'" in intake(path)
    path = workbook(s=[["turn", "q", "a"], [1, "一", "1"]])
    assert "the column turn numbers turns, but no column names the conversation" in intake(path)
    path = workbook(s=[["conversation", "turn", "q", "a"], [1, 1, "一", "1"], [None, 2, "二", "2"]])
    assert "row 3, column conversation: blank, but this is turn 2" in intake(path)
    path = workbook(
        s=[["conversation", "turn", "q", "a"], [1, None, "一", "1"], [1, 2, "二", "2"], [1, None, "三", "3"]]
    )
    assert "conversation 1 has turns with and without a number" in intake(path)
    path = workbook(s=[["conversation", "system", "q", "a"], [1, "甲", "一", "1"], [1, "乙", "二", "2"]])
    assert "row 2: this conversation has several system prompts" in intake(path)
    path = workbook(s=[["conversation", "q", "a"], [1, "一", "1"], [1, "二", None], [2, "三", "3"]])
    assert intake(path, skip_blank=True) == [[(None, "三", "3")]]


@pytest.mark.slow
def test_values_of_a_conversation_may_lie_far_apart(tmp_path):
    """Rows of one id with a hundred thousand others between them, in a database on disk."""
    path = tmp_path / "x.csv"
    ids = list(range(20_000)) * 2
    path.write_text("对话,q,a\n" + "".join(f"{n},问{at},答{at}\n" for at, n in enumerate(ids)), encoding="utf-8")
    got = intake(path)
    assert len(got) == 20_000
    assert got[7] == [(None, "问7", "答7"), (None, "问20007", "答20007")]
