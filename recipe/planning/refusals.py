"""Why a run cannot learn, and the settings with which it can."""

import json
import math
from typing import Any, Dict, List, Tuple

from recipe.core.translation import _, mark, ngettext
from recipe.planning.schedule import smallest_warmup, updates

MIN_UPDATES = 30  # fewer do not converge; the tutorial makes 3

MIN_ANSWERS_KEPT = 0.95

LR_RANGE = (1e-6, 5e-3)  # for adapters

MAX_BATCH = 1024  # sequences per update

Remedy = Dict[str, Any]  # setting → value


def warnings(plan: Dict[str, Any]) -> List[str]:
    """What the user should know although it does not stop the run."""
    found = []
    if plan["ranks"] > 1:
        found.append(
            _(
                "{gpus} GPUs share each update of {sequences} sequences, as one GPU would: {batch_size} an iteration "
                "on each, {iterations} iteration(s) an update.",
                gpus=plan["ranks"],
                sequences=plan["update_sequences"],
                batch_size=plan["batch_size"],
                iterations=plan["accumulative_counts"],
            )
        )
    if plan["packs_repeated"]:
        found.append(
            _(
                "{packs} packs are not a multiple of {gpus} GPUs: {repeated} are in every epoch twice.",
                packs=plan["packs"],
                gpus=plan["ranks"],
                repeated=plan["packs_repeated"],
            )
            if plan["ranks"] > 1
            else _(
                "{pairs} pairs do not fill whole updates: {repeated} occur twice per epoch.",
                pairs=plan["packs"],
                repeated=plan["packs_repeated"],
            )
        )
    if plan["duplicates"]:
        found.append(
            ngettext(
                "{n} conversation appears twice in the data and counts double.",
                "{n} conversations appear twice in the data and count double.",
                plan["duplicates"],
            )
        )
    if plan["updates_with_deepspeed"] != plan["updates_without_deepspeed"]:
        found.append(
            _(
                "{iterations} iterations are not a multiple of accumulative_counts={accumulation}: {dropped} updates "
                "with DeepSpeed, which drops the rest, {all} without.",
                iterations=plan["iterations"],
                accumulation=plan["accumulative_counts"],
                dropped=plan["updates_with_deepspeed"],
                all=plan["updates_without_deepspeed"],
            )
        )
    return found


def refusals(plan: Dict[str, Any], cfg: Any, crash: str, deepspeed: bool) -> List[Dict[str, Any]]:
    """Why this run cannot learn: [{fault, why, remedy}], `why` being cause and remedy as text; [] if it can.

    The texts are stored: the caller makes them in English. Each is one message, so that `stored` finds it.
    """
    found: Dict[str, str] = {}
    remedies: Dict[str, Remedy] = {}
    ratio = smallest_warmup(plan["iterations_per_epoch"], cfg.max_epochs)
    remedy = _("train more iterations")
    if ratio:
        remedy = _("the smallest that ramps here is train.warmup_ratio={ratio}", ratio=ratio)
    remedies["warmup-crash"] = remedies["peak-not-reached"] = {"train.warmup_ratio": ratio} if ratio else {}
    if crash:
        found["warmup-crash"] = _(
            "The warm-up has {iterations} iterations, and mmengine cannot start with that ({error}). Raise it: "
            "{remedy}.",
            iterations=plan["warmup_iterations"], error=crash, remedy=remedy,
        )  # fmt: skip
    elif plan["lr_peak"] < 0.99 * plan["lr_configured"]:
        found["peak-not-reached"] = _(
            "The learning rate does not reach its peak: it gets to {peak:.3g} of {configured:.3g}. The warm-up of "
            "{iterations} iteration(s) is too short for mmengine's ramp: {remedy}.",
            peak=plan["lr_peak"], configured=plan["lr_configured"], iterations=plan["warmup_iterations"], remedy=remedy,
        )  # fmt: skip
    if plan["updates"] < MIN_UPDATES:
        remedies["few-updates"], made = _more_updates(plan, deepspeed)
        found["few-updates"] = _(
            "Only {updates} optimizer updates (fewer than {needed}): {settings} gives {made}.",
            updates=plan["updates"], needed=MIN_UPDATES, settings=overrides(remedies["few-updates"]), made=made,
        )  # fmt: skip
    share = plan["answer_tokens_kept"] / plan["answer_tokens"]
    if share < MIN_ANSWERS_KEPT:
        remedies["answers-lost"], found["answers-lost"] = _more_answers(plan, share)
    if plan["rows_cut"]:
        shown = ", ".join(map(str, plan["rows_cut"][:10])) + (" …" if len(plan["rows_cut"]) > 10 else "")
        remedies["rows-cut"] = {"train.max_length": next_length(plan["longest_row"])}
        found["rows-cut"] = _(
            "{n} conversation(s) are longer than train.max_length={length} and lose their end, so the model would not "
            "learn to stop (lines {lines} of dataset.jsonl): {settings}, or shorten them.",
            n=len(plan["rows_cut"]), length=plan["max_length"], lines=shown, settings=overrides(remedies["rows-cut"]),
        )  # fmt: skip
    for name, fault, message in (
        ("evaluation_freq", "no-evaluation", mark(
            "No evaluation falls inside the run: train.evaluation_freq={steps}, the run has {iterations} iterations. "
            "train.evaluation_freq=0.5 puts one halfway."
        )),
        ("save_steps", "no-checkpoint", mark(
            "No checkpoint falls inside the run: train.save_steps={steps}, the run has {iterations} iterations. "
            "train.save_steps=0.5 puts one halfway."
        )),
    ):  # fmt: skip
        steps = plan["intervals"].get(name, cfg[name])
        if steps >= plan["iterations"]:
            remedies[fault] = {f"train.{name}": 0.5}
            found[fault] = _(message, steps=steps, iterations=plan["iterations"])
    low, high = LR_RANGE
    if not low <= plan["lr_configured"] <= high:
        found["rate-range"] = _(
            "train.lr={rate:g} is outside {low:g} to {high:g}, where adapters train.",
            rate=plan["lr_configured"], low=low, high=high,
        )  # fmt: skip
    batch = plan["update_sequences"]
    if batch > MAX_BATCH:
        found["batch-range"] = _(
            "{n} sequences an update are more than {limit}: lower train.accumulative_counts.", n=batch, limit=MAX_BATCH
        )
    return [{"fault": fault, "why": why, "remedy": remedies.get(fault, {})} for fault, why in found.items()]


def overrides(remedy: Remedy) -> str:
    """A remedy as overrides to type."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in remedy.items())


def _more_updates(plan: Dict[str, Any], deepspeed: bool) -> Tuple[Remedy, int]:
    """(remedy, number of updates with it)"""
    fitting = plan["iterations"] // MIN_UPDATES
    if fitting:
        return _accumulating(plan, fitting), updates(plan["iterations"], fitting, deepspeed)
    epochs = math.ceil(MIN_UPDATES / plan["iterations_per_epoch"])
    return {**_accumulating(plan, 1), "train.max_epochs": epochs}, epochs * plan["iterations_per_epoch"]


def _accumulating(plan: Dict[str, Any], each: int) -> Remedy:
    """The remedy with which every rank accumulates over `each` iterations of the current batch size."""
    if plan["ranks"] == 1:
        return {"train.accumulative_counts": each}
    return {"train.batch_size": plan["batch_size"], "train.accumulative_counts": each * plan["ranks"]}


def _more_answers(plan: Dict[str, Any], share: float) -> Tuple[Remedy, str]:
    """(remedy, text)"""
    if plan["rows_cut"]:
        longer: Remedy = {"train.max_length": next_length(plan["longest_row"])}
        return longer, _(
            "Only {share:.1%} of the answer tokens reach the trainer: {settings} holds the longest conversation.",
            share=share, settings=overrides(longer),
        )  # fmt: skip
    if plan["map_num_proc"] > 1:
        alone: Remedy = {"train.map_num_proc": 1}
        return alone, _(
            "Only {share:.1%} of the answer tokens reach the trainer: {n} processes each drop the end of their last "
            "pack: {settings}.",
            share=share, n=plan["map_num_proc"], settings=overrides(alone),
        )  # fmt: skip
    unpacked: Remedy = {"train.pack_to_max_length": False}
    return unpacked, _(
        "Only {share:.1%} of the answer tokens reach the trainer: a shorter train.max_length leaves a smaller "
        "remainder, {settings} none.",
        share=share, settings=overrides(unpacked),
    )  # fmt: skip


def next_length(longest: int) -> int:
    """The next power of two."""
    return 2 ** math.ceil(math.log2(longest))
