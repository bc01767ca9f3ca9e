"""What training will do, said before it is paid for.

Every count comes from the code that will train: rows are templated, encoded, filtered, shuffled and packed
by XTuner's own functions, learning rates come from mmengine's own schedulers, so the plan cannot drift from
the run. A run that cannot learn is refused, with the cause and a remedy computed for these data.
"""

import dataclasses
import itertools
import json
import math
import random
from typing import Any, Callable, Dict, List, Sequence

from recipe.core import distributed, measurements, settings
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.run import Run
from recipe.planning import memory
from recipe.planning.refusals import next_length, refusals, warnings, words
from recipe.planning.schedule import answers, events, grouped, interval, iterations_per_epoch, learning_rates, updates
from recipe.planning.tokens import count, pack
from recipe.xtuner import config, preset_facts, step_choice

SMALL = 5000  # conversations that are planned again in seconds


def unknown(run: Run, figures: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The refusals that the recipe does not name as known."""
    return [refusal for refusal in figures["refusals"] if refusal["fault"] not in run.settings.known_faults]


def together(run: Run, stopping: List[Dict[str, Any]], remake: Callable[[Run], Dict[str, Any]]) -> str:
    """A line with the remedies as one set of overrides that was planned and is accepted, where one alone is not; else
    "". `remake` plans a run.
    """
    found: Dict[str, Any] = {}
    left = stopping
    for _ in range(6):
        # the warm-up last: of more iterations the same share may be long enough
        asked = [refusal for refusal in left if refusal["fault"] not in ("warmup-crash", "peak-not-reached")] or left
        more = {name: value for refusal in asked for name, value in refusal["remedy"].items()}
        if not set(more.items()) - set(found.items()):
            return ""
        found.update(more)
        chosen = run.settings
        for name, value in found.items():
            chosen = settings.replace(chosen, name, value)
        try:
            figures = remake(dataclasses.replace(run, settings=chosen))
        except InputWrong:
            return ""
        left = unknown(run, figures)
        if not left:
            share = figures["answer_tokens_kept"] / figures["answer_tokens"]
            return (
                ""
                if len(stopping) == 1 and found == stopping[0]["remedy"]
                else f"\nAll of it together: {words(found)} ({figures['iterations']} iterations, {figures['updates']} "
                f"updates, {share:.0%} of the answer tokens)"
            )
    return ""


def drawn_seed(run: Run) -> int:
    """The seed of a recipe that names none: drawn once for its folder, so that a stopped run goes on."""
    path = run.folder / "seed"
    if not path.is_file() or not path.read_text(encoding="utf-8").strip().isdigit():
        write_text(path, f"{random.randrange(2**31)}\n")
    return int(path.read_text(encoding="utf-8"))


def predict(
    run: Run, cfg: Any, conversations: Sequence[Any], tokenizer: Any, seed: int, images: Sequence[str] = ()
) -> Dict[str, Any]:
    """The plan of a run whose effective config is `cfg`; see the module's text. `images`: of each conversation the sum
    of what it is about; one question about two images is no duplicate.
    """
    train, engine = run.settings.train, bool(step_choice.deepspeed(run.settings))
    pictures = preset_facts.pictures(run.settings)
    tokens = count(conversations, config.template(cfg), tokenizer, cfg.max_length, pictures)
    if len(tokens["masked"]) == len(conversations):
        raise InputWrong(
            f"No token with loss reaches the trainer: every conversation loses its answer at train.max_length="
            f"{cfg.max_length}. The longest has {max(tokens['lengths'])} tokens: "
            f"train.max_length={next_length(max(tokens['lengths']))}."
        )
    packed = pack(cfg, run.dataset, tokenizer, seed, pictures)
    more, eyes = 0, memory.eyes(run) if pictures else None
    if eyes:  # each takes the place of the one token that stands for it, behind the cut at max_length
        more = eyes.patches - 1
        packed["tokens_kept"] += more * packed["packs"]
    together, kept = distributed.count(run.settings), grouped(cfg)
    per_epoch = iterations_per_epoch(packed["packs"], cfg.batch_size, together, kept or 1)
    iterations = per_epoch * cfg.max_epochs
    warmup = int(cfg.warmup_ratio * cfg.max_epochs * per_epoch)
    try:
        trace = learning_rates(cfg.param_scheduler, cfg.lr, per_epoch, iterations)
    except ValueError as error:
        trace = []
        crash = str(error)
    else:
        crash = ""
    intervals = {
        name: interval(value, iterations)
        for name, value in (("evaluation_freq", train.evaluation_freq), ("save_steps", train.save_steps))
        if value is not None
    }
    every = intervals.get("save_steps", cfg.save_steps)
    if train.guard:  # gradients that wait for their update are in no checkpoint
        every = intervals["save_steps"] = math.ceil(every / cfg.accumulative_counts) * cfg.accumulative_counts
    figures = {
        "rows": len(conversations),
        "held_out": run.figures("data").get("held_out", 0),
        "duplicates": len(conversations)
        - len({json.dumps(one, sort_keys=True) for one in itertools.zip_longest(conversations, images)}),
        "tokens": sum(tokens["lengths"]) + more * len(conversations),
        **({"image_tokens": more + 1} if pictures else {}),
        "tokens_kept": packed["tokens_kept"],
        "answer_tokens": sum(tokens["answers"]),
        "answer_tokens_kept": packed["answer_tokens_kept"],
        "longest_row": max(tokens["lengths"]),
        "rows_cut": tokens["cut"],
        "rows_masked": tokens["masked"],
        "max_length": cfg.max_length,
        "packs": packed["packs"],
        "packed": bool(cfg.get("pack_to_max_length", True)),
        "seed": seed,
        "map_num_proc": config.dataset(cfg).get("map_num_proc", 32),
        "batch_size": cfg.batch_size,
        "accumulative_counts": cfg.accumulative_counts,
        "ranks": together,
        "update_sequences": cfg.batch_size * cfg.accumulative_counts * together,
        # mmengine's sampler fills the last round of an epoch with its first packs
        "packs_repeated": -packed["packs"] % (cfg.batch_size * kept * together or together),
        "iterations_per_epoch": per_epoch,
        "iterations": iterations,
        "updates": updates(iterations, cfg.accumulative_counts, engine),
        "updates_with_deepspeed": updates(iterations, cfg.accumulative_counts, True),
        "updates_without_deepspeed": updates(iterations, cfg.accumulative_counts, False),
        "by_gpus": by_gpus(packed["packs"], cfg, together, engine, kept > 0),
        "lr_configured": cfg.lr,
        "lr_peak": max(trace, default=0.0),
        "lr_trace": trace,
        "warmup_iterations": warmup,
        "intervals": intervals,
        "evaluations": [],
        "checkpoints": events(every, iterations, also=(iterations,)),
        "checkpoints_kept": cfg.save_total_limit,
        "way": step_choice.way(run.settings, cfg.batch_size * cfg.max_length),
        "dtype": step_choice.training_dtype(run.settings),
    }
    # XTuner's hook also evaluates at every checkpoint that the interval makes.
    within = events(every, iterations, events(intervals.get("evaluation_freq", cfg.evaluation_freq), iterations))
    figures["evaluations"] = sorted({0, *within, iterations})
    figures["memory"] = memory.of_run(run, cfg, engine, len(figures["checkpoints"]), eyes, figures["longest_row"])
    if run.settings.model.source != "tiny" and preset_facts.is_measured(run.settings):
        asked = answers(cfg, within, iterations, step_choice.hooked(train))
        figures["cost"] = measurements.estimate(
            figures, run.settings.plan.card, run.settings.plan.price_per_hour, asked
        )
    figures["refusals"] = refusals(figures, cfg, crash, engine)
    figures["warnings"] = warnings(figures) + of_type(run.settings)
    return figures


def by_gpus(packs: int, cfg: Any, together: int, deepspeed: bool, by_length: bool = False) -> Dict[str, Dict[str, int]]:
    """Iterations of each, and updates, on 1, 2, 4 and 8 GPUs, where they can share an update of the same size.

    `cfg` is the config of each of `together` ranks; `by_length`: its sampler groups whole updates.
    """
    table = {}
    for number in (1, 2, 4, 8):
        each = distributed.divide_update(cfg.batch_size, cfg.accumulative_counts * together, number)
        if each is None:
            continue
        kept = each[1] if by_length else 1
        iterations = iterations_per_epoch(packs, each[0], number, kept) * cfg.max_epochs
        table[str(number)] = {"iterations": iterations, "updates": updates(iterations, each[1], deepspeed)}
    return table


def of_type(settings: settings.Settings) -> List[str]:
    """A warning where another type trains than the recipe names."""
    named, trains = step_choice.dtype(settings), step_choice.training_dtype(settings)
    if named == trains:
        return []
    return [
        f"Training is in {trains}, not in the recipe's {named}: XTuner fills DeepSpeed's \"auto\" with what PyTorch "
        f"supports on the card."
    ]
