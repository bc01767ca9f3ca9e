"""Writes dataset.jsonl, one conversation per line, in XTuner's form."""

import json
import re
from array import array
from json.encoder import encode_basestring as quote  # C; what json.dumps(ensure_ascii=False) does with a string
from pathlib import Path
from typing import IO, Dict, List, Sequence

from recipe.intake.records import Turn

# Line ends to some programs, but not to JSON Lines.
LINE_SEPARATORS = re.compile("[\x85\u2028\u2029]")


class Writer:
    """Writes conversations, and counts them: `turns`, `longest` in turns, a hash of each line."""

    def __init__(self, stream: IO[str], system: str) -> None:
        self.stream = stream
        self.system = quote(system)
        first = f'"system": {self.system}, ' if system else ""
        self.start = f'{{"conversation": [{{{first}"input": '
        self.lines: List[str] = []
        self.hashes: array[int] = array("q")
        self.turns = self.longest = 0

    def write_pair(self, question: str, answer: str) -> None:
        """Writes one question and answer, neither of which matches NEEDS_CHECK."""
        self._write(f'{self.start}{quote(question)}, "output": {quote(answer)}}}]}}\n', 1)

    def write_turns(self, turns: Sequence[Turn]) -> None:
        """Writes a conversation, with the recipe's system prompt if it has none."""
        conversation: List[str] = []
        for turn in turns:
            system = quote(turn.system) if turn.system else self.system if not conversation else '""'
            start = f'{{"system": {system}, ' if system != '""' else "{"
            conversation.append(f'{start}"input": {quote(turn.question)}, "output": {quote(turn.answer)}}}')
        line = f'{{"conversation": [{", ".join(conversation)}]}}\n'
        self._write(LINE_SEPARATORS.sub(lambda found: f"\\u{ord(found.group()):04x}", line), len(turns))

    def write_raw(self, conversation: List[Dict[str, str]], **more: str) -> None:
        """Writes a conversation as it is; `more` are further keys of its line."""
        line = json.dumps({**more, "conversation": conversation}, ensure_ascii=False) + "\n"
        self._write(line, len(conversation))

    def _write(self, line: str, turns: int) -> None:
        self.turns += turns
        self.longest = max(self.longest, turns)
        self.hashes.append(hash(line))
        self.lines.append(line)
        if len(self.lines) >= 1000:
            self.flush()

    def flush(self) -> None:
        self.stream.write("".join(self.lines))
        self.lines.clear()


def drop_duplicates(target: Path, hashes: "array[int]", drop: bool) -> int:
    """The number of different conversations; with `drop`, removes every later copy from `target`."""
    if len(hashes) < 1 << 18 and not drop:  # few enough: importing numpy would take longer
        return len(set(hashes))
    import numpy

    values = numpy.frombuffer(hashes, dtype="int64")
    if not drop:
        values.sort()  # in place, to save memory
        return 1 + int(numpy.count_nonzero(values[1:] != values[:-1]))
    first = numpy.unique(values, return_index=True)[1]
    if len(first) < len(values):
        keep = numpy.zeros(len(values), dtype=bool)
        keep[first] = True
        part = target.with_name("dataset.unique")
        with target.open("rb") as old, part.open("wb") as new:
            new.writelines(line for line, kept in zip(old, keep) if kept)
        part.replace(target)
    return len(first)
