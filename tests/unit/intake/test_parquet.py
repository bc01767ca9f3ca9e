"""Parquet files of columns and of conversations."""

import pandas

from support.intake import intake, pairs


def test_damaged_parquet_of_conversations_has_its_row(tmp_path):
    talk = [
        [{"role": "user", "content": f"问{n}" * 20}, {"role": "assistant", "content": f"答{n}" * 20}]
        for n in range(3000)
    ]
    pandas.DataFrame({"messages": talk}).to_parquet(str(tmp_path / "x.parquet"))
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(byte ^ 255 for byte in content[middle : middle + 400])
    (tmp_path / "x.parquet").write_bytes(bytes(content))
    assert "it is damaged after row 0" in intake(tmp_path / "x.parquet")


def test_parquet_of_columns_and_of_conversations(tmp_path):
    table = pandas.DataFrame({"问题": ["一", "二"], "答案": ["甲", None], "n": [1, 2]})
    table.to_parquet(str(tmp_path / "x.parquet"))
    assert "x.parquet, row 2, column 答案: blank" in intake(tmp_path / "x.parquet")
    assert pairs(tmp_path / "x.parquet", skip_blank=True) == [("一", "甲")]
    talk = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    pandas.DataFrame({"messages": [talk]}).to_parquet(str(tmp_path / "y.parquet"))
    assert pairs(tmp_path / "y.parquet") == [("问", "答")]
    pandas.DataFrame({"q": [1, 2], "a": [0.5, 3.0]}).to_parquet(str(tmp_path / "z.parquet"))
    assert pairs(tmp_path / "z.parquet") == [("1", "0.5"), ("2", "3")]
    pandas.DataFrame({"q": pandas.Series([0.1], dtype="float32"), "a": ["好"]}).to_parquet(str(tmp_path / "f.parquet"))
    assert pairs(tmp_path / "f.parquet") == [("0.1", "好")]
    grouped = pandas.DataFrame({"conversation": ["甲", "甲"], "q": ["一", "二"], "a": ["1", "2"]})
    grouped.to_parquet(str(tmp_path / "g.parquet"))
    assert intake(tmp_path / "g.parquet") == [[(None, "一", "1"), (None, "二", "2")]]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    assert "it is not a Parquet file" in intake(tmp_path / "bad.parquet")
