"""Files of questions and answers to dataset.jsonl: one conversation a line, in XTuner's form.

Workbooks, delimited text and Parquet hold a row a turn under named columns; JSON holds conversations. Rows with the
same conversation id are one conversation, where it began. A system prompt stands in the first turn only, as XTuner's
chat template wants it: the file's own, else the recipe's. Everything is read as a stream: of a row nothing but two
8-byte numbers stays in memory (of rows with a conversation id a temporary database on disk holds the rest).
"""

import functools
import io
import itertools
import json
import re
import sqlite3
import time
import unicodedata
from array import array
from json.encoder import encode_basestring as quoted  # C; what json.dumps(ensure_ascii=False) does with a string
from pathlib import Path
from typing import IO, Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from recipe.core import imports
from recipe.core.errors import InputWrong
from recipe.core.settings import Data
from recipe.core.stage import Run, digest
from recipe.intake import agent, documents, images, records, split, tables
from recipe.intake import columns as names
from recipe.intake.cells import ERRORS, Cell, Damaged, Odd, Shown
from recipe.intake.columns import ANSWER, CONVERSATION, MORE, QUESTION, SYSTEM, TURN
from recipe.intake.records import Turn
from recipe.xtuner import preset_facts

KINDS = (".xlsx", ".xlsm", ".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
FOREIGN = (".xls", ".xlsb", ".et", ".ods", ".numbers")  # workbooks that are not read: refused, never left out
SHOWN = 20  # faults listed before the rest is only counted
HEADER_WITHIN = 20  # rows that hold anything, from the top
IMAGE = "<image>"  # stands where the image is, as LLaVA has it
# What the tokenizer, or that of another chat model, takes for a sign of its own instead of text.
CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<unk>|<pad>|\[UNUSED_TOKEN_\d+\]|<\|(?=im_)")
# Control characters, halves of characters, and the sign that stands for a character lost in an earlier conversion.
NO_TEXT = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufffd\ufffe\uffff\ud800-\udfff]")
BREAKS = re.compile("\r\n|[\r\x0b\x0c]")
# One look at each text: without any of these signs there is nothing to ask.
SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029\ufffd-\uffff\ud800-\udfff<\\[\u115f\u1160\u3164\uffa0]")
# Shown as nothing, though Unicode counts them as letters or signs.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10))))
HALF_WIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}  # １ → 1
# Line ends to some programs, but not to JSON Lines.
SEPARATORS = re.compile("[\x85\u2028\u2029]")


class Faults:
    """What is wrong, with its place; the first are kept, the rest is counted."""

    def __init__(self) -> None:
        self.first: List[str] = []
        self.count = 0
        self.blanks = 0

    def add(self, place: str, what: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(f"{place}: {what}")

    def refuse(self) -> None:
        """Raise InputWrong if there are any."""
        if self.count:
            more = [f"… and {self.count - SHOWN} more"] if self.count > SHOWN else []
            hint = ", or drop them with data.skip_blank=true" if self.blanks else ""
            blank = f"Fill blank cells or delete their rows{hint}." if self.blanks else "Correct this in the file."
            raise InputWrong("\n".join([*self.first, *more, blank]))


class Progress:
    """A bar on the terminal for what takes longer than two seconds."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.bar: Any = None
        self.name = ""

    def step(self, name: str, share: float) -> None:
        if self.bar is None:
            if time.monotonic() - self.began < 2:
                return
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.bar.start()
        if name != self.name:
            self.name, self.task = name, self.bar.add_task(name, total=1.0)
        self.bar.update(self.task, completed=share)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


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
        """A conversation of one turn, of texts without any of the SUSPECT signs."""
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


class Intake:
    """One reading of all files: `writer` gets the conversations, `faults` what is wrong. `pictures`: where each
    conversation is about an image.
    """

    def __init__(self, data: Data, writer: Writer, pictures: Optional[images.Images] = None) -> None:
        self.data = data
        self.pictures = pictures
        self.writer = writer
        self.faults = Faults()
        self.progress = Progress()
        self.chosen = {role: name for role, name in data.columns.model_dump(exclude={"text", "image"}).items() if name}
        self.blank_dropped = self.as_text = self.breaks = 0
        self.read: List[Dict[str, Any]] = []  # what was found in which file and sheet
        self.skipped: List[str] = []

    def file(self, path: Path, name: str) -> None:
        """Read one file; whatever is wrong with it becomes a fault."""
        self.path = path
        try:
            if path.suffix.lower() in (".json", ".jsonl"):
                encoding, values = records.records(path)
                self._records(name, encoding, values)
            else:
                values_or_none = records.parquet(path) if path.suffix.lower() == ".parquet" else None
                if values_or_none is not None:
                    self._records(name, "", values_or_none)
                else:
                    self._tables(path, name)
        except Damaged as damaged:
            remedy = " Save it again as .xlsx." if path.suffix.lower() in (".xlsx", ".xlsm") else ""
            self.faults.add(name, f"cannot be opened: {damaged}.{remedy}")

    def texts(self, path: Path, name: str, most: int) -> None:
        """Read one file of plain texts, in pieces of at most `most` characters; as XTuner's pretrain_map_fn."""
        before = self.writer.turns
        found: Dict[str, Any] = {"encoding": ""}
        try:
            for document in documents.documents(path, self.data.columns.text, found):
                text = self.text(document.text, f"{name}, {document.place}" if document.place else name)
                if text is None:
                    self.blank_dropped += 1
                    continue
                for piece in documents.pieces(text, most):
                    if piece.strip():
                        self.writer.raw([{"input": "", "output": piece.strip()}])
        except Damaged as damaged:
            self.faults.add(name, f"cannot be read: {damaged}")
        self.read.append({"file": name, "rows": self.writer.turns - before, "unused": [], **found})

    def agent(self, path: Path, name: str) -> None:
        """Read one file of conversations with tools; see intake/agent.py."""
        before = self.writer.turns
        try:
            encoding, values = ("", records.parquet(path)) if path.suffix == ".parquet" else records.records(path)
            for place, value in values or ():
                where = f"{name}, {place}" if place else name
                try:
                    turns = agent.conversation(value)
                except records.Wrong as wrong:
                    self.faults.add(where, str(wrong))
                    continue
                odd = [CONTROL.search(text) or NO_TEXT.search(text) for turn in turns for text in turn.values()]
                for one in filter(None, odd):
                    self.faults.add(where, f"the sign {one.group()!r}, which the model takes for one of its own")
                if turns[0]["system"] == "" and self.data.system:
                    turns[0]["system"] = self.data.system
                self.writer.raw(turns)
        except Damaged as damaged:
            self.faults.add(name, f"cannot be opened: {damaged}.")
            return
        entry = {"file": name, "encoding": encoding, "rows": self.writer.turns - before, "unused": []}
        self.read.append(entry)

    def text(self, cell: Cell, place: str) -> Optional[str]:
        """A cell's or key's text; None, with a fault unless blanks are skipped, if it is none."""
        if cell is None or not (_is_visible(cell) or NO_TEXT.search(cell)):
            if isinstance(cell, Odd):
                self.faults.add(place, cell.why)
            elif not self.data.skip_blank:
                self.faults.blanks += 1
                self.faults.add(place, "blank")
            return None
        if isinstance(cell, Odd):
            self.faults.add(place, cell.why)
            return None
        if isinstance(cell, Shown):
            self.as_text += 1
            return str(cell)
        if cell in ERRORS or re.fullmatch("#{4,}", cell):
            self.faults.add(place, f"the error {cell}")
            return None
        if cell.startswith("=DISPIMG("):
            self.faults.add(place, "a picture, not a text")
            return None
        text, count = BREAKS.subn("\n", cell)
        self.breaks += count > 0
        control = CONTROL.search(text)
        if control:
            self.faults.add(place, f"the chat control token {control.group()} in {_around(text, control)}")
            return None
        odd = NO_TEXT.search(text)
        if odd:
            what = "a character lost in an earlier conversion (U+FFFD)" if odd.group() == "\ufffd" else (
                f"a character that is no text (U+{ord(odd.group()):04X})")  # fmt: skip
            self.faults.add(place, f"{what} in {_around(text, odd)}")
            return None
        return text

    def optional(self, cell: Cell, place: str) -> str:
        """The same for a cell that may be blank: "" then."""
        if cell is None or (not _is_visible(cell) and not isinstance(cell, Odd)):
            return ""
        return str(cell) if isinstance(cell, Shown) else self.text(cell, place) or ""

    # JSON

    def _records(self, name: str, encoding: str, values: Iterable[Tuple[str, Any]]) -> None:
        before = self.writer.turns

        unused: Dict[str, None] = {}

        def columns(keys: List[str]) -> Optional[Dict[str, str]]:
            try:
                found = names.find(keys, self.chosen)
            except names.Doubt:
                return None
            if not {QUESTION, ANSWER} <= set(found.roles):
                return None
            unused.update(dict.fromkeys(found.unused))
            return {role: keys[index] for role, index in found.roles.items()}

        any_value = False
        for number, (place, value) in enumerate(values):
            any_value = True
            if number & 1023 == 1023:
                self.progress.step(name, 0.0)
            where = f"{name}, {place}" if place else name
            try:
                image, value = self._parted(value) if self.pictures else ("", value)
                turns = records.turns(value, columns, bool(self.chosen))
            except records.Wrong as wrong:
                self.faults.add(where, str(wrong))
                continue
            self._conversation([turn._replace(image=image) for turn in turns] if image else turns, where)
        if not any_value:
            self.faults.add(name, "there are no rows in it")
        entry = {"file": name, "encoding": encoding, "rows": self.writer.turns - before, "unused": list(unused)}
        self.read.append(entry)

    def _conversation(self, turns: Sequence[Turn], where: str) -> None:
        """Check and write the turns of one record; a blank one drops them all."""
        checked: List[Turn] = []
        for at, turn in enumerate(turns, start=1):
            which = f"{where}, turn {at}" if len(turns) > 1 else where
            question = self.text(turn.question, f"{which}, question")
            answer = self.text(turn.answer, f"{which}, answer")
            system = self.optional(turn.system, f"{which}, system")
            if question is not None and answer is not None:
                checked.append(Turn(question, answer, system, turn.image))
        if len(checked) == len(turns):
            self._write(_one_system(checked, self.faults, where), where)
        else:
            self.blank_dropped += len(turns)

    def _write(self, turns: List[Turn], where: str) -> None:
        """A conversation that is whole; one about an image as LLaVA's, by XTuner's own map."""
        if self.pictures is None:
            self.writer.many(turns)
            return
        from xtuner.dataset.map_fns import llava_map_fn

        named = sorted({turn.image for turn in turns if turn.image})
        if len(named) != 1:
            what = f"several images: {', '.join(named[:3])}. One to a conversation" if named else "blank"
            self.faults.add(f"{where}, image", what)
            return
        try:
            image, sha256 = self.pictures.look(named[0], self.path)
        except records.Wrong as wrong:
            self.faults.add(f"{where}, image {named[0]}", str(wrong))
            return
        said = []
        for turn in turns:
            question = turn.question.replace(IMAGE, "").strip()  # LLaVA's own files have it, before or behind
            said += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answer}]
        said[0]["value"] = f"{IMAGE}\n{said[0]['value']}"
        made = llava_map_fn({"conversations": said})["conversation"]
        system = turns[0].system or self.data.system
        if system:
            made[0] = {"system": system, **made[0]}
        self.writer.raw(made, image=image, sha256=sha256)

    def _parted(self, value: Any) -> Tuple[str, Any]:
        """A record's image, and the record without it. Raises Wrong."""
        if not isinstance(value, dict):
            return "", value
        try:
            key = list(value)[images.column(list(value), self.data.columns.image)]
        except names.Doubt as doubt:
            raise records.Wrong(str(doubt).replace("column", "key"))
        if not isinstance(value[key], str) or not value[key].strip():
            raise records.Wrong(f"{key}: the path of an image is wanted, found {value[key]!r}")
        return value[key].strip(), {name: held for name, held in value.items() if name != key}

    # rows and columns

    def _tables(self, path: Path, name: str) -> None:
        wanted = list(self.data.sheet)
        before = len(self.skipped)
        seen: List[str] = []
        used = 0
        for table in tables.tables(path, lambda cells: names.is_header(cells, self.chosen)):
            seen.append(table.sheet)
            if table.sheet:
                if self.data.sheet and table.sheet not in wanted:
                    continue
                if table.hidden and not self.data.sheet:
                    self.skipped.append(f"{name}, sheet {table.sheet} (hidden)")
                    continue
            used += self._table(table, name)
        missing = [sheet for sheet in wanted if sheet not in seen] if any(seen) else []
        if missing:
            self.faults.add(name, f"there is no sheet {', '.join(missing)} (data.sheet). It has: {', '.join(seen)}")
        elif not used:
            mine, self.skipped = self.skipped[before:], self.skipped[:before]
            if not mine:
                self.faults.add(name, "there are no rows in it")
                return
            found = "; ".join(part[len(name) :].lstrip(":, ") for part in mine)
            what = "no sheet with a row that names" if any(seen) else "no row that names"
            self.faults.add(
                name,
                f"{what} the questions and the answers. Found: {found}. Call the header cells q and a, "
                f"or say what they are called: data.columns.question=… data.columns.answer=…",
            )

    def _table(self, table: tables.Table, name: str) -> bool:
        """Read one sheet; whether it has a header that names question and answer."""
        place = f"{name}, sheet {table.sheet}" if table.sheet else name
        rows = table.rows()
        first: Optional[List[Cell]] = None
        for _, cells in itertools.islice(rows, HEADER_WITHIN):
            first = first or cells
            if names.is_header(cells, self.chosen):
                break
        else:
            if first:  # an empty sheet is nothing to tell
                shown = ", ".join(str(cell).strip()[:20] for cell in first if cell)
                self.skipped.append(f"{place}: {shown}")
            return False
        try:
            found = names.find(cells, self.chosen)
            image_at = images.column(cells, self.data.columns.image) if self.pictures else None
        except names.Doubt as doubt:
            self.faults.add(place, f"{doubt}.")
            return True
        roles = found.roles
        if TURN in roles and CONVERSATION not in roles:
            turn_name = str(cells[roles[TURN]]).strip()
            self.faults.add(place, f"the column {turn_name} numbers turns, but no column names the conversation. Add "
                            "one, or rename it")  # fmt: skip
            return True
        before = self.writer.turns
        grouped = _Conversations() if CONVERSATION in roles else None
        width = len(cells)
        question_at, answer_at, system_at = roles[QUESTION], roles[ANSWER], roles.get(SYSTEM)
        more_at, called = roles.get(MORE), {role: str(cells[index]).strip() for role, index in roles.items()}
        text, plainly, suspect = self.text, self.writer.plain, SUSPECT.search
        plain = image_at is None and not {SYSTEM, CONVERSATION, MORE} & set(roles)
        nameless = [index for index, cell in enumerate(cells) if not names.fold(cell)]
        header, lost = cells, set()
        again = {*names.ROLES, header[question_at], header[answer_at]}
        for number, (mark, cells) in enumerate(rows):
            if number & 1023 == 1023:
                self.progress.step(place, table.position())
            if len(cells) != width or nameless:
                if len(cells) < width:
                    cells = [*cells, *[None] * (width - len(cells))]
                elif table.strict and any(cells[width:]):
                    extra = "".join(str(cell) for cell in cells[width:] if cell)
                    what = f"more cells than the header has: {extra[:40]!r}. Quote a cell that holds a separator"
                    self.faults.add(f"{place}, {table.place(mark)}", what)
                    continue
                lost.update(i for i in [*nameless, *range(width, len(cells))] if cells[i])
            question, answer = cells[question_at], cells[answer_at]
            if (
                plain
                and question.__class__ is answer.__class__ is str
                and not suspect(question)  # type: ignore[arg-type]
                and not suspect(answer)  # type: ignore[arg-type]
                and question[:1].isalnum()  # type: ignore[index]
                and answer[:1].isalnum()  # type: ignore[index]
                and question not in again
            ):
                plainly(question, answer)  # type: ignore[arg-type]
                continue  # nearly every row: what follows tells what is the matter with the others
            row = table.place(mark)
            at = f"{place}, {row}, column "
            if names.is_again([header[question_at], header[answer_at]], [cells[question_at], cells[answer_at]]):
                # Right below the header: it was two rows high, joined. Further down: another table.
                if number or [cells[question_at], cells[answer_at]] != [header[question_at], header[answer_at]]:
                    what = (
                        f"another header ({question}, {answer}). Delete it, or put what is below into a file of its own"
                    )
                    self.faults.add(f"{place}, {row}", what)
                continue
            if table.strict:
                cells = [_unwrapped(cell) for cell in cells]
                for index in (question_at, answer_at):
                    if re.match(r'\s+"[^"]*$', cells[index] or ""):
                        what = f"a quote behind a space quotes nothing: {cells[index][:20]!r}. Take the space out"
                        self.faults.add(f"{place}, {row}", what)
            question = text(cells[question_at], at + called[QUESTION])
            answer = text(cells[answer_at], at + called[ANSWER])
            whole = question is not None and answer is not None
            if more_at is not None and question is not None:
                more = self.optional(cells[more_at], at + called[MORE])
                question = f"{question}\n{more}" if more else question
            system = self.optional(cells[system_at], at + called[SYSTEM]) if system_at is not None else ""
            image = self.optional(cells[image_at], f"{place}, {row}, image") if image_at is not None else ""
            if grouped is not None:
                group = self.optional(cells[roles[CONVERSATION]], at + called[CONVERSATION])
                turn = self._turn(cells, roles, at, called)
                if turn is not None and turn != 1 and not group:
                    self.faults.add(
                        at + called[CONVERSATION], f"blank, but this is turn {turn:g}: of which conversation?"
                    )
                grouped.add(group, turn, row, Turn(question or "", answer or "", system, image) if whole else None)
            elif whole:
                self._write([Turn(question, answer, system, image.strip())], f"{place}, {row}")  # type: ignore[arg-type]
            else:
                self.blank_dropped += 1
        if grouped is not None:
            for turns, where in grouped.all(self.faults, place):
                if None in turns:
                    self.blank_dropped += len(turns)
                else:
                    self._write(_one_system(turns, self.faults, where), where)  # type: ignore[arg-type]
        entry = {"file": name, "sheet": table.sheet, "encoding": table.note, "rows": self.writer.turns - before}
        without = [f"{_letters(index)} (without a name)" for index in sorted(lost)]
        if image_at is not None:
            roles = {**roles, "image": image_at}
            found.unused[:] = [name for name in found.unused if name != str(header[image_at]).strip()]
        used = {role: str(header[index]).strip() for role, index in roles.items()}
        self.read.append({**entry, "columns": used, "unused": found.unused + without})
        return True

    def _turn(self, cells: Sequence[Cell], roles: Dict[str, int], at: str, called: Dict[str, str]) -> Optional[float]:
        """The number of a turn, if there is a column for it."""
        if TURN not in roles:
            return None
        cell = self.optional(cells[roles[TURN]], at + called[TURN])
        digits = re.findall(r"\d+(?:\.\d+)?", cell.translate(HALF_WIDTH))
        if cell and len(digits) != 1:
            self.faults.add(at + called[TURN], f"a number is wanted, found {cell[:20]!r}")
        return float(digits[0]) if len(digits) == 1 else None


class _Conversations:
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

    def all(self, faults: Faults, place: str) -> Iterator[Tuple[List[Optional[Turn]], str]]:
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
                faults.add(f"{place}, {row}", f"turn {turn:g} of conversation {key} is there twice")
            elif numbers and (turn is None) != (numbers[-1] is None):
                faults.add(f"{place}, {row}", f"conversation {key} has turns with and without a number")
            turns.append(Turn(*json.loads(text)) if text else None)
            numbers.append(turn)
        if turns:
            yield turns, where


def _one_system(turns: Sequence[Turn], faults: Faults, where: str) -> List[Turn]:
    """The turns with the conversation's one system prompt in the first."""
    given = {turn.system for turn in turns if turn.system}
    if len(given) > 1:
        shown = " and ".join(f"{text[:20]!r}" for text in sorted(given)[:2])
        faults.add(where, f"this conversation has several system prompts: {shown}")
    system = next(iter(given), "")
    return [turn._replace(system=system if at == 0 else "") for at, turn in enumerate(turns)]


def _is_visible(text: str) -> bool:
    """Whether a text holds anything to see: no space, control or format character alone does."""
    return any(unicodedata.category(c)[0] not in "CZ" and c not in INVISIBLE for c in text)


def _unwrapped(cell: Cell) -> Cell:
    """="00123" is what keeps Excel from taking a field of CSV for a number."""
    return cell[2:-1] if cell and cell.startswith('="') and cell.endswith('"') and len(cell) > 2 else cell


def _letters(index: int) -> str:
    """A column's letters in Excel, from its number from 0."""
    letters = ""
    while index >= 0:
        letters = chr(65 + index % 26) + letters
        index = index // 26 - 1
    return f"column {letters}"


def _around(text: str, found: Any) -> str:
    """A fault's surroundings, shortened, with what cannot be shown replaced."""
    part = text[max(0, found.start() - 12) : found.end() + 12].replace("\n", " ")
    part = "".join("�" if unicodedata.category(c)[0] == "C" else c for c in part)
    return f'"{"…" if found.start() > 12 else ""}{part}{"…" if found.end() + 12 < len(text) else ""}"'


def files(run: Run, of: str = "files") -> List[Tuple[Path, str]]:
    """The recipe's files (or its eval_files) with their names, folders unfolded. Raises InputWrong for one that cannot
    be meant.
    """
    data = run.settings.data
    kinds = _kinds(run)
    found: List[Tuple[Path, str]] = []
    for name in getattr(data, of):
        if not name.strip():
            raise InputWrong(f"data.{of} names a file without a name. Name yours: data.{of}='[\"data/mine.xlsx\"]'.")
        path = Path(name)
        if not path.is_absolute():
            path = run.root / path
        if path.is_dir():
            below = path.rglob("*") if kinds != KINDS else path.iterdir()  # texts come in folders of folders
            inside = [(p, str(Path(name) / p.relative_to(path))) for p in sorted(below) if _is_meant(p, kinds)]
            if not inside:
                raise InputWrong(f"The folder {name} holds no file of a known kind ({', '.join(kinds)}).")
            found += [one for one in inside if one not in found]
            continue
        if not path.is_file():
            beside = sorted(p.name for p in path.parent.glob("*") if _is_meant(p)) if path.parent.is_dir() else []
            there = f" {run.shown(path.parent)} holds: {', '.join(beside[:5])}." if beside else ""
            published = data.url and of == "files"
            fetch = f" It is published: curl -fL -o {name} {data.url}\nOr" if published else " Put it there, or"
            no_sum = " data.sha256=" if data.sha256 and of == "files" else ""
            raise InputWrong(
                f"There is no workbook {name} (data.{of} of recipe {run.name}).{there}{fetch} "
                f"name yours: data.{of}='[\"data/mine.xlsx\"]'{no_sum}."
            )
        if data.sha256 and of == "files" and not found and digest(path) != data.sha256:
            raise InputWrong(
                f"{name} is not the workbook that recipe {run.name} was made for: its sha256 is not "
                f"{data.sha256[:12]}…. Fetch it again, or take yours as it is: data.sha256=''."
            )
        if (path, name) not in found:
            found.append((path, name))
    for path, name in found:
        if path.name.startswith("~$"):
            raise InputWrong(f"{name} is the lock that Excel keeps while a workbook is open. Name {path.name[2:]}.")
        if path.suffix.lower() in FOREIGN:
            raise InputWrong(f"{name} is of a kind that is not read. Save it as .xlsx in Excel, WPS or LibreOffice.")
        if path.suffix.lower() not in kinds:
            raise InputWrong(f"{name} is of no known kind ({', '.join(kinds)}). Save it as .xlsx or UTF-8 .csv.")
    return found


def _kinds(run: Run) -> Tuple[str, ...]:
    """Endings of the files that are read for the recipe's kind of data."""
    kind = preset_facts.kind(run.settings)
    if kind == "agent":
        return (".json", ".jsonl", ".parquet")
    return (*KINDS, *documents.PROSE[1:]) if kind == "pretrain" else KINDS


def _is_meant(path: Path, kinds: Tuple[str, ...] = KINDS) -> bool:
    """Whether a file of a folder belongs to the data: no hidden ones, no locks, nothing of other kinds.

    Old workbooks count, so that they are refused and not left out in silence.
    """
    kind = path.suffix.lower() in (*kinds, *FOREIGN)
    return path.is_file() and kind and not path.name.startswith((".", "~$"))


def left_out(run: Run) -> List[str]:
    """What lies in the recipe's folders and is not read: other kinds of files, folders. Hidden ones are not counted."""
    found = []
    for name in [*run.settings.data.files, *run.settings.data.eval_files]:
        path = run.root / name
        if path.is_dir():
            others = [
                p
                for p in sorted(path.iterdir())
                if not _is_meant(p, _kinds(run)) and not p.name.startswith((".", "~$"))
            ]
            found += [str(Path(name) / p.name) for p in others]
    return found


def reads(run: Run) -> Dict[str, Any]:
    here = Path(__file__)
    found = [*files(run), *files(run, "eval_files")]
    pictures = preset_facts.pictures(run.settings)
    return {
        **({"images": [images.listed(place) for place in image_folders(run)]} if pictures else {}),
        **({"looks": Path(images.__file__)} if pictures else {}),
        "files": [name for _, name in found] + left_out(run), "settings": run.settings.data.model_dump(),
        "kind": preset_facts.kind(run.settings),
        "piece": _piece(run) if preset_facts.kind(run.settings) == "pretrain" else 0,
        "seed": _seed(run) if run.settings.data.eval_share else None,
        "code": here, "intake": here.parent, "held_out": Path(split.__file__),
        **{f"file{i}": path for i, (path, _) in enumerate(found)},
    }  # fmt: skip


def image_folder(run: Run) -> Path:
    """The folder to which the images' paths in dataset.jsonl count: data.images, else the first file's own. Raises
    InputWrong if it is not there.
    """
    given = run.settings.data.images
    place = run.root / given if given else files(run)[0][0].parent
    if not place.is_dir():
        raise InputWrong(f"data.images: there is no folder {given}.")
    return place


def image_folders(run: Run) -> List[Path]:
    """Where images may lie that the recipe's files name: data.images, or beside each file."""
    if run.settings.data.images:
        return [image_folder(run)]
    return sorted({path.parent for path, _ in [*files(run), *files(run, "eval_files")]})


def _seed(run: Run) -> int:
    """By which the held-out conversations are chosen: the recipe's, 0 where it has none."""
    return run.settings.train.seed or 0


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write dataset.jsonl, and what is held out of it into eval.jsonl. Figures, of what is trained on: rows,
    conversations, longest in turns, exact duplicates; what was dropped or changed, what was found in which file, and
    how many conversations are held out.

    Raises InputWrong with the place of every fault (the first 20, then a count); nothing is written then.
    """
    data = run.settings.data
    control = CONTROL.search(data.system) or NO_TEXT.search(data.system)
    if control:
        raise InputWrong(
            f"data.system of recipe {run.name} holds {control.group()!r}, which the model takes for a sign of its own."
        )
    target, evaluation = out / "dataset.jsonl", out / "eval.jsonl"
    intake = _read(run, "files", target)
    writer = intake.writer
    if not writer.turns:
        raise InputWrong(f"{', '.join(data.files)}: there are no rows below the header. Nothing to train on.")
    count = len(writer.hashes)
    duplicates = count - _deduplicated(target, writer.hashes, data.dedupe)
    figures = {
        "rows": writer.turns,
        "conversations": count - (duplicates if data.dedupe else 0),
        "longest": max(1, writer.longest),
        "duplicates": 0 if data.dedupe else duplicates,
        "duplicates_dropped": duplicates if data.dedupe else 0,
        "blank_dropped": intake.blank_dropped,
        "numbers_as_text": intake.as_text,
        "line_breaks_changed": intake.breaks,
        "read": intake.read,
        "skipped": intake.skipped + left_out(run),
        "held_out": 0,
        "held_out_dropped": 0,
        **({"images": len(intake.pictures.seen)} if intake.pictures else {}),
    }
    if data.eval_files:
        figures["read"] += _read(run, "eval_files", evaluation).read
        figures.update(split.without(evaluation, lines(target)))
    else:
        chosen = set()
        if data.eval_share and intake.pictures:
            images = [line["sha256"] for line in lines(target)]
            chosen = split.choose_images(images, data.eval_share, _seed(run))
        elif data.eval_share:
            chosen = split.choose(conversations(target), data.eval_share, _seed(run))
        moved = split.part(target, evaluation, chosen)
        figures["held_out"] = len(chosen)
        figures["conversations"] -= len(chosen)
        figures["rows"] -= moved
    return figures


def _read(run: Run, of: str, target: Path) -> Intake:
    """Read the recipe's files, or its eval_files, into `target`. Raises InputWrong."""
    with target.open("w", encoding="utf-8", newline="\n") as stream:
        kind = preset_facts.kind(run.settings)
        pictures = None
        if kind == "image":
            imports.load()  # XTuner's map
            folder = image_folder(run)
            pictures = images.Images(folder if run.settings.data.images else None, folder)
        intake = Intake(run.settings.data, Writer(stream, run.settings.data.system), pictures)
        read = {"pretrain": functools.partial(intake.texts, most=_piece(run)), "agent": intake.agent}.get(
            kind, intake.file
        )
        try:
            for path, name in files(run, of):
                read(path, name)
        finally:
            intake.progress.stop()
        intake.writer.flush()
    intake.faults.refuse()
    return intake


def _piece(run: Run) -> int:
    """Characters of a piece of text: hardly ever more tokens than max_length, in any language's own vocabulary."""
    given = run.settings.data.piece or run.settings.train.max_length
    told = preset_facts.facts(run.settings.base).names.get("max_length", "")
    return given or (int(told) if told.isdigit() else 2048)


def _deduplicated(target: Path, hashes: Any, drop: bool) -> int:
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


def sample(path: Path, system: str = "") -> List[List[Dict[str, str]]]:
    """The conversations of one file whose columns have usual names. Raises InputWrong."""
    stream = io.StringIO()
    intake = Intake(Data(files=[str(path)]), Writer(stream, system))
    intake.file(path, path.name)
    intake.writer.flush()
    intake.faults.refuse()
    return [json.loads(line)["conversation"] for line in stream.getvalue().splitlines()]


def lines(path: Path) -> Iterator[Dict[str, Any]]:
    """What the lines of a dataset.jsonl hold, one by one: `conversation`, and of an image `image` and `sha256`."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def conversations(path: Path) -> Iterator[List[Dict[str, str]]]:
    """The conversations of a dataset.jsonl, one by one."""
    return (line["conversation"] for line in lines(path))
