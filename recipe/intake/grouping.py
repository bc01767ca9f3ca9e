"""Rows that belong to one conversation by its id, on disk: any number of rows may lie between them."""

import json
import re
import sqlite3
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from recipe.intake.checks import InputErrors
from recipe.intake.records import Turn

HALF_WIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}  # １ → 1


class GroupedRows:
    """Rows of one sheet that belong together by their id, on disk: any number of rows may lie between them."""

    def __init__(self) -> None:
        self.base = sqlite3.connect("")  # a private file that goes with the connection
        self.base.execute("CREATE TABLE rows (id TEXT, turn REAL, number INTEGER, place TEXT, turns TEXT)")
        self.waiting: List[Tuple[Any, ...]] = []
        self.number = 0

    def add(self, group: str, turn: Optional[float], place: str, said: Optional[Turn]) -> None:
        """One row; `said` is None where a cell is blank. Without an id a row stands alone."""
        self.number += 1
        # 1, 1.0 and １ are the same id to whoever typed them.
        key = group.translate(HALF_WIDTH).strip()
        key = re.sub(r"^(-?\d+)\.0+$", r"\1", key) if key else f"\0{self.number}"
        text = json.dumps(said, ensure_ascii=False) if said else None
        self.waiting.append((key, turn, self.number, place, text))
        if len(self.waiting) == 1000:
            self._flush()

    def _flush(self) -> None:
        self.base.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", self.waiting)
        self.waiting.clear()

    def all(self, errors: InputErrors, place: str) -> Iterator[Tuple[List[Optional[Turn]], str]]:
        """(turns, place) of every conversation, where it began; turns by their number, else as they stand."""
        self._flush()
        self.base.execute("CREATE INDEX by_id ON rows (id)")
        found = self.base.execute(
            "SELECT id, turn, place, turns FROM rows"
            " JOIN (SELECT id AS one, MIN(number) AS first FROM rows GROUP BY id) ON id = one"
            " ORDER BY first, turn IS NULL, turn, number"
        )
        key, turns, numbers, where = None, [], [], ""  # type: ignore[var-annotated]
        for one, turn, row, text in found:
            if one != key:
                if turns:
                    yield turns, where
                key, turns, numbers, where = one, [], [], f"{place}, {row}"
            if turn is not None and turn in numbers:
                errors.add(f"{place}, {row}", f"turn {turn:g} of conversation {key} is there twice")
            elif numbers and (turn is None) != (numbers[-1] is None):
                errors.add(f"{place}, {row}", f"conversation {key} has turns with and without a number")
            turns.append(Turn(*json.loads(text)) if text else None)
            numbers.append(turn)
        if turns:
            yield turns, where


def with_one_system(turns: Sequence[Turn], errors: InputErrors, where: str) -> List[Turn]:
    """The turns with the conversation's one system prompt in the first."""
    given = {turn.system for turn in turns if turn.system}
    if len(given) > 1:
        shown = " and ".join(f"{text[:20]!r}" for text in sorted(given)[:2])
        errors.add(where, f"this conversation has several system prompts: {shown}")
    system = next(iter(given), "")
    return [turn._replace(system=system if at == 0 else "") for at, turn in enumerate(turns)]
