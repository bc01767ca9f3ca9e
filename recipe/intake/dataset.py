"""Reads dataset.jsonl."""

import io
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List

from recipe.core.settings import Data
from recipe.intake.reader import DatasetReader
from recipe.intake.writer import Writer

TEXT_BEGINNING = 32  # characters that the model is to continue


def sample(path: Path, system: str = "") -> List[List[Dict[str, str]]]:
    """The conversations of one data file whose columns have usual names. Raises InputWrong."""
    stream = io.StringIO()
    reader = DatasetReader(Data(files=[str(path)]), Writer(stream, system))
    reader.read_conversations(path, path.name)
    reader.writer.flush()
    reader.errors.raise_if_any()
    return [json.loads(line)["conversation"] for line in stream.getvalue().splitlines()]


def lines(path: Path) -> Iterator[Dict[str, Any]]:
    """The objects of a dataset.jsonl, one by one: `conversation`, and for images `image` and `sha256`."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def conversations(path: Path) -> Iterator[List[Dict[str, str]]]:
    """The conversations of a dataset.jsonl, one by one."""
    return (line["conversation"] for line in lines(path))


def first_questions(paths: Iterable[Path], count: int) -> List[str]:
    """The first questions of conversations, `count` at most and each once; of plain texts their beginnings."""
    found: Dict[str, None] = {}
    for path in paths:
        for conversation in conversations(path):
            if len(found) == count:
                return list(found)
            found[conversation[0]["input"] or conversation[0]["output"][:TEXT_BEGINNING]] = None
    return list(found)
