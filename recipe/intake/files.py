"""The data files that a recipe names: folders are expanded, unsupported formats refused."""

import os
import shlex
from pathlib import Path
from typing import List, Tuple

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.translation import _, listed, sentences
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
                _(
                    "{setting} contains an empty file name. Name your file: {setting}='[\"data/mine.xlsx\"]'.",
                    setting=f"data.{setting}",
                )
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
            raise InputWrong(
                _(
                    "{file} is Excel's lock file for an open workbook. Name {workbook}.",
                    file=name,
                    workbook=path.name[2:],
                )
            )
        if path.suffix.lower() in UNSUPPORTED_WORKBOOKS:
            raise InputWrong(
                _(
                    "{file} is a format that is not supported ({suffix}). Save it as .xlsx in Excel, WPS or "
                    "LibreOffice.",
                    file=name,
                    suffix=path.suffix.lower(),
                )
            )
        if path.suffix.lower() not in suffixes:
            remedy = _("Save it as .xlsx or UTF-8 .csv.")
            if path.suffix.lower() in DOCUMENTS:
                remedy = _("It is a document: copy its table into a workbook.")
            what = _("{file} has an unknown type ({suffixes}).", file=name, suffixes=listed(suffixes))
            raise InputWrong(sentences(what, remedy))
    return found


def _expand(folder: Path, name: str, suffixes: Tuple[str, ...]) -> List[Tuple[Path, str]]:
    paths = folder.rglob("*") if suffixes != SUFFIXES else folder.iterdir()  # texts come in nested folders
    inside = [
        (p, readable(str(Path(name) / p.relative_to(folder)))) for p in sorted(paths) if _is_data_file(p, suffixes)
    ]
    if not inside:
        raise InputWrong(
            _(
                "The folder {folder} contains no file of a known type ({suffixes}).",
                folder=name,
                suffixes=listed(suffixes),
            )
        )
    return inside


def _missing(run: Run, setting: str, path: Path, name: str) -> str:
    data = run.settings.data
    if len(name) > SHOWN:
        return _(
            "{setting} takes the names of files, and this is none: {name!r}… ({n} characters). Put the text into a "
            "file.",
            setting=f"data.{setting}", name=name[:40], n=len(name),
        )  # fmt: skip
    beside = sorted(readable(p.name) for p in path.parent.glob("*") if _is_data_file(p)) if path.parent.is_dir() else []
    what = _(
        "There is no workbook {file} ({setting} of recipe {recipe}).",
        file=name, setting=f"data.{setting}", recipe=run.name,
    )  # fmt: skip
    listing = (
        _("{folder} holds: {files}.", folder=run.relative(path.parent), files=listed(beside[:5])) if beside else ""
    )
    own = _("Put it there, or name yours: {setting}=data/mine.xlsx", setting=f"data.{setting}")
    if data.sha256 and setting == "files":
        command = command_line("plan", "data/mine.xlsx")
        own = _("Put it there, or name yours in place of the recipe: {command}", command=command)
    return sentences(what, listing, own)


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
        what = _(
            "{file} is not the workbook that recipe {recipe} was made for: its sha256 is not {sha256}….",
            file=name, recipe=run.name, sha256=expected[:12],
        )  # fmt: skip
        raise InputWrong(sentences(what, _other_content(run, name)))


def _other_content(run: Run, name: str) -> str:
    command = command_line("plan", shlex.quote(name))
    if published.is_published(run.settings.data, name):
        return _(
            "Rename it and type the same command again, which fetches the published one, or name yours in place of the "
            "recipe: {command}",
            command=command,
        )
    return _("Put that there, or name yours in place of the recipe: {command}", command=command)


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
