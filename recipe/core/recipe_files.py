"""Recipe files and overrides (key=value) as they are written: where a file lies, its text, its values.

Python's standard library alone, so that the doctor and `--help` read them on a bare machine as the stages do.
"""

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from recipe.core.errors import InputWrong
from recipe.core.suggestions import did_you_mean

RECIPES = Path(__file__).resolve().parent.parent
ROOT = RECIPES.parent


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


def find_recipe(name: str, folder: Optional[Path] = None) -> Path:
    """The file of recipe `name`: a path to a .toml file, or a name that ships or lies in `folder` (default: the
    current one). Raises InputWrong.
    """
    here = folder or Path.cwd()
    if name.endswith(".toml"):
        if os.path.isfile(here / name):  # False also for a name or a folder that cannot be looked at
            return Path(name) if folder is None else here / name
        raise InputWrong(f"There is no recipe file {name}. Shipped recipes: {', '.join(recipes())}.")
    for place in (RECIPES, here):
        path = place / f"{name}.toml"
        if os.path.isfile(path):
            return path
    raise InputWrong(
        f"There is no recipe {name!r}.{did_you_mean(name, recipes())} Shipped: {', '.join(recipes())}; "
        f"or give the path of your own recipe file (ending in .toml)."
    )


def read_recipe(path: Path, reader: Any) -> Tuple[str, Dict[str, Any]]:
    """(text, values) of a recipe file. Raises InputWrong."""
    if path.stem.startswith("."):  # it names the run's folder
        raise InputWrong(f"{path}: a recipe file is called NAME.toml, and its name does not begin with a dot.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' Notepad puts a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise InputWrong(f"Cannot read the recipe file {path}: {error}. It must be a UTF-8 text file.")
    try:
        return text, reader.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError
        raise InputWrong(f"{path} is not valid TOML: {error}. Strings go in quotes, lists in brackets.")


def parse_override(override: str, reader: Any) -> Tuple[Tuple[str, ...], Any]:
    """(keys, value) of key=value, whose value is TOML or a bare word. Raises InputWrong."""
    key, _, raw = override.partition("=")
    if not re.fullmatch(r"[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*", key):
        raise InputWrong(f"Override {override!r}: write it as key=value, such as train.max_epochs=5.")
    try:
        parsed = reader.loads(f"value = {raw}")
    except (ValueError, RecursionError) as error:
        if raw.lstrip()[:1] in tuple("\"'[{"):
            raise InputWrong(
                f"Override {override!r}: the value is not valid TOML ({error}). Quote it for the shell as in "
                f"data.files='[\"data/mine.xlsx\"]'."
            )
        parsed = {"value": raw}  # bare words are strings: model.path=/some/folder
    if set(parsed) != {"value"} or any(0xD800 <= ord(character) <= 0xDFFF for character in override):
        raise InputWrong(f"Override {override!r}: give one value, in UTF-8.")
    return tuple(key.split(".")), parsed["value"]


def put(values: Dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    """Set a dotted key in nested tables. Raises InputWrong where a table's name has a value."""
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise InputWrong(f"Override {override!r}: {key} is a value, not a table.")
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
