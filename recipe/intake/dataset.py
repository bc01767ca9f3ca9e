"""Reads dataset.jsonl."""

import io
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List

from recipe.core.settings import Data
from recipe.intake.reader import Intake
from recipe.intake.writer import Writer


def sample(path: Path, system: str = "") -> List[List[Dict[str, str]]]:
    """The conversations of one file whose columns have usual names. Raises InputWrong."""
    stream = io.StringIO()
    intake = Intake(Data(files=[str(path)]), Writer(stream, system))
    intake.file(path, path.name)
    intake.writer.flush()
    intake.errors.raise_if_any()
    return [json.loads(line)["conversation"] for line in stream.getvalue().splitlines()]


def lines(path: Path) -> Iterator[Dict[str, Any]]:
    """What the lines of a dataset.jsonl hold, one by one: `conversation`, and of an image `image` and `sha256`."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def conversations(path: Path) -> Iterator[List[Dict[str, str]]]:
    """The conversations of a dataset.jsonl, one by one."""
    return (line["conversation"] for line in lines(path))
