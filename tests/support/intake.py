"""What the readers make of a file."""

import io
import json
import zipfile

from recipe.core.errors import InputWrong
from recipe.core.settings import Data
from recipe.intake.reader import DatasetReader
from recipe.intake.writer import Writer


def intake(path, **settings):
    """The turns of every conversation of one file, or the refusal's text."""
    stream = io.StringIO()
    reading = DatasetReader(Data(files=[str(path)], **settings), Writer(stream, ""))
    reading.read_conversations(path, path.name)
    reading.writer.flush()
    try:
        reading.errors.raise_if_any()
    except InputWrong as error:
        return str(error)
    lines = [json.loads(line)["conversation"] for line in stream.getvalue().split("\n")[:-1]]
    return [[(turn.get("system"), turn["input"], turn["output"]) for turn in line] for line in lines]


def assert_told(path, text, words):
    """That a file of this text is refused in all these words."""
    path.write_text(text, encoding="utf-8")
    got = intake(path)
    for word in words:
        assert word in got


def pairs(path, **settings):
    """(question, answer) of every conversation of one turn."""
    got = intake(path, **settings)
    assert isinstance(got, list), got
    return [(question, answer) for [(_, question, answer)] in got]


def rewritten(source, target, change):
    """A copy of the workbook with `change(part name, text)` applied to each XML part."""
    with zipfile.ZipFile(str(source)) as old, zipfile.ZipFile(str(target), "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.namelist():
            new.writestr(part, change(part, old.read(part).decode("utf-8")))
    return target
