"""What a run of a recipe needs, from its settings and the measurements (recipe/core/measurements.py)."""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

from lines import ROOT

from recipe.core.hardware import BF16_CAPABILITY, Card
from recipe.core.recipe_files import toml


def cost() -> Any:
    """recipe/core/measurements.py, which imports tomli."""
    sys.modules.setdefault("tomli", toml())
    return importlib.import_module("recipe.core.measurements")


class Need:
    """What a run of the recipe needs. Sizes in GB (10^9 bytes), GPU memory in MiB.

    `values` are the recipe's settings, {} if they were not read. `stage` is the command that follows, "" for the doctor
    alone. A value of a wrong type counts as not given: recipe/core/settings.py refuses it.
    """

    def __init__(self, name: str, values: Dict[str, Any], stage: str, output: str) -> None:
        def table(name: str) -> Dict[str, Any]:
            return values[name] if isinstance(values.get(name), dict) else {}

        def get(name: str, key: str, default: Any) -> Any:
            found = table(name).get(key, default)
            return found if isinstance(found, type(default)) else default

        self.name, self.stage, self.read = name, stage, bool(values)
        # Such models are made on the spot, and need neither a GPU nor much disk.
        self.small = get("model", "source", "") in ("smollm2", "tiny") or (not values and name in ("demo", "tiny"))
        self.dtype = get("train", "dtype", "fp16")
        self.speed = get("train", "speed", "stock")
        self.checkpointing = table("train").get("checkpointing")
        self.compiles = True  # whether the fast step can compile its kernels here
        self.gpu = self.dtype != "fp32" and not self.small
        gpus = values.get("gpus", 1)
        self.gpus = gpus if isinstance(gpus, int) and gpus > 0 else 1
        base = str(values.get("base", "_qlora_"))
        method = get("train", "method", next((one for one in ("qlora", "full") if f"_{one}_" in base), ""))
        self.four_bit = method == "qlora"
        # As in recipe/xtuner/step_choice.py.
        zero3 = "zero3" in get("train", "deepspeed", "")
        self.has_fast = base.startswith("internlm2_") and method != "full" and not zero3
        self.alone = self.gpus == 1 and values.get("nodes", 1) == 1
        # XTuner's presets have batch size 1 and length 2048. Only the 7B model was measured.
        self.tokens = get("train", "batch_size", 1) * get("train", "max_length", 2048)
        identity = get("model", "id", "Shanghai_AI_Laboratory/internlm2-chat-7b")
        given = get("model", "path", "")
        self.measured = self.read and not self.small and "7b" in f"{values.get('base')} {identity}".lower()
        self.shard = _gigabytes(get("merge", "max_shard_size", "2GB"))
        self.folder = ROOT / output / name
        source = get("model", "source", "modelscope")
        if source == "auto":  # as in recipe/base_model/record.py
            there = get("model", "huggingface", {}).get("id") or identity
            source, identity = _chosen_hub([("modelscope", identity), ("huggingface", str(there))])
        self.model = ROOT / given if given else ROOT / "models" / identity
        self.fetched = not given and not self.small
        self.partly = _begun(source, identity)

    def way(self, card: Card) -> str:
        """How this card trains, as in recipe/xtuner/step_choice.py: stock, fast, kept or small."""
        kind = self.speed if self.speed in ("fast", "small") else "stock"
        if self.speed == "auto" and self.has_fast and self.alone:
            bf16 = self.dtype == "bf16" or (self.dtype == "auto" and (card.capability or (0, 0)) >= BF16_CAPABILITY)
            kind = ("small" if card.total < cost().SMALL else "fast") if bf16 else "stock"
        kept = self.compiles and cost().fits_without_checkpointing(self.tokens, card.name, card.total)
        if isinstance(self.checkpointing, bool):
            kept = not self.checkpointing
        return "kept" if kind == "fast" and kept else kind

    def is_trained(self) -> bool:
        """Whether training has finished: then a GPU may not be needed again."""
        try:
            return "train" in json.loads((self.folder / "run.json").read_text(encoding="utf-8"))["stages"]
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _begun(source: str, identity: str) -> Path:
    """Where a download from a hub is gathered."""
    return ROOT / "models" / ".download" / source / identity


def _chosen_hub(hubs: List[Tuple[str, str]]) -> Tuple[str, str]:
    """The hub from which the model or a part of it is here, else the first."""
    here = [one for one in hubs if (ROOT / "models" / one[1]).exists()] + [one for one in hubs if _begun(*one).exists()]
    return [*here, *hubs][0]


def _gigabytes(text: str) -> float:
    found = re.match(r"(\d+)(KB|MB|GB)$", text)
    return int(found[1]) * {"KB": 1e-6, "MB": 1e-3, "GB": 1.0}[found[2]] if found else 2.0
