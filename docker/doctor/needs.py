"""What a run of a recipe takes: its file, and what was measured (recipe/core/measurements.py)."""

import importlib
import json
import re
import sys

from lines import ROOT

from recipe.core.hardware import BF16_CAPABILITY
from recipe.core.recipe_files import toml


def cost():
    """recipe/core/measurements.py, which reads TOML by the name tomli."""
    sys.modules.setdefault("tomli", toml())
    return importlib.import_module("recipe.core.measurements")


class Need:
    """What a run of the recipe takes. Sizes in GB (10^9 bytes), GPU memory in MiB.

    Wrong types are recipe/core/settings.py's to refuse: here they count as not given.
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
        # As recipe/xtuner/config.py's `has_fast`.
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
        """As recipe/xtuner/config.py's `way`, on this card."""
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
