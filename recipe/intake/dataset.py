"""Reads dataset.jsonl."""

import io
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List

from recipe.core.settings import Data
from recipe.intake.reader import DatasetReader
from recipe.intake.writer import Writer


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
