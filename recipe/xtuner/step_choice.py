"""Which training step, compute type and recomputation a recipe takes on this machine's card."""

import re
from typing import Any, Tuple

from recipe.core import compiler, distributed, measurements
from recipe.core.errors import InputWrong
from recipe.core.host import gpus, versions
from recipe.core.settings import Settings
from recipe.xtuner import preset_editor, preset_facts


def dtype(settings: Settings) -> str:
    """The compute type: as set, or for "auto" bf16 where every GPU of the run has it (capability 8.0), else fp16.

    Without any GPU "auto" is bf16: then the config is being looked at, not trained with.
    """
    if settings.train.dtype != "auto":
        return settings.train.dtype
    return "fp16" if any(float(card["capability"]) < 8 for card in gpus()[: settings.gpus]) else "bf16"


def training_dtype(settings: Settings) -> str:
    """The type that trains: the recipe's, unless it trains by XTuner's own classes alone. Then XTuner puts what PyTorch
    supports on the card in place of DeepSpeed's "auto": from PyTorch 2.4 on that is bf16 everywhere, by emulation too.
    """
    if hooked(settings.train) or not deepspeed(settings):
        return dtype(settings)
    emulates = tuple(map(int, re.findall(r"\d+", versions()["torch"] or "")[:2])) >= (2, 4)
    return "fp16" if not emulates and any(float(card["capability"]) < 8 for card in gpus()[:1]) else "bf16"


def sequences(settings: Settings) -> Tuple[int, int]:
    """(batch size, length) of an iteration; where the recipe says neither, 1 × 2048 as in XTuner's presets."""
    return settings.train.batch_size or 1, settings.train.max_length or 2048


def has_fast(settings: Settings) -> bool:
    """Whether fast and small know the recipe: InternLM2's presets and adapters alone, and weights that lie whole on
    each card.
    """
    known = settings.base.startswith("internlm2_") and preset_facts.method(settings) != "full"
    return known and "zero3" not in settings.train.deepspeed


def speed(settings: Settings) -> str:
    """stock, fast or small: as set, or for "auto" what the first GPU allows; without any it is fast, as for dtype.

    "auto" takes fast and small in bf16 and on one GPU only: no card without bf16 was tried, and two together but once.
    Whatever the stack, no update is made before recipe/training/fast/check.py has compared the step with XTuner's own.
    """
    known = has_fast(settings)
    if settings.train.speed != "auto":
        if settings.train.speed != "stock" and not known:
            raise InputWrong(
                f"train.speed={settings.train.speed} knows adapters of InternLM2 alone, without ZeRO-3, not base = "
                f"{settings.base!r} by {preset_facts.method(settings)} with "
                f"{settings.train.deepspeed or 'no DeepSpeed'}: train.speed=stock trains everything that XTuner does."
            )
        return settings.train.speed
    if not known or distributed.count(settings) > 1 or dtype(settings) != "bf16":
        return "stock"
    found = gpus()
    return "small" if found and found[0]["memory_mib"] < measurements.SMALL else "fast"


def deepspeed(settings: Settings) -> str:
    """train.deepspeed, but none for "small": its buffers are what there is no memory for."""
    return "" if speed(settings) == "small" else settings.train.deepspeed


def deepspeed_text(settings: Settings) -> str:
    """DeepSpeed's configuration file: it names the type that trains, but where a recipe trains by XTuner's own classes
    alone. "" without DeepSpeed.
    """
    name = deepspeed(settings)
    return preset_editor.deepspeed_text(name, dtype(settings) if hooked(settings.train) else "") if name else ""


def checkpointing(settings: Settings, tokens: int) -> bool:
    """Whether layers are computed again for their gradients; `tokens`: of an iteration."""
    if settings.train.checkpointing is not None:
        return settings.train.checkpointing
    found = gpus()[: settings.gpus]
    if speed(settings) != "fast" or not found or compiler.fault():  # PyTorch's own operations keep more
        return True
    return not all(measurements.fits_without_checkpointing(tokens, card["name"], card["memory_mib"]) for card in found)


def way(settings: Settings, tokens: int) -> str:
    """How an iteration of `tokens` is reckoned, in measured.toml's words: stock, fast, kept or small."""
    kind = speed(settings)
    return "kept" if kind == "fast" and not checkpointing(settings, tokens) else kind


def hooked(train: Any) -> bool:
    """Whether our hooks are in the config: with neither of these a recipe trains by XTuner's own classes alone."""
    return bool(train.guard or train.deterministic)
