"""What training will do, said before it is paid for.

Every count comes from the code that will train: rows are templated, encoded, filtered, shuffled and packed
by XTuner's own functions, learning rates come from mmengine's own schedulers, so the plan cannot drift from
the run. A run that cannot learn is refused, with the cause and a remedy computed for these data.
"""

import copy
import dataclasses
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from recipe.base_model import folder
from recipe.core import distributed, imports, measurements, settings
from recipe.core.errors import InputWrong, PlanRefused
from recipe.core.files import write_text
from recipe.core.run import Run
from recipe.planning import memory
from recipe.weights import llava
from recipe.xtuner import config, preset_facts

MIN_UPDATES = 30  # below it nothing settles; the tutorial makes 3
MIN_ANSWERS_KEPT = 0.95
LR_RANGE = (1e-6, 5e-3)  # of the reached peak, for adapters
MAX_BATCH = 1024  # sequences per update
SMALL = 5000  # conversations that are planned again in seconds

Remedy = Dict[str, Any]  # setting → value


def encoded(
    conversation: List[Dict[str, str]], template: Any, tokenizer: Any, max_length: int, pictures: bool = False
) -> Dict[str, List[int]]:
    """`input_ids` and `labels` of a conversation, cut at `max_length`, by XTuner's template_map_fn and encode_fn.

    Without a `template` the texts are encoded as they are, as for continued pre-training. With `pictures` one id, below
    0, stands for an image.
    """
    from xtuner.dataset.map_fns.template_map_fn import template_map_fn
    from xtuner.dataset.utils import encode_fn

    example = {"conversation": copy.deepcopy(conversation)}
    if template is not None:
        example = template_map_fn(example, template)
    return encode_fn(example, tokenizer, max_length=max_length, with_image_token=pictures)


def count(
    conversations: Sequence[List[Dict[str, str]]],
    template: Any,
    tokenizer: Any,
    max_length: int,
    pictures: bool = False,
) -> Dict[str, Any]:
    """Token counts before packing, by XTuner's template_map_fn and encode_fn.

    `lengths` and `answers` hold each conversation's tokens and its tokens that carry loss, both before the
    cut at `max_length`; `cut` the 1-based numbers of conversations that are cut (they lose their end);
    `masked` those that keep no token with loss after the cut; `answers_cut` the answer tokens cut off.
    """
    lengths, answers, cut, masked, answers_cut = [], [], [], [], 0
    for number, conversation in enumerate(conversations, start=1):
        labels = encoded(conversation, template, tokenizer, 10**9, pictures)["labels"]
        lengths.append(len(labels))
        answers.append(sum(label >= 0 for label in labels))
        if len(labels) > max_length:
            cut.append(number)
            answers_cut += sum(label >= 0 for label in labels[max_length:])
        if not any(label >= 0 for label in labels[:max_length]):
            masked.append(number)
    return {"lengths": lengths, "answers": answers, "cut": cut, "masked": masked, "answers_cut": answers_cut}


def pack(cfg: Any, dataset: Path, tokenizer: Any, seed: int, pictures: bool = False) -> Dict[str, int]:
    """Sequences that training will see, through XTuner's own pipeline with training's own seed; with `pictures` one of
    each conversation, in which the image is one token.

    Returns packs (sequences), tokens_kept and answer_tokens_kept.
    """
    import datasets
    import numpy
    from xtuner.dataset.huggingface import process

    arguments = {k: v for k, v in config.dataset(cfg).items() if k not in ("type", "dataset", "tokenizer")}
    # The trainer seeds numpy once, and datasets' shuffle takes its seed from there.
    numpy.random.seed(seed)
    datasets.disable_progress_bar()
    try:
        if pictures:
            from recipe.xtuner.llava_dataset import texts

            for name in ("data_path", "image_folder", "image_processor", "pad_image_to_square"):
                arguments.pop(name)
            made = texts(str(dataset), tokenizer=tokenizer, **arguments)
        else:
            rows = datasets.load_dataset("json", data_files={"train": str(dataset)})
            made = process(dataset=rows, tokenizer=tokenizer, **arguments)
    finally:
        datasets.enable_progress_bar()
    kept = sum(made["length"])
    return {
        "packs": len(made),
        "tokens_kept": kept,
        "answer_tokens_kept": sum(label >= 0 for labels in made["labels"] for label in labels),
    }


def learning_rates(schedulers: Sequence[Any], lr: float, per_epoch: int, iterations: int) -> List[float]:
    """The rate of every iteration, from mmengine's own scheduler classes.

    `schedulers` is the config's param_scheduler. Raises ValueError as mmengine would, for instance for a
    warm-up that ends where it begins.
    """
    import torch
    from mmengine.optim import CosineAnnealingLR, LinearLR

    classes = {"LinearLR": LinearLR, "CosineAnnealingLR": CosineAnnealingLR}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    built = []
    for item in schedulers:
        arguments = dict(item)
        kind = arguments.pop("type")
        kind = classes.get(kind if isinstance(kind, str) else kind.__name__, kind)
        if arguments.pop("convert_to_iter_based", False):
            built.append(kind.build_iter_from_epoch(optimizer, epoch_length=per_epoch, **arguments))
        else:
            built.append(kind(optimizer, **arguments))
    trace = []
    for _ in range(iterations):
        trace.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    return trace


def updates(iterations: int, accumulation: int, deepspeed: bool) -> int:
    """Optimizer updates. DeepSpeed drops a last group that is not full; mmengine makes an update of it."""
    return iterations // accumulation if deepspeed else math.ceil(iterations / accumulation)


def iterations_per_epoch(packs: int, batch_size: int, together: int = 1, grouped: int = 1) -> int:
    """Iterations per epoch and rank: mmengine's sampler pads to equal shares, the last batch may be short. XTuner's,
    by length, pads to whole groups of `grouped` batches.
    """
    return math.ceil(math.ceil(packs / together) / (batch_size * grouped)) * grouped


def answers(cfg: Any, within: Sequence[int], iterations: int, once: bool) -> int:
    """Tokens, at most, of the answers that XTuner's hook generates: before training (cut at 50), after the iterations
    `within` the run, and at its end; `once`: unless the same model has then been asked already (hooks.Once).
    """
    hook = next((one for one in cfg.get("custom_hooks", ()) if "evaluation_inputs" in one), None)
    if hook is None:
        return 0
    longest = hook.get("max_new_tokens", 600)  # XTuner's default
    times = len(set(within)) + (0 if once and iterations in within else 1)
    return len(hook["evaluation_inputs"]) * (50 + longest * times)


def grouped(cfg: Any) -> int:
    """How many batches the config's sampler keeps together: those of an update where it groups by length, else 0."""
    return cfg.train_dataloader.sampler.get("per_device_batch_size", 0) // cfg.batch_size


def interval(value: Any, iterations: int) -> int:
    """A setting that is a share of the run (below 1) in iterations, rounded up; a whole number as it is."""
    return math.ceil(value * iterations) if isinstance(value, float) and value < 1 else int(value)


def smallest_warmup(per_epoch: int, epochs: int) -> Optional[float]:
    """Smallest warm-up ratio in hundredths with which mmengine's LinearLR reaches the peak, if any does.

    The ramp ends at int(ratio * epochs * per_epoch) iterations; with one it stays at its start factor for
    ever (the cause of the tutorial's flat loss), with none mmengine refuses to start.
    """
    for hundredths in range(1, 100):
        if int(hundredths / 100 * epochs * per_epoch) >= 2:
            return hundredths / 100
    return None


def reads(run: Run) -> Dict[str, Any]:
    preset_facts.check(run.settings)  # before a tokenizer is fetched
    chosen = run.settings.model.tokenizer
    tiny = run.settings.model.source == "tiny" and not run.settings.model.path
    # A tiny model's folder is named after what it is made of, and may not be there yet.
    tokenizer = Path(chosen) if chosen else folder.tokenizer_file(folder.folder(run))
    if not (chosen or tiny or run.settings.model.path or folder.folder(run).exists()):
        tokenizer = folder.fetch_tokenizer(run)  # the same file, so that the plan still holds when the model is there
        tokenizer = folder.tokenizer_file(tokenizer) if tokenizer.is_dir() else tokenizer
    return {
        "settings": run.settings.model_dump(
            exclude={
                "data": {"files", "sheet", "columns", "skip_blank", "dedupe", "eval_share", "eval_files"},
                "lora": True,
                "adapter": True,
                "merge": True,
                "eval": True,
                "export": True,
                "cluster": True,
            }
        ),
        "dataset": run.dataset,
        "held_out": run.figures("data").get("held_out", 0),
        "tokenizer": folder.folder(run).name if tiny else tokenizer,
        **({"eyes": folder.visual_facts(run) / "config.json"} if preset_facts.pictures(run.settings) else {}),
        "force": run.force,
        "speed": config.speed(run.settings),
        "dtype": config.training_dtype(run.settings),
        "deepspeed": config.deepspeed_text(run.settings),  # a file that is wrong is refused here
        "bench": measurements.BENCH,
        "code": Path(__file__),
    }


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write plan.json; its fields are the figures. Raises PlanRefused for a run that cannot learn."""
    imports.load()
    with run.dataset.open(encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream]
    cfg = config.effective(run.settings)
    tokenizer = folder.tokenizer(run)
    seed = run.settings.train.seed
    if seed is None:
        # XTuner would draw one itself; drawn here, the plan is exact and the run can be repeated.
        seed = drawn_seed(run)
    images = [line.get("sha256", "") for line in lines]
    conversations = [line["conversation"] for line in lines]
    figures = make(run, cfg, conversations, tokenizer, seed, images)
    text = json.dumps(figures, ensure_ascii=False, indent=1) + "\n"
    stopping = unknown(run, figures)
    if stopping and not run.force:
        # The refused plan is kept for reading; no later stage takes it, since this one is not done.
        write_text(run.plan, text)
        lines = "\n".join(f"- {refusal['why']}" for refusal in stopping)

        def remake(trial: Run) -> Dict[str, Any]:
            return make(trial, config.effective(trial.settings), conversations, tokenizer, seed, images)

        if len(conversations) <= SMALL:
            lines += together(run, stopping, remake)
        raise PlanRefused(f"Recipe {run.name} would not learn:\n{lines}\n--force trains all the same.", figures)
    (out / "plan.json").write_text(text, encoding="utf-8")
    return {name: value for name, value in figures.items() if name != "lr_trace"}


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
                else f"\nAll of it together: {_words(found)} ({figures['iterations']} iterations, {figures['updates']} "
                f"updates, {share:.0%} of the answer tokens)"
            )
    return ""


def drawn_seed(run: Run) -> int:
    """The seed of a recipe that names none: drawn once for its folder, so that a stopped run goes on."""
    path = run.folder / "seed"
    if not path.is_file() or not path.read_text(encoding="utf-8").strip().isdigit():
        write_text(path, f"{random.randrange(2**31)}\n")
    return int(path.read_text(encoding="utf-8"))


def make(
    run: Run, cfg: Any, conversations: Sequence[Any], tokenizer: Any, seed: int, images: Sequence[str] = ()
) -> Dict[str, Any]:
    """The plan of a run whose effective config is `cfg`; see the module's text. `images`: of each conversation the sum
    of what it is about; one question about two images is no duplicate.
    """
    train, engine = run.settings.train, bool(config.deepspeed(run.settings))
    pictures = preset_facts.pictures(run.settings)
    tokens = count(conversations, config.template(cfg), tokenizer, cfg.max_length, pictures)
    if len(tokens["masked"]) == len(conversations):
        raise InputWrong(
            f"No token with loss reaches the trainer: every conversation loses its answer at train.max_length="
            f"{cfg.max_length}. The longest has {max(tokens['lengths'])} tokens: "
            f"train.max_length={_next_length(max(tokens['lengths']))}."
        )
    packed = pack(cfg, run.dataset, tokenizer, seed, pictures)
    more, eyes = 0, llava.eyes(run) if pictures else None
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
        "way": config.way(run.settings, cfg.batch_size * cfg.max_length),
        "dtype": config.training_dtype(run.settings),
    }
    # XTuner's hook also evaluates at every checkpoint that the interval makes.
    within = events(every, iterations, events(intervals.get("evaluation_freq", cfg.evaluation_freq), iterations))
    figures["evaluations"] = sorted({0, *within, iterations})
    figures["memory"] = memory.of_run(run, cfg, engine, len(figures["checkpoints"]), eyes, figures["longest_row"])
    if run.settings.model.source != "tiny" and measurements.is_measured(run.settings):
        asked = answers(cfg, within, iterations, config.hooked(train))
        figures["cost"] = measurements.estimate(
            figures, run.settings.plan.card, run.settings.plan.price_per_hour, asked
        )
    figures["refusals"] = refusals(figures, cfg, crash, engine)
    figures["warnings"] = warnings(figures) + of_type(run.settings)
    return figures


def events(every: int, iterations: int, also: Sequence[int] = ()) -> List[int]:
    """Iterations at which something that happens every `every` iterations falls inside the run."""
    return sorted({*range(every, iterations + 1, every), *also})


def by_gpus(packs: int, cfg: Any, together: int, deepspeed: bool, by_length: bool = False) -> Dict[str, Dict[str, int]]:
    """Iterations of each, and updates, on 1, 2, 4 and 8 GPUs, where they can share an update of the same size.

    `cfg` is the config of each of `together` ranks; `by_length`: its sampler groups whole updates.
    """
    table = {}
    for number in (1, 2, 4, 8):
        each = distributed.share(cfg.batch_size, cfg.accumulative_counts * together, number)
        if each is None:
            continue
        kept = each[1] if by_length else 1
        iterations = iterations_per_epoch(packs, each[0], number, kept) * cfg.max_epochs
        table[str(number)] = {"iterations": iterations, "updates": updates(iterations, each[1], deepspeed)}
    return table


def of_type(settings: settings.Settings) -> List[str]:
    """A warning where another type trains than the recipe names."""
    named, trains = config.dtype(settings), config.training_dtype(settings)
    if named == trains:
        return []
    return [
        f"Training is in {trains}, not in the recipe's {named}: XTuner fills DeepSpeed's \"auto\" with what PyTorch "
        f"supports on the card."
    ]


def warnings(plan: Dict[str, Any]) -> List[str]:
    """What is worth knowing and stops nothing."""
    found = []
    if plan["ranks"] > 1:
        found.append(
            f"{plan['ranks']} GPUs share each update of {plan['update_sequences']} sequences, as one would make it: "
            f"{plan['batch_size']} an iteration on each, {plan['accumulative_counts']} iteration(s) an update."
        )
    if plan["packs_repeated"]:
        found.append(
            f"{plan['packs']} packs are no multiple of {plan['ranks']} GPUs: {plan['packs_repeated']} stand in every "
            f"epoch twice."
            if plan["ranks"] > 1
            else f"{plan['packs']} pairs fill no whole update: {plan['packs_repeated']} stand in every epoch twice."
        )
    if plan["duplicates"]:
        found.append(f"{plan['duplicates']} conversations stand in the data twice and weigh double.")
    if plan["updates_with_deepspeed"] != plan["updates_without_deepspeed"]:
        found.append(
            f"{plan['iterations']} iterations are no multiple of accumulative_counts={plan['accumulative_counts']}: "
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
            f"The warm-up ends at iteration {plan['warmup_iterations']}, where it begins; mmengine stops there "
            f"({crash}). Raise it: {remedy}."
        )
    elif plan["lr_peak"] < 0.99 * plan["lr_configured"]:
        found["peak-not-reached"] = (
            f"The learning rate never comes near its peak: it reaches {plan['lr_peak']:.3g} of "
            f"{plan['lr_configured']:.3g}. The warm-up of {plan['warmup_iterations']} iteration(s) is too short for "
            f"mmengine's ramp: {remedy}."
        )
    if plan["updates"] < MIN_UPDATES:
        remedies["few-updates"], made = _more_updates(plan, deepspeed)
        found["few-updates"] = (
            f"Only {plan['updates']} optimizer updates (fewer than {MIN_UPDATES}): {_words(remedies['few-updates'])} "
            f"gives {made}."
        )
    share = plan["answer_tokens_kept"] / plan["answer_tokens"]
    if share < MIN_ANSWERS_KEPT:
        remedies["answers-lost"], how = _more_answers(plan)
        found["answers-lost"] = f"Only {share:.1%} of the answer tokens reach the trainer: {how}."
    if plan["rows_cut"]:
        shown = ", ".join(map(str, plan["rows_cut"][:10])) + (" …" if len(plan["rows_cut"]) > 10 else "")
        remedies["rows-cut"] = {"train.max_length": _next_length(plan["longest_row"])}
        found["rows-cut"] = (
            f"{len(plan['rows_cut'])} conversation(s) are longer than train.max_length={plan['max_length']} and lose "
            f"their end, so the model would not learn to stop (lines {shown} of dataset.jsonl): "
            f"{_words(remedies['rows-cut'])}, or shorten them."
        )
    for name, what in (("evaluation_freq", "evaluation"), ("save_steps", "checkpoint")):
        steps = plan["intervals"].get(name, cfg[name])
        if steps >= plan["iterations"]:
            remedies[f"no-{what}"] = {f"train.{name}": 0.5}
            found[f"no-{what}"] = (
                f"No {what} falls inside the run: train.{name}={steps}, the run has {plan['iterations']} iterations. "
                f"train.{name}=0.5 puts one at half of it."
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


def _words(remedy: Remedy) -> str:
    """As overrides to type."""
    return " ".join(f"{name}={json.dumps(value)}" for name, value in remedy.items())


def _more_updates(plan: Dict[str, Any], deepspeed: bool) -> Tuple[Remedy, int]:
    """(remedy, the updates that it gives)"""
    fitting = plan["iterations"] // MIN_UPDATES
    if fitting:
        return _accumulating(plan, fitting), updates(plan["iterations"], fitting, deepspeed)
    epochs = math.ceil(MIN_UPDATES / plan["iterations_per_epoch"])
    return {**_accumulating(plan, 1), "train.max_epochs": epochs}, epochs * plan["iterations_per_epoch"]


def _accumulating(plan: Dict[str, Any], each: int) -> Remedy:
    """With it every rank accumulates over `each` iterations of the size that they have now."""
    if plan["ranks"] == 1:
        return {"train.accumulative_counts": each}
    return {"train.batch_size": plan["batch_size"], "train.accumulative_counts": each * plan["ranks"]}


def _more_answers(plan: Dict[str, Any]) -> Tuple[Remedy, str]:
    """(remedy, the same as text)"""
    if plan["rows_cut"]:
        longer: Remedy = {"train.max_length": _next_length(plan["longest_row"])}
        return longer, f"{_words(longer)} holds the longest conversation"
    if plan["map_num_proc"] > 1:
        alone: Remedy = {"train.map_num_proc": 1}
        many = plan["map_num_proc"]
        return alone, f"{many} processes pack alone and throw their remainders away: {_words(alone)}"
    unpacked: Remedy = {"train.pack_to_max_length": False}
    return unpacked, f"a shorter train.max_length leaves a smaller remainder, {_words(unpacked)} none"


def _next_length(longest: int) -> int:
    return 2 ** math.ceil(math.log2(longest))
