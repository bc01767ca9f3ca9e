"""The written JSON lines."""

import io
import json

from recipe.core.settings import Data
from recipe.intake.reader import DatasetReader
from recipe.intake.writer import Writer
from support.command import recipe


def test_every_line_is_one_json_text_for_every_reader(workbook, tmp_path):
    """U+2028 ends a line for str.splitlines and some programs: escaped it is the same text for all."""
    path = workbook(s=[["q", "a"], ["问", "一\u2028二\x85三"]])
    done = recipe("data", "tiny", f'data.files=["{path}"]', "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "tiny/dataset.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["conversation"][0]["output"] == "一\u2028二\x85三"


def test_what_is_written_is_what_json_dumps_writes(workbook, tmp_path):
    rows = [["q", "a"], ['说"好"', "反\\斜\n行"], ["\t制表", "😀é/"], ["一", "二"]]
    stream = io.StringIO()
    writer = Writer(stream, '系"统')
    DatasetReader(Data(files=["x"]), writer).read_conversations(workbook(s=rows), "x")
    writer.flush()
    expected = [
        {"conversation": [{"system": '系"统', "input": question, "output": answer}]} for question, answer in rows[1:]
    ]
    assert stream.getvalue() == "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in expected)
