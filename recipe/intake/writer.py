"""Writes dataset.jsonl, one conversation per line, in XTuner's form."""

import json
import re
from array import array
from json.encoder import encode_basestring as quote  # C; what json.dumps(ensure_ascii=False) does with a string
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
