"""Workbook to dataset.jsonl: one conversation a line, in XTuner's form.

A sheet is read if its first row names the columns `q` and `a`; hidden sheets are not. A third column
`conversation` joins rows of the same id into one conversation of several turns. The recipe's system prompt
stands in the first turn only, as XTuner's chat template wants it.
"""

import datetime
import json
import unicodedata
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import openpyxl

from .errors import InputWrong
from .stages import Run, digest

QUESTION, ANSWER, CONVERSATION = "q", "a", "conversation"
ERRORS = ("#N/A", "#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NUM!", "#NULL!")
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
            there = f" {run.shown(path.parent)} holds: {', '.join(beside[:5])}." if beside else ""
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

    Every cell comes as text; blank, error and formula cells are added to `faults` as "file, sheet, row, column".
    Raises InputWrong if no sheet has the columns, a column is there twice, or the file is no workbook.
    """
    try:
        # Twice: formulas are wanted both as what they gave and as what they are. Foreign files make openpyxl
        # raise anything; whatever it is, the file cannot be read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = openpyxl.load_workbook(str(path), data_only=True)
            formulas = openpyxl.load_workbook(str(path))
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if path.open("rb").read(4) == b"\xd0\xcf\x11\xe0":
            what = "it is an old .xls file or protected by a password"
        raise InputWrong(f"{name} cannot be opened as an Excel workbook ({what}). Save it again as .xlsx.")
    rows: List[Row] = []
    used: List[str] = []
    seen: List[str] = []
    for sheet in values.worksheets:
        if sheet.sheet_state != "visible":
            continue
        lines = sheet.iter_rows(values_only=True)
        columns = _columns(next(lines, ()), f"{name}, sheet {sheet.title}")
        if QUESTION not in columns or ANSWER not in columns:
            seen.append(f"sheet {sheet.title}: {', '.join(columns) or 'empty'}")
            continue
        used.append(sheet.title)
        for number, line in enumerate(lines, start=2):
            # Rows that were formatted and never used are no rows; those with formulas without values are.
            if not any(cell is not None for cell in line) and not any(c.value for c in formulas[sheet.title][number]):
                continue
            place = f"{name}, sheet {sheet.title}, row {number}"
            texts = {}
            for column in (CONVERSATION, QUESTION, ANSWER):
                if column in columns:
                    cell = formulas[sheet.title].cell(number, columns[column] + 1)
                    texts[column] = _text(line[columns[column]], cell, f"{place}, column {column}", faults)
            if texts[QUESTION] and texts[ANSWER]:
                group = texts.get(CONVERSATION)
                # A conversation id counts within its sheet.
                rows.append((f"{sheet.title}\0{group}" if group else "", texts[QUESTION], texts[ANSWER]))
    if not used:
        raise InputWrong(
            f"{name} has no sheet whose first row names the columns {QUESTION} and {ANSWER}. Found: {'; '.join(seen)}. "
            f"Rename the header cells of the questions to {QUESTION} and of the answers to {ANSWER}."
        )
    return rows, used


def _columns(header: Sequence[Any], place: str) -> Dict[str, int]:
    """Column name → index. Case and spaces around a name do not count for the three names that are used."""
    found: Dict[str, int] = {}
    for index, cell in enumerate(header):
        name = "" if cell is None else str(cell)
        folded = unicodedata.normalize("NFKC", name).strip().lower()
        name = folded if folded in (QUESTION, ANSWER, CONVERSATION) else name
        if name in found and name in (QUESTION, ANSWER, CONVERSATION):
            raise InputWrong(f"{place}: the column {name} is there twice. Rename or delete one.")
        if name:
            found.setdefault(name, index)
    return found


def _text(value: Any, cell: Any, place: str, faults: List[str]) -> Optional[str]:
    """A cell as text: numbers and truth values as Excel shows them, dates ISO; None, and a fault, if there is none.

    A blank conversation id is no fault: the row stands alone.
    """
    optional = place.endswith(f"column {CONVERSATION}")
    if isinstance(value, str):
        if cell.data_type == "e" or value in ERRORS:
            faults.append(f"{place}: the error {value}")
            return None
        text = value.replace("\r\n", "\n")
    elif isinstance(value, bool):
        text = str(value).upper()
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    elif isinstance(value, datetime.datetime) and value.time() == datetime.time():
        text = value.date().isoformat()
    else:
        text = "" if value is None else str(value)
    if value is None and cell.data_type == "f":
        faults.append(f"{place}: a formula without a stored value; open the file in Excel and save it")
        return None
    # Format characters (zero-width space, joiners, byte order mark) and control characters are not text.
    if all(unicodedata.category(c)[0] in "CZ" for c in text):
        if not optional:
            faults.append(f"{place}: blank")
        return None
    return text.strip() if optional else text


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
