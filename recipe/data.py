"""Workbook to dataset.jsonl: one conversation a line, in XTuner's form.

A sheet is read if its first row names the columns `q` and `a`; hidden sheets are not. A third column
`conversation` joins rows of the same id into one conversation of several turns. The recipe's system prompt
stands in the first turn only, as XTuner's chat template wants it.
"""

import json
import zipfile
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pandas

from .errors import InputWrong
from .stages import Run, digest

QUESTION, ANSWER, CONVERSATION = "q", "a", "conversation"
SHOWN = 20  # faults listed before the rest is only counted

Row = Tuple[str, str, str]  # conversation id ("" for none), question, answer


def files(run: Run) -> List[Path]:
    """The recipe's workbooks. Raises InputWrong for one that is not there or not a workbook."""
    data = run.settings.data
    found: List[Path] = []
    for name in run.settings.data.files:
        path = Path(name)
        if not path.is_absolute():
            path = run.root / path
        if not path.is_file():
            beside = sorted(p.name for p in path.parent.glob("*.xlsx")) if path.parent.is_dir() else []
            there = f" {run.shown(path.parent)} holds: {', '.join(beside)}." if beside else ""
            fetch = f" It is published: curl -fL -o {name} {data.url}\nOr" if data.url else " Put it there, or"
            raise InputWrong(
                f"There is no workbook {name} (data.files of recipe {run.name}).{there}{fetch} "
                f"name yours: data.files='[\"data/mine.xlsx\"]'."
            )
        if path.suffix.lower() != ".xlsx":
            raise InputWrong(f"{name} is not an Excel workbook (.xlsx). Save it as .xlsx in Excel, WPS or LibreOffice.")
        if data.sha256 and not found and digest(path) != data.sha256:
            raise InputWrong(
                f"{name} is not the workbook that recipe {run.name} was made for: its sha256 is not "
                f"{data.sha256[:12]}…. Fetch it again, or take yours as it is: data.sha256=''."
            )
        found.append(path)
    return found


def read(path: Path, name: str, faults: List[str]) -> Tuple[List[Row], List[str]]:
    """Rows of every visible sheet with the columns q and a, in order; and the sheets' names.

    Every cell comes as text, exactly as written; blanks are added to `faults` as "file, sheet, row, column".
    Raises InputWrong if no sheet has the columns or the file is no workbook.
    """
    try:
        book = pandas.ExcelFile(str(path), engine="openpyxl")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputWrong(f"{name} cannot be opened as an Excel workbook ({error}). Save it again as .xlsx.")
    rows: List[Row] = []
    used: List[str] = []
    seen: List[str] = []
    for sheet in book.book.worksheets:
        if sheet.sheet_state != "visible":
            continue
        table = book.parse(sheet.title, dtype=str, na_filter=False)
        columns = [str(column) for column in table.columns]
        if QUESTION not in columns or ANSWER not in columns:
            seen.append(f"sheet {sheet.title}: {', '.join(columns) or 'empty'}")
            continue
        used.append(sheet.title)
        ids = table[CONVERSATION] if CONVERSATION in columns else [""] * len(table)
        for number, (group, question, answer) in enumerate(zip(ids, table[QUESTION], table[ANSWER]), start=2):
            if not (question.strip() or answer.strip()):
                faults.append(f"{name}, sheet {sheet.title}, row {number}: the row is blank")
                continue
            blank = [column for column, cell in ((QUESTION, question), (ANSWER, answer)) if not cell.strip()]
            if blank:
                faults.append(f"{name}, sheet {sheet.title}, row {number}, column {blank[0]}: blank")
                continue
            # A conversation id counts within its sheet.
            rows.append((f"{sheet.title}\0{group}" if group.strip() else "", question, answer))
    if not used:
        raise InputWrong(
            f"{name} has no sheet whose first row names the columns {QUESTION} and {ANSWER}. Found: {'; '.join(seen)}. "
            f"Rename the header cells of the questions to {QUESTION} and of the answers to {ANSWER}."
        )
    return rows, used


def conversations(rows: List[Row], system: str) -> Iterator[List[Dict[str, str]]]:
    """XTuner conversations: lists of turns {system?, input, output}; rows of one id are one, where it began."""
    grouped: Dict[Any, List[Row]] = {}
    for number, row in enumerate(rows):
        grouped.setdefault(row[0] or number, []).append(row)
    for turns in grouped.values():
        conversation: List[Dict[str, str]] = []
        for _, question, answer in turns:
            turn = {"input": question, "output": answer}
            conversation.append(turn if conversation or not system else {"system": system, **turn})
        yield conversation


def reads(run: Run) -> Dict[str, Any]:
    return {"files": list(map(str, run.settings.data.files)), "settings": run.settings.data.model_dump(),
            "code": Path(__file__), **{f"file{i}": path for i, path in enumerate(files(run))}}  # fmt: skip


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write dataset.jsonl. Figures: rows, conversations, longest in turns, exact duplicates, blanks dropped.

    Raises InputWrong with every blank cell's place (the first 20, then a count); nothing is written then.
    """
    rows: List[Row] = []
    faults: List[str] = []
    sheets = []
    for index, (path, name) in enumerate(zip(files(run), run.settings.data.files)):
        new, used = read(path, name, faults)
        rows += [(f"{index}\0{group}" if group else "", question, answer) for group, question, answer in new]
        sheets += [f"{name}: {sheet}" for sheet in used]
    if faults and not run.settings.data.skip_blank:
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise InputWrong(
            "\n".join(faults[:SHOWN] + more)
            + "\nFill the cells, delete the rows, or drop them with data.skip_blank=true."
        )
    if not rows:
        raise InputWrong(
            f"{', '.join(run.settings.data.files)}: there are no rows below the header. Nothing to train on."
        )
    made = list(conversations(rows, run.settings.data.system))
    with (out / "dataset.jsonl").open("w", encoding="utf-8") as stream:
        for conversation in made:
            stream.write(json.dumps({"conversation": conversation}, ensure_ascii=False) + "\n")
    return {
        "rows": len(rows),
        "conversations": len(made),
        "longest": max(len(turns) for turns in made),
        "duplicates": len(rows) - len(set(rows)),
        "blank_dropped": len(faults),
        "sheets": sheets,
    }
