"""The data files that a recipe names: folders are expanded, unsupported formats refused."""

import os
import shlex
from pathlib import Path
from typing import List, Tuple

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.intake import documents, published
from recipe.xtuner import preset_facts

SUFFIXES = (".xlsx", ".xlsm", ".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")
UNSUPPORTED_WORKBOOKS = (".xls", ".xlsb", ".et", ".ods", ".numbers")  # refused, not skipped, also in folders
DOCUMENTS = (".doc", ".docx", ".wps", ".pdf", ".pptx")
SHOWN = 120  # characters of a file's name in a message


def data_files(run: Run, setting: str = "files") -> List[Tuple[Path, str]]:
    """(path, name) of every file of data.files (or data.eval_files), folders expanded.

    Raises InputWrong for missing files and unsupported formats.
    """
    suffixes = supported_suffixes(run)
    found: List[Tuple[Path, str]] = []
    for name in getattr(run.settings.data, setting):
        if not name.strip():
            raise InputWrong(
                f"data.{setting} contains an empty file name. Name your file: data.{setting}='[\"data/mine.xlsx\"]'."
            )
        path = run.root / name
        if os.path.isdir(str(path)):
            inside = _expand(path, name, suffixes)
        else:
            if not os.path.isfile(str(path)):  # False also for a name that no file system takes
                raise InputWrong(_missing(run, setting, path, name))
            if setting == "files" and not found:
                _check_sha256(run, path, name)
            inside = [(path, name)]
        found += [file for file in inside if file not in found]
    for path, name in found:
        if path.name.startswith("~$"):
            raise InputWrong(f"{name} is Excel's lock file for an open workbook. Name {path.name[2:]}.")
        if path.suffix.lower() in UNSUPPORTED_WORKBOOKS:
            raise InputWrong(
                f"{name} is a format that is not supported ({path.suffix.lower()}). Save it as .xlsx in Excel, WPS or "
                f"LibreOffice."
            )
        if path.suffix.lower() not in suffixes:
            remedy = "Save it as .xlsx or UTF-8 .csv"
            if path.suffix.lower() in DOCUMENTS:
                remedy = "It is a document: copy its table into a workbook"
            raise InputWrong(f"{name} has an unknown type ({', '.join(suffixes)}). {remedy}.")
    return found


def _expand(folder: Path, name: str, suffixes: Tuple[str, ...]) -> List[Tuple[Path, str]]:
    paths = folder.rglob("*") if suffixes != SUFFIXES else folder.iterdir()  # texts come in nested folders
    inside = [
        (p, readable(str(Path(name) / p.relative_to(folder)))) for p in sorted(paths) if _is_data_file(p, suffixes)
    ]
    if not inside:
        raise InputWrong(f"The folder {name} contains no file of a known type ({', '.join(suffixes)}).")
    return inside


def _missing(run: Run, setting: str, path: Path, name: str) -> str:
    data = run.settings.data
    if len(name) > SHOWN:
        return (
            f"data.{setting} takes the names of files, and this is none: {name[:40]!r}… ({len(name)} characters). Put "
            f"the text into a file."
        )
    beside = sorted(readable(p.name) for p in path.parent.glob("*") if _is_data_file(p)) if path.parent.is_dir() else []
    listing = f" {run.relative(path.parent)} holds: {', '.join(beside[:5])}." if beside else ""
    own = f"name yours: data.{setting}=data/mine.xlsx"
    if data.sha256 and setting == "files":
        own = f"name yours in place of the recipe: {command_line('plan', 'data/mine.xlsx')}"
    return f"There is no workbook {name} (data.{setting} of recipe {run.name}).{listing} Put it there, or {own}"


def readable(name: str) -> str:
    """A file's name as text: in GB18030, as Chinese Windows and ZIP archives have it, where it is no UTF-8."""
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        return os.fsencode(name).decode("gb18030", "replace")


def _check_sha256(run: Run, path: Path, name: str) -> None:
    expected = run.settings.data.sha256.strip().lower()
    if expected and digest(path) != expected:
        raise InputWrong(
            f"{name} is not the workbook that recipe {run.name} was made for: its sha256 is not {expected[:12]}…. "
            f"{_other_content(run, name)}name yours in place of the recipe: {command_line('plan', shlex.quote(name))}"
        )


def _other_content(run: Run, name: str) -> str:
    if published.is_published(run.settings.data, name):
        return "Rename it and type the same command again, which fetches the published one, or "
    return "Put that there, or "


def supported_suffixes(run: Run) -> Tuple[str, ...]:
    """The suffixes of the files that are read for the recipe's kind of data."""
    kind = preset_facts.kind(run.settings)
    if kind == "agent":
        return (".json", ".jsonl", ".parquet")
    return (*SUFFIXES, *documents.TEXT_SUFFIXES[1:]) if kind == "pretrain" else SUFFIXES


def _is_data_file(path: Path, suffixes: Tuple[str, ...] = SUFFIXES) -> bool:
    supported = path.suffix.lower() in (*suffixes, *UNSUPPORTED_WORKBOOKS)
    return path.is_file() and supported and not _is_hidden(path)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "~$"))


def skipped_files(run: Run) -> List[str]:
    """What the recipe's folders contain and is not read: other kinds of files, folders. Hidden ones are not listed."""
    suffixes = supported_suffixes(run)
    found = []
    for name in [*run.settings.data.files, *run.settings.data.eval_files]:
        path = run.root / name
        if path.is_dir():
            others = [p for p in sorted(path.iterdir()) if not _is_data_file(p, suffixes) and not _is_hidden(p)]
            found += [readable(str(Path(name) / p.name)) for p in others]
    return found
