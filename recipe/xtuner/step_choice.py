"""Chooses the training step, the dtype and activation checkpointing for a recipe on this machine's GPU."""

import re
from typing import Any, Tuple

from recipe.core import compiler, distributed, measurements
from recipe.core.errors import InputWrong
from recipe.core.host import gpus, versions
from recipe.core.settings import Settings
from recipe.core.translation import _
from recipe.xtuner import preset_editor, preset_facts


def dtype(settings: Settings) -> str:
    """The compute dtype. "auto" is bf16 if every GPU of the run has it (capability 8.0), else fp16; without any GPU it
    is bf16, because the config is then only inspected.
    """
    if settings.train.dtype != "auto":
        return settings.train.dtype
    return "fp16" if any(float(card["capability"]) < 8 for card in gpus()[: settings.gpus]) else "bf16"


def training_dtype(settings: Settings) -> str:
    """The dtype that training uses. It is the recipe's, unless it uses DeepSpeed with XTuner's own classes only: XTuner
    then replaces DeepSpeed's "auto" with what PyTorch supports, which from 2.4 on is always bf16, emulated if need be.
    """
    if has_hooks(settings.train) or not deepspeed(settings):
        return dtype(settings)
    emulates = tuple(map(int, re.findall(r"\d+", versions()["torch"] or "")[:2])) >= (2, 4)
    return "fp16" if not emulates and any(float(card["capability"]) < 8 for card in gpus()[:1]) else "bf16"


def batch_shape(settings: Settings) -> Tuple[int, int]:
    """(batch size, length) of an iteration, by default 1 × 2048 as in XTuner's presets."""
    return settings.train.batch_size or 1, settings.train.max_length or 2048


def has_fast(settings: Settings) -> bool:
    """Whether fast and small support the recipe: adapters of InternLM2's presets, without ZeRO-3."""
    supported = settings.base.startswith("internlm2_") and preset_facts.method(settings) != "full"
    return supported and "zero3" not in settings.train.deepspeed


def speed(settings: Settings) -> str:
    """stock, fast or small. "auto" depends on the first GPU's memory, and is fast without any GPU.

    "auto" is fast or small only in bf16 and on one GPU: GPUs without bf16 were not tested, and two GPUs only once. No
    update is made before training/fast/check.py has compared the step with XTuner's own. Raises InputWrong.
    """
    supported = has_fast(settings)
    if settings.train.speed != "auto":
        if settings.train.speed != "stock" and not supported:
            raise InputWrong(
                _(
                    "train.speed={speed} supports only adapters of InternLM2 without ZeRO-3, not base = {preset!r} by "
                    "{method} with {deepspeed}: train.speed=stock trains everything that XTuner does.",
                    speed=settings.train.speed,
                    preset=settings.base,
                    method=preset_facts.method(settings),
                    deepspeed=settings.train.deepspeed or _("no DeepSpeed"),
                )
            )
        return settings.train.speed
    if not supported or distributed.count(settings) > 1 or dtype(settings) != "bf16":
        return "stock"
    found = gpus()
    return "small" if found and found[0]["memory_mib"] < measurements.SMALL else "fast"


def deepspeed(settings: Settings) -> str:
    """train.deepspeed; "" for "small", which has no memory for DeepSpeed's buffers."""
    return "" if speed(settings) == "small" else settings.train.deepspeed


def deepspeed_text(settings: Settings) -> str:
    """DeepSpeed's configuration file, which names the dtype unless training uses XTuner's own classes only; "" without
    DeepSpeed.
    """
    name = deepspeed(settings)
    return preset_editor.deepspeed_text(name, dtype(settings) if has_hooks(settings.train) else "") if name else ""


def checkpointing(settings: Settings, tokens: int) -> bool:
    """Whether activations are recomputed for the gradients; `tokens`: of an iteration."""
    if settings.train.checkpointing is not None:
        return settings.train.checkpointing
    found = gpus()[: settings.gpus]
    if (
        speed(settings) != "fast" or not found or compiler.fault()
    ):  # without a compiler PyTorch's own operations keep more
        return True
    return not all(measurements.fits_without_checkpointing(tokens, card["name"], card["memory_mib"]) for card in found)


def way(settings: Settings, tokens: int) -> str:
    """The name in measured.toml for an iteration of `tokens`: stock, fast, kept (no checkpointing) or small."""
    kind = speed(settings)
    return "kept" if kind == "fast" and not checkpointing(settings, tokens) else kind


def has_hooks(train: Any) -> bool:
    """Whether the config has our hooks; without them training uses XTuner's own classes only."""
    return bool(train.guard or train.deterministic)
