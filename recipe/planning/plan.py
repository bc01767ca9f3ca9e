"""Predicts a run before any GPU time is spent, and refuses one that cannot learn.

XTuner's own functions template, encode, filter, shuffle and pack the rows, and mmengine's own schedulers give the
learning rates, so the plan matches the run. A refusal names the cause and a remedy computed for these data.
"""

import dataclasses
import itertools
import json
import math
import random
from typing import Any, Callable, Dict, List, Optional, Sequence

from recipe.base_model.visual_encoder import EncoderShape, encoder_shape
from recipe.core import distributed, settings
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.run import Run
from recipe.core.translation import _, english
from recipe.planning import bill, memory, schedule
from recipe.planning.refusals import next_length, overrides, refusals, warnings
from recipe.planning.schedule import iterations_per_epoch, updates
from recipe.planning.tokens import count, pack
from recipe.xtuner import config, preset_facts, step_choice

SMALL = 5000  # conversations that take seconds to plan again

Figures = Dict[str, Any]


def unknown_refusals(run: Run, figures: Figures) -> List[Dict[str, Any]]:
    """The refusals that the recipe does not list as known."""
    return [refusal for refusal in figures["refusals"] if refusal["fault"] not in run.settings.known_faults]


def combined_remedy(run: Run, stopping: List[Dict[str, Any]], plan_again: Callable[[Run], Figures]) -> str:
    """A line with one set of overrides that removes all refusals, checked with `plan_again`; "" if there is none, or if
    the only refusal already names it.
    """
    found: Dict[str, Any] = {}
    left = stopping
    for _attempt in range(6):
        # The warm-up comes last: with more iterations its share may be long enough.
        first = [refusal for refusal in left if refusal["fault"] not in ("warmup-crash", "peak-not-reached")] or left
        more = {name: value for refusal in first for name, value in refusal["remedy"].items()}
        if not set(more.items()) - set(found.items()):
            return ""
        found.update(more)
        chosen = run.settings
        for name, value in found.items():
            chosen = settings.replace(chosen, name, value)
        try:
            figures = plan_again(dataclasses.replace(run, settings=chosen))
        except InputWrong:
            return ""
        left = unknown_refusals(run, figures)
        if not left:
            if len(stopping) == 1 and found == stopping[0]["remedy"]:
                return ""
            share = figures["answer_tokens_kept"] / figures["answer_tokens"]
            return "\n" + _(
                "All of it together: {settings} ({iterations} iterations, {updates} updates, {share:.0%} of the answer "
                "tokens)",
                settings=overrides(found), iterations=figures["iterations"], updates=figures["updates"], share=share,
            )  # fmt: skip
    return ""


def drawn_seed(run: Run) -> int:
    """The seed of a recipe without one: drawn once for each run folder, so that a stopped run can continue."""
    path = run.folder / "seed"
    if not path.is_file() or not path.read_text(encoding="utf-8").strip().isdigit():
        write_text(path, f"{random.randrange(2**31)}\n")
    return int(path.read_text(encoding="utf-8"))


def predict(
    run: Run, cfg: Any, conversations: Sequence[Any], tokenizer: Any, seed: int, images: Sequence[str] = ()
) -> Figures:
    """The plan of a run whose effective config is `cfg`. `images`: each conversation's sha256 of its image, because one
    question about two images is not a duplicate. Raises InputWrong if no token with loss is left.
    """
    deepspeed = bool(step_choice.deepspeed(run.settings))
    encoder = encoder_shape(run) if preset_facts.has_images(run.settings) else None
    pairs = itertools.zip_longest(conversations, images)
    figures = {
        "rows": len(conversations),
        "held_out": run.figures("data").get("held_out", 0),
        "duplicates": len(conversations) - len({json.dumps(pair, sort_keys=True) for pair in pairs}),
        **_token_figures(run, cfg, conversations, tokenizer, seed, encoder),
    }
    figures.update(_iteration_figures(run, cfg, figures["packs"], deepspeed))
    per_epoch, iterations = figures["iterations_per_epoch"], figures["iterations"]
    try:
        rates, crash = schedule.learning_rates(cfg.param_scheduler, cfg.lr, per_epoch, iterations), ""
    except ValueError as error:
        rates, crash = [], str(error)
    intervals = _intervals(run, cfg, iterations)
    save_steps = intervals.get("save_steps", cfg.save_steps)
    # XTuner's hook evaluates at its own interval and at each checkpoint.
    evaluated = schedule.multiples(intervals.get("evaluation_freq", cfg.evaluation_freq), iterations)
    evaluated = schedule.multiples(save_steps, iterations, also=evaluated)
    figures.update({
        "lr_configured": cfg.lr,
        "lr_peak": max(rates, default=0.0),
        "lr_trace": rates,
        "warmup_iterations": int(cfg.warmup_ratio * cfg.max_epochs * per_epoch),
        "intervals": intervals,
        "evaluations": sorted({0, *evaluated, iterations}),
        "checkpoints": schedule.multiples(save_steps, iterations, also=(iterations,)),
        "checkpoints_kept": cfg.save_total_limit,
        "way": step_choice.way(run.settings, cfg.batch_size * cfg.max_length),
        "dtype": step_choice.training_dtype(run.settings),
    })  # fmt: skip
    figures["memory"] = memory.estimate_run(
        run, cfg, deepspeed, len(figures["checkpoints"]), encoder, figures["longest_row"]
    )
    if not run.settings.model.is_made and preset_facts.is_measured(run.settings):
        generated = schedule.generated_tokens(cfg, evaluated, iterations, step_choice.has_hooks(run.settings.train))
        figures["cost"] = bill.bill(figures, run.settings, generated)
    with english():  # stored; what shows them translates them by `stored`
        figures["refusals"] = refusals(figures, cfg, crash, deepspeed)
        figures["warnings"] = warnings(figures) + dtype_warnings(run.settings)
    return figures


def _token_figures(
    run: Run, cfg: Any, conversations: Sequence[Any], tokenizer: Any, seed: int, encoder: Optional[EncoderShape]
) -> Figures:
    """Tokens of the conversations and of the packs."""
    tokens = count(conversations, config.template(cfg), tokenizer, cfg.max_length, encoder is not None)
    longest = max(tokens["lengths"])
    if len(tokens["masked"]) == len(conversations):
        raise InputWrong(
            _(
                "No token with loss reaches the trainer: every conversation loses its answer at "
                "train.max_length={length}. The longest has {longest} tokens: train.max_length={remedy}.",
                length=cfg.max_length,
                longest=longest,
                remedy=next_length(longest),
            )
        )
    packed = pack(cfg, run.dataset, tokenizer, seed, encoder is not None)
    # After the cut at max_length an image's patches replace the one token that stands for it.
    more = encoder.patches - 1 if encoder else 0
    return {
        "tokens": sum(tokens["lengths"]) + more * len(conversations),
        **({"image_tokens": encoder.patches} if encoder else {}),
        "tokens_kept": packed["tokens_kept"] + more * packed["packs"],
        "answer_tokens": sum(tokens["answers"]),
        "answer_tokens_kept": packed["answer_tokens_kept"],
        "longest_row": longest,
        "rows_cut": tokens["cut"],
        "rows_masked": tokens["masked"],
        "max_length": cfg.max_length,
        "packs": packed["packs"],
        "packed": bool(cfg.get("pack_to_max_length", True)),
        "seed": seed,
        "map_num_proc": config.dataset(cfg).get("map_num_proc", 32),
    }


def _iteration_figures(run: Run, cfg: Any, packs: int, deepspeed: bool) -> Figures:
    """Iterations and updates of the run, and on other numbers of GPUs."""
    ranks, group = distributed.count(run.settings), schedule.group_size(cfg)
    per_epoch = iterations_per_epoch(packs, cfg.batch_size, ranks, group or 1)
    iterations = per_epoch * cfg.max_epochs
    return {
        "batch_size": cfg.batch_size,
        "accumulative_counts": cfg.accumulative_counts,
        "ranks": ranks,
        "update_sequences": cfg.batch_size * cfg.accumulative_counts * ranks,
        # mmengine's sampler fills the last batches of an epoch with its first packs.
        "packs_repeated": -packs % (cfg.batch_size * group * ranks or ranks),
        "iterations_per_epoch": per_epoch,
        "iterations": iterations,
        "updates": updates(iterations, cfg.accumulative_counts, deepspeed),
        "updates_with_deepspeed": updates(iterations, cfg.accumulative_counts, True),
        "updates_without_deepspeed": updates(iterations, cfg.accumulative_counts, False),
        "by_gpus": by_gpus(packs, cfg, ranks, deepspeed, group > 0),
    }


def _intervals(run: Run, cfg: Any, iterations: int) -> Dict[str, int]:
    """evaluation_freq and save_steps in iterations, where the recipe sets them or training needs another."""
    train = run.settings.train
    found = {
        name: schedule.in_iterations(value, iterations)
        for name, value in (("evaluation_freq", train.evaluation_freq), ("save_steps", train.save_steps))
        if value is not None
    }
    if train.guard:  # a checkpoint does not hold accumulated gradients, so it is saved after an update
        updates_between = math.ceil(found.get("save_steps", cfg.save_steps) / cfg.accumulative_counts)
        found["save_steps"] = updates_between * cfg.accumulative_counts
    return found


def by_gpus(packs: int, cfg: Any, ranks: int, deepspeed: bool, by_length: bool = False) -> Dict[str, Dict[str, int]]:
    """Iterations of each GPU, and updates, on 1, 2, 4 and 8 GPUs, where these can share an update of the same size.

    `cfg` is the config of each of `ranks` ranks; `by_length`: its sampler groups the batches of an update.
    """
    table = {}
    for gpus in (1, 2, 4, 8):
        share = distributed.divide_update(cfg.batch_size, cfg.accumulative_counts * ranks, gpus)
        if share is None:
            continue
        batch_size, accumulation = share
        per_epoch = iterations_per_epoch(packs, batch_size, gpus, accumulation if by_length else 1)
        iterations = per_epoch * cfg.max_epochs
        table[str(gpus)] = {"iterations": iterations, "updates": updates(iterations, accumulation, deepspeed)}
    return table


def dtype_warnings(settings: settings.Settings) -> List[str]:
    """A warning if training uses another dtype than the recipe names."""
    named, used = step_choice.dtype(settings), step_choice.training_dtype(settings)
    if named == used:
        return []
    return [
        _(
            "Training is in {used}, not in the recipe's {named}: XTuner fills DeepSpeed's \"auto\" with what PyTorch "
            "supports on the card.",
            used=used,
            named=named,
        )
    ]
