"""Recipe files and overrides (key=value) as they are written: where a file lies, its text, its values.

Python's standard library alone, so that the doctor and `--help` read them on a bare machine as the stages do.
"""

import importlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from recipe.core import data_source
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.suggestions import did_you_mean
from recipe.core.translation import _, listed, mark, sentences, stored

RECIPES = Path(__file__).resolve().parent.parent
ROOT = RECIPES.parent
MAX_FAULTS = 20  # listed one by one; the rest is counted


def toml() -> Any:
    """A module that reads TOML: Python 3.11's, the environment's, or the one that pip carries; None without any."""
    for name in ("tomllib", "tomli", "pip._vendor.tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    cache = Path(os.environ.get("RECIPE_CACHE") or ROOT / ".cache")
    for place in map(str, cache.glob("env-*/lib/python3.*/site-packages")):
        sys.path.append(place)
        try:
            return importlib.import_module("tomli")
        except ImportError:
            continue
        finally:
            sys.path.remove(place)  # nothing else is taken from there
    return None


def recipes() -> List[str]:
    """Names of the recipe files that ship."""
    return sorted(p.stem for p in RECIPES.glob("*.toml") if "\nbase = " in p.read_text(encoding="utf-8"))


# What a TOML reader says, and Python of a text that is not UTF-8.
READER_MESSAGES = (
    mark("{problem} (at line {line}, column {column})"),
    mark("{problem} (at end of document)"),
    mark("Invalid value"),
    mark("Invalid statement"),
    mark("Invalid initial character for a key part"),
    mark("Illegal character {character}"),
    mark("Found invalid character {character}"),
    mark("Invalid hex value"),
    mark("Invalid date or datetime"),
    mark("Escaped character is not a Unicode scalar value"),
    mark("Expected '=' after a key in a key/value pair"),
    mark("Expected {text!r}"),
    mark("Expected newline or end of document after a statement"),
    mark("Expected ']' at the end of a table declaration"),
    mark("Expected ']]' at the end of an array declaration"),
    mark("Unclosed array"),
    mark("Unclosed inline table"),
    mark("Unterminated string"),
    mark("Unescaped '\\' in a string"),
    mark("Cannot overwrite a value"),
    mark("Cannot declare {keys} twice"),
    mark("Cannot mutate immutable namespace {keys}"),
    mark("Cannot redefine namespace {keys}"),
    mark("Duplicate inline table key {key}"),
    mark("'utf-8' codec can't decode byte {byte} in position {position}: {problem}"),
    mark("invalid start byte"),
    mark("invalid continuation byte"),
    mark("unexpected end of data"),
)


class Recipe(NamedTuple):
    """What a command line names: a recipe file and the name of its run; `data` takes the place of its own data."""

    path: Path
    name: str
    data: str = ""


def find_recipe(
    word: str, folder: Optional[Path] = None, default: str = "coach", output: Optional[Path] = None
) -> Recipe:
    """The recipe that `word` names: a path to a .toml file, a name that ships or lies in `folder` (default: the current
    one), or a data file or folder, which stands for the recipe `default`. Raises InputWrong.

    `output`: where runs lie, which remember their data files.
    """
    here = folder or Path.cwd()
    if word.endswith(".toml"):
        if os.path.isfile(here / word):  # False also for a name or a folder that cannot be looked at
            path = Path(word) if folder is None else here / word
            return Recipe(path, path.stem)
        raise InputWrong(
            _("There is no recipe file {file}. Shipped recipes: {recipes}.", file=word, recipes=listed(recipes()))
        )
    for place in (RECIPES, here):
        path = place / f"{word}.toml"
        if os.path.isfile(path):
            return Recipe(path, word)
    if data_source.is_path(word):
        return _of_data(word, here, default, output or here / "output")
    known = data_source.read((output or here / "output") / word) if os.path.basename(word) == word else {}
    if known:  # the name of a data file's run
        return Recipe(RECIPES / f"{default}.toml", word, known["data"])
    is_folder = word and os.path.isdir(here / word)
    shipped = _(
        "Shipped: {recipes}; or give the path of your own recipe file (ending in .toml) or data file (data/mine.xlsx).",
        recipes=listed(recipes()),
    )
    raise InputWrong(
        sentences(
            _("There is no recipe {word!r}.", word=word),
            did_you_mean(word, recipes()),
            shipped,
            _("The folder of data is named {folder}/.", folder=word) if is_folder else "",
        )
    )


def _of_data(word: str, root: Path, default: str, output: Path) -> Recipe:
    """The recipe `default` with the data file or folder `word`. Raises InputWrong."""
    if default == "tutorial":
        raise InputWrong(
            _(
                "This command repeats the tutorial on its own workbook. Train on yours with: {command}",
                command=command_line("merge", shlex.quote(word)),
            )
        )
    data = data_source.relative(word, root)
    name = data_source.run_name(data, root)
    if not os.path.exists(root / data) and data_source.read(output / name).get("data") != data:
        raise data_source.missing(word, root)
    if name in (*recipes(), "reproduce"):
        raise InputWrong(
            _(
                "{file} would be the run {name!r}, which is the recipe {name}'s. Rename it, or use it in that recipe: "
                "{words}",
                file=word,
                name=name,
                words=f"{name} {shlex.quote(f'data.files={word}')} data.sha256=",
            )
        )
    if os.path.isfile(root / f"{name}.toml"):
        raise InputWrong(
            _(
                "{file} would be the run {name!r}, which is the recipe file {name}.toml's. Name that file, or rename "
                "one of the two.",
                file=word,
                name=name,
            )
        )
    return Recipe(RECIPES / f"{default}.toml", name, data)


def find_run_folder(word: str, root: Path, output: Path) -> Path:
    """Where the run lies that `word` names: its folder, a recipe's name or file, or a data file, which may be gone.
    Nothing need be there. Raises InputWrong if the folder belongs to other data.
    """
    for folder in (Path(word), output / word):
        if any(os.path.isfile(folder / name) for name in ("run.json", ".now.json")):
            return folder
    if word.endswith(".toml"):
        return output / Path(word).stem
    if not data_source.is_path(word):
        return output / word
    data = data_source.relative(word, root)
    folder = output / data_source.run_name(data, root)
    data_source.check_owner(folder, root, data)
    return folder


def read_recipe(path: Path, reader: Any) -> Tuple[str, Dict[str, Any]]:
    """(text, values) of a recipe file. Raises InputWrong."""
    if path.stem.startswith("."):  # it names the run's folder
        raise InputWrong(
            _("{file}: a recipe file is called NAME.toml, and its name does not begin with a dot.", file=path)
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' Notepad puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise InputWrong(
            _(
                "Cannot read the recipe file {file}: {error}. It must be a UTF-8 text file.",
                file=path,
                error=stored(str(error)),
            )
        )
    try:
        values = reader.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise InputWrong(
            _(
                "{file} is not valid TOML: {error}. Strings go in quotes, lists in brackets.",
                file=path,
                error=stored(str(error)),
            )
        )
    refuse_home(values, path)
    return text, values


def parse_override(override: str, reader: Any) -> Tuple[Tuple[str, ...], Any]:
    """(keys, value) of key=value, whose value is TOML or a bare word. Raises InputWrong."""
    key, _equals, raw = override.partition("=")
    if not re.fullmatch(r"[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*", key):
        raise InputWrong(
            _("Override {override!r}: write it as key=value, such as train.max_epochs=5.", override=override)
        )
    try:
        parsed = reader.loads(f"value = {raw}")
    except (ValueError, RecursionError) as error:
        if raw.lstrip()[:1] in tuple("\"'[{"):
            raise InputWrong(
                _(
                    "Override {override!r}: the value is not valid TOML ({error}). Quote it for the shell as in "
                    "{example}.",
                    override=override,
                    error=stored(str(error)),
                    example="data.files='[\"data/mine.xlsx\"]'",
                )
            )
        parsed = {"value": raw}  # bare words are strings: model.path=/some/folder
    if set(parsed) != {"value"} or any(0xD800 <= ord(character) <= 0xDFFF for character in override):
        raise InputWrong(_("Override {override!r}: give one value, in UTF-8.", override=override))
    refuse_home({key: parsed["value"]}, override=override)
    return tuple(key.split(".")), parsed["value"]


def as_typed(override: str, value: Any) -> Any:
    """The value of a setting that is a text: not the number, date or truth value that TOML takes it for."""
    return value if isinstance(value, (str, list, dict)) else override.partition("=")[2].strip()


def refuse_home(values: Dict[str, Any], file: Optional[Path] = None, override: str = "") -> None:
    """Raises InputWrong for a path that begins with ~, which only a shell expands, and not after a = sign.

    The values are those of a file, or of an override.
    """
    for key, value in values.items():
        texts = value if isinstance(value, list) else [value]
        for text in texts:
            if isinstance(text, dict):
                refuse_home({f"{key}.{name}": one for name, one in text.items()}, file, override)
            elif isinstance(text, str) and text.startswith("~/"):
                where = _("Override {override!r}", override=override) if override else file
                raise InputWrong(
                    _(
                        "{where}: {key}: ~ is not expanded here. Write {path}",
                        where=where,
                        key=key,
                        path=os.path.expanduser(text),
                    )
                )


def read_values(
    recipe: Recipe,
    overrides: Sequence[str],
    reader: Any,
    output: Path,
    root: Optional[Path] = None,
    is_text: Callable[[str], bool] = lambda key: False,
) -> Tuple[str, Dict[str, Any], Dict[Tuple[str, ...], str]]:
    """(text of the recipe's file, its values with `overrides`, {keys: override as typed}). Raises InputWrong, also if
    the run's folder below `output` belongs to other data. `is_text`: whether a setting is a text.
    """
    folder = output / recipe.name
    text, values = read_recipe(recipe.path, reader)
    if recipe.data:
        data_source.use(values, recipe.data, data_source.read(folder).get("system"))
    given: Dict[Tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = parse_override(override, reader)
        if recipe.data and keys == ("data", "files"):
            raise InputWrong(_("{file} and {override}: name the data once.", file=recipe.data, override=override))
        put(values, keys, as_typed(override, value) if is_text(".".join(keys)) else value, override)
        given[keys] = override
    choose_hub(values, given)
    own = values.get("data")
    files = own.get("files") if isinstance(own, dict) else None
    data_source.check_owner(folder, root or Path.cwd(), recipe.data, files)
    data_source.check_system(values)
    return text, values, given


def put(values: Dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    """Set a dotted key in nested tables. Raises InputWrong where a table's name has a value."""
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputWrong(_("Override {override!r}: {key} is a value, not a table.", override=override, key=key))
    table[keys[-1]] = value


def line_of(text: str, keys: Sequence[str], reader: Any) -> int:
    """Line (from 1) at which the TOML `text` sets the dotted key `keys`; 0 if it does not.

    The first prefix of the text that parses and holds the key ends where the key's value ends; the value
    began right after the longest shorter prefix that parses.
    """
    lines = text.splitlines(keepends=True)
    parsed_up_to = 0
    for count in range(1, len(lines) + 1):
        try:
            table: Any = reader.loads("".join(lines[:count]))
        except ValueError:
            continue
        for key in keys:
            table = table.get(key) if isinstance(table, dict) else None
        if table is not None:
            return parsed_up_to + 1
        parsed_up_to = count
    return 0


def fault(path: Path, line: int, override: str, key: str, reason: str) -> str:
    """A line on a wrong setting, given by an override, or by the recipe file at a line (0: unknown)."""
    if override:
        place = _("override {override}", override=override)
    else:
        place = _("{file}, line {line}", file=path, line=line) if line else str(path)
    said = _("{place}: {reason}", place=key, reason=reason) if key else reason
    return _("{place}: {reason}.", place=place, reason=said)


def first_faults(lines: Sequence[str]) -> List[str]:
    """The first of many faults, and how many there are more."""
    more = len(lines) - MAX_FAULTS
    return [*lines[:MAX_FAULTS], *[_("… and {n} more.", n=more)] * (more > 0)]


def choose_hub(values: Dict[str, Any], given: Iterable[Tuple[str, ...]]) -> None:
    """Put a recipe's [model.huggingface], its id and revision there, in the place of ModelScope's where the model comes
    from Hugging Face. What an override names stays, and another id has nothing to do with it.
    """
    model = values.get("model")
    there = model.get("huggingface") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(there, dict):
        return  # core/settings.py refuses what is no table
    named = {".".join(keys[1:]) for keys in given if keys[:1] == ("model",)}
    if "id" in named and model["id"] != there.get("id"):
        there = {key: value for key, value in there.items() if f"huggingface.{key}" in named}
    if "revision" in named and "huggingface.revision" not in named:
        there["revision"] = model["revision"]
    model["huggingface"] = there
    if model.get("source") == "huggingface":
        model.update({key: value for key, value in there.items() if value})
