"""Groups the rows of a conversation by its id, on disk: any number of other rows may lie between them."""

import json
import re
import sqlite3
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from recipe.core.translation import _
from recipe.intake.checks import InputErrors
from recipe.intake.records import Turn

HALF_WIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}  # １ → 1


class GroupedRows:
    """The rows of one sheet, by conversation id."""

    def __init__(self) -> None:
        self.database = sqlite3.connect("")  # a private file that is removed with the connection
        self.database.execute("CREATE TABLE rows (id TEXT, turn REAL, number INTEGER, place TEXT, turns TEXT)")
        self.waiting: List[Tuple[Any, ...]] = []
        self.number = 0

    def add(self, group: str, number: Optional[float], place: str, turn: Optional[Turn]) -> None:
        """Adds one row; `turn` is None where a cell is blank. A row without an id is a conversation of its own."""
        self.number += 1
        key = group.translate(HALF_WIDTH).strip()
        key = re.sub(r"^(-?\d+)\.0+$", r"\1", key) if key else f"\0{self.number}"  # 1, 1.0 and １ are the same id
        self.waiting.append((key, number, self.number, place, json.dumps(turn, ensure_ascii=False) if turn else None))
        if len(self.waiting) == 1000:
            self._flush()

    def _flush(self) -> None:
        self.database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", self.waiting)
        self.waiting.clear()

    def conversations(self, errors: InputErrors, place: str) -> Iterator[Tuple[List[Optional[Turn]], str]]:
        """(turns, place of its first row) of every conversation, turns in the order of their numbers, else of rows."""
        self._flush()
        self.database.execute("CREATE INDEX by_id ON rows (id)")
        rows = self.database.execute(
            "SELECT id, turn, place, turns FROM rows"
            " JOIN (SELECT id AS one, MIN(number) AS first FROM rows GROUP BY id) ON id = one"
            " ORDER BY first, turn IS NULL, turn, number"
        )
        key, where = None, ""
        turns: List[Optional[Turn]] = []
        numbers: List[Optional[float]] = []
        for id_, number, row, text in rows:
            if id_ != key:
                if turns:
                    yield turns, where
                key, turns, numbers, where = id_, [], [], f"{place}, {row}"
            if number is not None and number in numbers:
                what = _("turn {turn:g} of conversation {conversation} appears twice", turn=number, conversation=key)
                errors.add(f"{place}, {row}", what)
            elif numbers and (number is None) != (numbers[-1] is None):
                what = _("conversation {conversation} has turns with and without a number", conversation=key)
                errors.add(f"{place}, {row}", what)
            turns.append(Turn(*json.loads(text)) if text else None)
            numbers.append(number)
        if turns:
            yield turns, where


def move_system_first(turns: Sequence[Turn], errors: InputErrors, where: str) -> List[Turn]:
    """Move the conversation's system prompt to its first turn; several different prompts are an error."""
    systems = sorted({turn.system for turn in turns if turn.system})
    if len(systems) > 1:
        shown = _(" and ").join(f"{text[:20]!r}" for text in systems[:2])
        errors.add(where, _("this conversation has several system prompts: {prompts}", prompts=shown))
    return [turn._replace(system=systems[0] if systems and at == 0 else "") for at, turn in enumerate(turns)]
