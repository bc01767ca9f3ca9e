"""Writes dataset.jsonl, one conversation a line, in XTuner's form."""

import json
import re
from array import array
from json.encoder import encode_basestring as quoted  # C; what json.dumps(ensure_ascii=False) does with a string
from pathlib import Path
from typing import IO, Any, Dict, List, Sequence

from recipe.intake.records import Turn

# Line ends to some programs, but not to JSON Lines.
SEPARATORS = re.compile("[\x85\u2028\u2029]")


class Writer:
    """Writes conversations, and counts them."""

    def __init__(self, stream: IO[str], system: str) -> None:
        self.stream = stream
        self.system = quoted(system)
        first = f'"system": {self.system}, ' if system else ""
        self.start = f'{{"conversation": [{{{first}"input": '
        self.lines: List[str] = []
        self.hashes = array("q")
        self.turns = self.longest = 0

    def plain(self, question: str, answer: str) -> None:
        """A conversation of one turn, of texts without any of the NEEDS_CHECK signs."""
        # Nearly every row comes this way: no call that could be spared.
        line = f'{self.start}{quoted(question)}, "output": {quoted(answer)}}}]}}\n'
        self.turns += 1
        self.hashes.append(hash(line))
        self.lines.append(line)
        if len(self.lines) >= 1000:
            self.flush()

    def many(self, turns: Sequence[Turn]) -> None:
        conversation = []
        for turn in turns:
            system = quoted(turn.system) if turn.system else self.system if not conversation else '""'
            made = f'{{"system": {system}, ' if system != '""' else "{"
            conversation.append(f'{made}"input": {quoted(turn.question)}, "output": {quoted(turn.answer)}}}')
        self.turns += len(turns)
        self.longest = max(self.longest, len(turns))
        line = f'{{"conversation": [{", ".join(conversation)}]}}\n'
        self._write(SEPARATORS.sub(lambda found: f"\\u{ord(found.group()):04x}", line))

    def raw(self, conversation: List[Dict[str, str]], **more: str) -> None:
        """A conversation as it shall stand there, behind what else its line holds."""
        self.turns += len(conversation)
        self.longest = max(self.longest, len(conversation))
        self._write(json.dumps({**more, "conversation": conversation}, ensure_ascii=False) + "\n")

    def _write(self, line: str) -> None:
        self.hashes.append(hash(line))
        self.lines.append(line)
        if len(self.lines) >= 1000:
            self.flush()

    def flush(self) -> None:
        """What was taken is in the stream after this."""
        self.stream.write("".join(self.lines))
        self.lines.clear()


def drop_duplicates(target: Path, hashes: Any, drop: bool) -> int:
    """How many different conversations there are; with `drop` every later copy is taken out of `target`."""
    if len(hashes) < 1 << 18 and not drop:  # few enough: importing numpy would take longer
        return len(set(hashes))
    import numpy

    values = numpy.frombuffer(hashes, dtype="int64")
    if not drop:
        values.sort()  # in place: nothing more is kept in memory
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
