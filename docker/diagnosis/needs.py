"""What a run of a recipe takes: its file, and what was measured (recipe/measured.toml through recipe/cost.py)."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

from lines import CACHE, ROOT

from recipe.hardware import BF16_CAPABILITY


class RecipeWrong(Exception):
    """The recipe's file cannot be found or read."""


def toml():
    """A module that reads TOML: Python 3.11's, one that pip carries, or our environment's; None if there is none."""
    for name in ("tomllib", "pip._vendor.tomli", "tomli"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    for place in map(str, CACHE.glob("env-*/lib/python3.*/site-packages")):
        sys.path.append(place)
        try:
            return importlib.import_module("tomli")
        except ImportError:
            continue
        finally:
            sys.path.remove(place)  # nothing else is taken from there
    return None


def cost():
    """recipe/cost.py, which reads TOML by the name tomli."""
    sys.modules.setdefault("tomli", toml())
    return importlib.import_module("recipe.cost")


def recipe(stage, given, words):
    """(name, its values with the overrides put in; {} without a TOML reader), by recipe/settings.py's rules."""
    overrides = [word for word in words if re.match(r"[\w.]*=", word)]
    names = [word for word in words if word not in overrides]
    name = given or (names[0] if names else {"demo": "demo", "reproduce": "tutorial"}.get(stage, "coach"))
    places = [Path(name)] if name.endswith(".toml") else [Path("recipe", f"{name}.toml"), Path(f"{name}.toml")]
    path = next((ROOT / place for place in places if os.path.isfile(ROOT / place)), None)
    if path is None:
        shipped = "coach, demo and tutorial"
        raise RecipeWrong(f"There is no recipe {name!r}. Shipped are {shipped}; or give the path of a .toml file.")
    reader = toml()
    if reader is None:
        return path.stem, {}
    try:
        values = reader.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise RecipeWrong(f"{path} is not valid TOML: {error}.")
    for override in overrides:
        _put(values, override, reader)
    return path.stem, values


def _put(values, override, reader):
    key, _, raw = override.partition("=")
    try:
        value = reader.loads(f"value = {raw}")["value"]
    except (ValueError, KeyError):
        value = raw  # bare words are strings
    *tables, last = key.split(".")
    for part in tables:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise RecipeWrong(f"Override {override!r}: {part} is a value, not a table.")
    values[last] = value


class Need:
    """What a run of the recipe takes. Sizes in GB (10^9 bytes), GPU memory in MiB.

    Wrong types are recipe/settings.py's to refuse: here they count as not given.
    """

    def __init__(self, name, values, stage, output):
        def get(table, key, default):
            found = values.get(table, {}).get(key, default) if isinstance(values.get(table, {}), dict) else default
            return found if isinstance(found, type(default)) else default

        self.name, self.stage, self.read = name, stage, bool(values)
        self.tiny = get("model", "source", "") == "tiny" or (not values and name == "demo")
        self.dtype = get("train", "dtype", "fp16")
        self.speed = get("train", "speed", "stock")
        given = values.get("train") if isinstance(values.get("train"), dict) else {}
        self.recomputed = given.get("checkpointing") if isinstance(given.get("checkpointing"), bool) else None
        self.gpu = self.dtype != "fp32" and not self.tiny
        gpus = values.get("gpus", 1)
        self.gpus = gpus if isinstance(gpus, int) and gpus > 0 else 1
        base = str(values.get("base", "_qlora_"))
        method = get("train", "method", next((one for one in ("qlora", "full") if f"_{one}_" in base), ""))
        self.four_bit = method == "qlora"
        # As recipe/config.py's `has_fast`.
        whole = "zero3" not in get("train", "deepspeed", "")
        self.has_fast = base.startswith("internlm2_") and method != "full" and whole
        self.alone = self.gpus == 1 and values.get("nodes", 1) == 1
        # XTuner's presets have batch 1 and length 2048; every measurement is of the 7B model.
        self.tokens = get("train", "batch_size", 1) * get("train", "max_length", 2048)
        identity = get("model", "id", "Shanghai_AI_Laboratory/internlm2-chat-7b")
        given = get("model", "path", "")
        self.measured = self.read and not self.tiny and "7b" in f"{values.get('base')} {identity}".lower()
        self.shard = _gigabytes(get("merge", "max_shard_size", "2GB"))
        self.folder = ROOT / output / name
        self.model = ROOT / given if given else ROOT / "models" / identity
        self.fetched = not given and not self.tiny
        self.partly = ROOT / "models" / ".download" / get("model", "source", "modelscope") / identity

    def way(self, card):
        """As recipe/config.py's `way`, on this card."""
        kind = self.speed if self.speed in ("fast", "small") else "stock"
        if self.speed == "auto" and self.has_fast and self.alone:
            bf16 = self.dtype == "bf16" or (self.dtype == "auto" and (card.capability or (0, 0)) >= BF16_CAPABILITY)
            kind = ("small" if card.total < cost().SMALL else "fast") if bf16 else "stock"
        kept = cost().fits_kept(self.tokens, card.name, card.total) if self.recomputed is None else not self.recomputed
        return "kept" if kind == "fast" and kept else kind

    def trained(self):
        """Whether training of this recipe came to its end here once: then a GPU may not be needed again."""
        try:
            return "train" in json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _gigabytes(text):
    found = re.match(r"(\d+)(KB|MB|GB)$", text)
    return int(found[1]) * {"KB": 1e-6, "MB": 1e-3, "GB": 1.0}[found[2]] if found else 2.0
