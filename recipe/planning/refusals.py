"""Why a run cannot learn, and the settings with which it can."""

import json
import math
from typing import Any, Dict, List, Tuple

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
            f"{plan['ranks']} GPUs share each update of {plan['update_sequences']} sequences, as one GPU would: "
            f"{plan['batch_size']} an iteration on each, {plan['accumulative_counts']} iteration(s) an update."
        )
    if plan["packs_repeated"]:
        found.append(
            f"{plan['packs']} packs are not a multiple of {plan['ranks']} GPUs: {plan['packs_repeated']} are in every "
            f"epoch twice."
            if plan["ranks"] > 1
            else f"{plan['packs']} pairs do not fill whole updates: {plan['packs_repeated']} occur twice per epoch."
        )
    if plan["duplicates"]:
        found.append(f"{plan['duplicates']} conversations appear twice in the data and count double.")
    if plan["updates_with_deepspeed"] != plan["updates_without_deepspeed"]:
        found.append(
            f"{plan['iterations']} iterations are not a multiple of accumulative_counts={plan['accumulative_counts']}: "
            f"{plan['updates_with_deepspeed']} updates with DeepSpeed, which drops the rest, "
            f"{plan['updates_without_deepspeed']} without."
        )
    return found


def refusals(plan: Dict[str, Any], cfg: Any, crash: str, deepspeed: bool) -> List[Dict[str, Any]]:
    """Why this run cannot learn: [{fault, why, remedy}], `why` being cause and remedy as text; [] if it can."""
    found: Dict[str, str] = {}
    remedies: Dict[str, Remedy] = {}
    ratio = smallest_warmup(plan["iterations_per_epoch"], cfg.max_epochs)
    remedy = f"the smallest that ramps here is train.warmup_ratio={ratio}" if ratio else "train more iterations"
    remedies["warmup-crash"] = remedies["peak-not-reached"] = {"train.warmup_ratio": ratio} if ratio else {}
    if crash:
        found["warmup-crash"] = (
            f"The warm-up has {plan['warmup_iterations']} iterations, and mmengine cannot start with that ({crash}). "
            f"Raise it: {remedy}."
        )
    elif plan["lr_peak"] < 0.99 * plan["lr_configured"]:
        found["peak-not-reached"] = (
            f"The learning rate does not reach its peak: it gets to {plan['lr_peak']:.3g} of "
            f"{plan['lr_configured']:.3g}. The warm-up of {plan['warmup_iterations']} iteration(s) is too short for "
            f"mmengine's ramp: {remedy}."
        )
    if plan["updates"] < MIN_UPDATES:
        remedies["few-updates"], made = _more_updates(plan, deepspeed)
        found["few-updates"] = (
            f"Only {plan['updates']} optimizer updates (fewer than {MIN_UPDATES}): "
            f"{overrides(remedies['few-updates'])} gives {made}."
        )
    share = plan["answer_tokens_kept"] / plan["answer_tokens"]
    if share < MIN_ANSWERS_KEPT:
        remedies["answers-lost"], how = _more_answers(plan)
        found["answers-lost"] = f"Only {share:.1%} of the answer tokens reach the trainer: {how}."
    if plan["rows_cut"]:
        shown = ", ".join(map(str, plan["rows_cut"][:10])) + (" …" if len(plan["rows_cut"]) > 10 else "")
        remedies["rows-cut"] = {"train.max_length": next_length(plan["longest_row"])}
        found["rows-cut"] = (
            f"{len(plan['rows_cut'])} conversation(s) are longer than train.max_length={plan['max_length']} and lose "
            f"their end, so the model would not learn to stop (lines {shown} of dataset.jsonl): "
            f"{overrides(remedies['rows-cut'])}, or shorten them."
        )
    for name, what in (("evaluation_freq", "evaluation"), ("save_steps", "checkpoint")):
        steps = plan["intervals"].get(name, cfg[name])
        if steps >= plan["iterations"]:
            remedies[f"no-{what}"] = {f"train.{name}": 0.5}
            found[f"no-{what}"] = (
                f"No {what} falls inside the run: train.{name}={steps}, the run has {plan['iterations']} iterations. "
                f"train.{name}=0.5 puts one halfway."
            )
    low, high = LR_RANGE
    if not low <= plan["lr_configured"] <= high:
        found["rate-range"] = (
            f"train.lr={plan['lr_configured']:g} is outside {low:g} to {high:g}, where adapters train."
        )
    batch = plan["update_sequences"]
    if batch > MAX_BATCH:
        found["batch-range"] = (
            f"{batch} sequences an update are more than {MAX_BATCH}: lower train.accumulative_counts."
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


def _more_answers(plan: Dict[str, Any]) -> Tuple[Remedy, str]:
    """(remedy, text)"""
    if plan["rows_cut"]:
        longer: Remedy = {"train.max_length": next_length(plan["longest_row"])}
        return longer, f"{overrides(longer)} holds the longest conversation"
    if plan["map_num_proc"] > 1:
        alone: Remedy = {"train.map_num_proc": 1}
        many = plan["map_num_proc"]
        return alone, f"{many} processes each drop the end of their last pack: {overrides(alone)}"
    unpacked: Remedy = {"train.pack_to_max_length": False}
    return unpacked, f"a shorter train.max_length leaves a smaller remainder, {overrides(unpacked)} none"


def next_length(longest: int) -> int:
    """The next power of two."""
    return 2 ** math.ceil(math.log2(longest))
