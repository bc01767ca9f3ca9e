"""Which files the recipe names: folders unfolded, and what is refused by its ending."""

from pathlib import Path
from typing import List, Tuple

from recipe.core.errors import InputWrong
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.intake import documents
from recipe.xtuner import preset_facts

KINDS = (".xlsx", ".xlsm", ".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet")

FOREIGN = (".xls", ".xlsb", ".et", ".ods", ".numbers")  # workbooks that are not read: refused, never left out


def files(run: Run, of: str = "files") -> List[Tuple[Path, str]]:
    """The recipe's files (or its eval_files) with their names, folders unfolded. Raises InputWrong for one that cannot
    be meant.
    """
    data = run.settings.data
    kinds = supported_suffixes(run)
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
                f"name yours: data.{of}=data/mine.xlsx{no_sum}"
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


def supported_suffixes(run: Run) -> Tuple[str, ...]:
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


def skipped_files(run: Run) -> List[str]:
    """What lies in the recipe's folders and is not read: other kinds of files, folders. Hidden ones are not counted."""
    found = []
    for name in [*run.settings.data.files, *run.settings.data.eval_files]:
        path = run.root / name
        if path.is_dir():
            others = [
                p
                for p in sorted(path.iterdir())
                if not _is_meant(p, supported_suffixes(run)) and not p.name.startswith((".", "~$"))
            ]
            found += [str(Path(name) / p.name) for p in others]
    return found


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
