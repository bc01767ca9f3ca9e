"""A data file, or a folder of them, named in place of a recipe: `plan data/mine.xlsx`.

It stands for the command's default recipe with these data. Its run is named after it, and source.json in the run's
folder remembers which data the folder belongs to, and their system prompt. Python's standard library alone.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.translation import _, listed, sentences

RECORD = "source.json"
QUESTIONS = 3  # asked during training, drawn from what is held out
SUFFIX = re.compile(r"\.[A-Za-z]\w{0,8}$")
TABLES = re.compile(r"\.(xlsx|xlsm|csv|tsv|jsonl?|parquet)$", re.IGNORECASE)  # listed where a file is missing
PLACEHOLDER = re.compile(r"\s*(你是|您是|You are)[\s.…。]*", re.IGNORECASE)
EXAMPLES = {
    True: "你是新员工的职场教练，回答简短、具体。",
    False: "You are a coach for new colleagues. Answer briefly.",
}


def is_path(word: str) -> bool:
    """Whether a word names data rather than a recipe: it has a slash, or a file name's ending."""
    return "/" in word or bool(SUFFIX.search(word))


def relative(word: str, root: Path) -> str:
    """A path as it is remembered: relative to the clone, if it lies below it. Links are not followed."""
    path = os.path.normpath(os.path.join(str(root), word))
    below = os.path.relpath(path, str(root))
    return path if below.split(os.sep)[0] == os.pardir else below


def run_name(data: str, root: Path) -> str:
    """The name of the run of `data`: the file's without its ending, or the folder's. Raises InputWrong."""
    path = os.path.join(str(root), data)
    name = os.path.basename(path)
    name = name if os.path.isdir(path) else os.path.splitext(name)[0]
    if name in ("", os.curdir, os.pardir) or os.path.realpath(path) == os.path.realpath(str(root)):
        raise InputWrong(
            _(
                "{data} gives a run no name. Name a data file, or a folder that holds only data files.",
                data=data or ".",
            )
        )
    if name.startswith((".", "~$")) or any(ord(sign) < 32 or 0xD800 <= ord(sign) <= 0xDFFF for sign in data):
        raise InputWrong(
            _(
                "{data!r}: the run's folder is named after the file. Rename it: in UTF-8, without control characters, "
                "and not beginning with a dot or ~$ (Excel's lock file).",
                data=data,
            )
        )
    if os.path.isfile(os.path.join(path, "run.json")):
        raise InputWrong(
            _("{data} is a run's folder, not data. Name the recipe or the data file that it belongs to.", data=data)
        )
    return name


def missing(word: str, root: Path) -> InputWrong:
    """The error for a path where nothing is; it lists what is there."""
    folder = (root / word).parent
    shown = relative(str(folder), root)
    try:
        names = sorted(path.name for path in folder.iterdir() if TABLES.search(path.name) and path.name[0] not in ".~")
    except OSError:
        return InputWrong(_("There is no data file {file}, and no folder {folder}.", file=word, folder=shown))
    place = _("The clone") if shown == os.curdir else shown
    return InputWrong(
        sentences(
            _("There is no data file {file}.", file=word),
            _("{place} holds: {files}.", place=place, files=listed(names[:5])) if names else "",
            _("Put it there, or name yours: data/mine.xlsx"),
        )
    )


def read(folder: Path) -> Dict[str, str]:
    """What a run's folder remembers: data; if known, system and the recipe that trained. {} without data."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    texts = found if isinstance(found, dict) else {}
    return {key: value for key, value in texts.items() if isinstance(value, str)} if texts.get("data") else {}


def remember(folder: Path, record: Dict[str, str]) -> None:
    """Keep `record` (data; system and recipe if they are known) in the run's folder."""
    before = read(folder)
    if {**before, **record} != before:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RECORD, json.dumps({**before, **record}, ensure_ascii=False, indent=1) + "\n")


def check_owner(folder: Path, root: Path, data: str, files: Any = None) -> None:
    """Raise InputWrong if the run's folder belongs to other data. `data`: as named ("": a recipe, whose files are
    `files`).
    """
    owner, shown = read(folder).get("data", ""), relative(str(folder), root)
    if data:
        if owner and os.path.realpath(str(root / owner)) != os.path.realpath(str(root / data)):
            raise InputWrong(
                _(
                    "{folder} holds the run of {owner}, not of {data}. Rename {data}, name another folder with "
                    "--output, or delete that one.",
                    folder=shown,
                    owner=owner,
                    data=data,
                )
            )
        if not owner and (folder / "run.json").is_file():
            raise InputWrong(
                _(
                    "{folder} holds the run of a recipe, not of {data}. Rename {data}, name another folder with "
                    "--output, or delete that one.",
                    folder=shown,
                    data=data,
                )
            )
    elif owner and files is not None and not _is_only(files, owner, root):
        raise InputWrong(
            _(
                "{folder} holds the run of {owner}. Rename the recipe file, name another folder with --output, or "
                "delete that one.",
                folder=shown,
                owner=owner,
            )
        )


def check_trainer(folder: Path, root: Path, recipe: str) -> None:
    """Raise InputWrong if the run's folder holds a model that another recipe than `recipe` trained on the same data."""
    before = read(folder).get("recipe", recipe)
    if before != recipe:
        raise InputWrong(
            _(
                "{folder} holds what {before} trained on these data, and this command would put what {recipe} trains "
                "in its place. To keep both: --output another_folder; else delete that folder.",
                folder=relative(str(folder), root),
                before=before,
                recipe=recipe,
            )
        )


def _is_only(files: Any, owner: str, root: Path) -> bool:
    """Whether data.files, as a recipe has it, names `owner` and nothing else."""
    [one] = files if isinstance(files, list) and len(files) == 1 else [files]
    return isinstance(one, str) and os.path.realpath(str(root / one)) == os.path.realpath(str(root / owner))


def use(values: Dict[str, Any], data: str, system: Optional[str]) -> None:
    """Put `data` in the place of a recipe's own data, prompt and questions."""
    own = values.setdefault("data", {})
    for key in ("url", "sha256", "system"):
        own.pop(key, None)
    own["files"] = [data]
    if system:
        own["system"] = system
    values.setdefault("train", {})["evaluation_inputs"] = QUESTIONS


def check_system(values: Dict[str, Any]) -> None:
    """Raise InputWrong for a system prompt that is still the documents' placeholder."""
    own = values.get("data")
    text = own.get("system") if isinstance(own, dict) else None
    if isinstance(text, str) and PLACEHOLDER.fullmatch(text):
        raise InputWrong(
            _(
                "data.system: {text!r} is only a placeholder. Write who the model is to be, such as "
                'system="{example}", or leave it out.',
                text=text,
                example=EXAMPLES["是" in text],
            )
        )


def ask_system(folder: Path, data: str, given: List[str]) -> None:
    """Ask for the system prompt of `data` at a terminal, unless it is known or `given` among the settings typed.

    The run's folder remembers the answer. Raises KeyboardInterrupt at Ctrl-C and Ctrl-D.
    """
    is_given = any(word.startswith("data.system=") for word in given)
    if is_given or "system" in read(folder) or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print(
        _("Who is the model to be? Its system prompt for {data}, used in training, evaluation and chat.", data=data),
        _("For example: {english} (or: {chinese})", english=EXAMPLES[False], chinese=EXAMPLES[True]),
        _("Enter alone: none."),
        sep="\n",
        file=sys.stderr,
    )
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise KeyboardInterrupt
        try:
            line.encode("utf-8")
            check_system({"data": {"system": line.strip()}})
        except UnicodeEncodeError:
            print(_("This is not UTF-8. Type it again."), file=sys.stderr)
        except InputWrong as error:
            print(error, file=sys.stderr)
        else:
            return remember(folder, {"data": data, "system": line.strip()})
