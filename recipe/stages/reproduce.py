"""The tutorial to the letter, compared line by line with its published log.

On an NVIDIA GPU that is the tutorial's recipe with the 7B model; elsewhere the same with a tiny InternLM2 that
has the given tokenizer's vocabulary, and the lines that this cannot show are said to be not comparable. The
published run drew its seed at random; the smallest seed that gives its 17 iterations an epoch stands in.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import tomli

from recipe.core import settings
from recipe.core.host import gpus
from recipe.core.run import Run
from recipe.core.text_width import fold
from recipe.core.translation import _, mark, sentences
from recipe.planning import schedule
from recipe.planning.tokens import count
from recipe.training.log_lines import parse_iterations
from recipe.xtuner import config

PUBLISHED = Path(__file__).with_name("published.toml")
EQUAL, DIFFERS = mark("equal"), mark("DIFFERS")
SEEDS = 1000  # a third of all seeds fit
# What a machine without a GPU changes, and nothing else.
WITHOUT_GPU = ('model.source="tiny"', 'train.method="lora"', 'train.dtype="fp32"', 'train.deepspeed=""')


def published() -> Dict[str, Any]:
    """The published log's figures (published.toml)."""
    return tomli.loads(PUBLISHED.read_text(encoding="utf-8"))


def packs_of(lengths: Sequence[int], seed: int, processes: int, max_length: int) -> int:
    """Packs that XTuner makes of rows of these token lengths: shuffled, cut into `processes` shards, each
    packed alone, its remainder thrown away (a shard too short for one pack gives one short pack).

    Follows datasets' unseeded shuffle, which takes its seed from numpy's global state, seeded by the trainer,
    and datasets' contiguous shards. Only to search for a seed: the plan counts with XTuner's own code.
    """
    import numpy

    state = numpy.random.RandomState(seed).get_state()
    shuffle_seed = int(state[1][0])  # a fresh state stands at position 624: datasets takes the first word then
    order = numpy.random.default_rng(shuffle_seed).permutation(len(lengths))
    shards = numpy.array_split(numpy.asarray(lengths)[order], min(processes, len(lengths)))
    return sum(max(1, int(shard.sum()) // max_length) for shard in shards)


def find_seed(lengths: Sequence[int], cfg: Any, per_epoch: int) -> int:
    """Smallest seed with which the data give `per_epoch` iterations an epoch; 0 if there is none."""
    for seed in range(SEEDS):
        packs = packs_of(lengths, seed, config.dataset(cfg).get("map_num_proc", 32), cfg.max_length)
        if schedule.iterations_per_epoch(packs, cfg.batch_size) == per_epoch:
            return seed
    return 0


def overrides(given: List[str]) -> List[str]:
    """The tutorial's recipe on this machine: as it is with a GPU, on a tiny model without one."""
    return [*given, *(() if gpus() else WITHOUT_GPU)]


def with_seed(run: Run) -> None:
    """Set the run's seed to one that gives the published number of iterations (needs the dataset)."""
    from recipe.base_model import tokenizer
    from recipe.core import imports
    from recipe.xtuner import config

    imports.load()
    with run.dataset.open(encoding="utf-8") as stream:
        conversations = [json.loads(line)["conversation"] for line in stream]
    cfg = config.effective(run.settings)
    tokens = count(conversations, cfg.prompt_template, tokenizer.tokenizer(run), cfg.max_length)
    seed = find_seed(tokens["lengths"], cfg, published()["iterations_per_epoch"])
    run.settings = settings.replace(run.settings, "train.seed", seed)


def compare(run: Run) -> Tuple[List[Tuple[str, str, str, str]], bool]:
    """([(line, published, obtained, verdict)], whether every comparable line is equal).

    A verdict is EQUAL, DIFFERS, or why the line is not comparable.
    """
    page = published()
    planned, trained = run.figures("plan"), run.figures("train")
    real_model = run.settings.model.source != "tiny"
    on_card = bool(gpus()) and page["card"] in gpus()[0]["name"]
    steps = parse_iterations((run.root / trained["log"]).read_text(encoding="utf-8", errors="replace"))
    lines: List[Tuple[str, str, str, str]] = []

    def line(what: str, theirs: Any, ours: Any, comparable: bool = True, why: str = "") -> None:
        verdict = _("not comparable: {why}", why=why)
        if comparable:
            verdict = EQUAL if str(theirs) == str(ours) else DIFFERS
        lines.append((what, str(theirs), str(ours), verdict))

    same = planned["tokens"] == page["tokens"]
    other = _("another workbook or tokenizer, other lengths")
    line(_("tokens"), page["tokens"], planned["tokens"], same, other)
    line(_("iterations an epoch"), page["iterations_per_epoch"], planned["iterations_per_epoch"], same, other)
    line(_("iterations"), page["iterations"], trained["iterations"], same, other)
    line(_("updates by DeepSpeed"), page["updates"], planned["updates_with_deepspeed"], same, other)
    deepspeed = bool(run.settings.train.deepspeed)
    line(
        _("updates made"), page["updates"], trained["updates"], deepspeed, _("without DeepSpeed, which drops the rest")
    )
    for entry in page["log"]:
        rate = steps.get(entry["iteration"], {}).get("lr", 0)
        what = _("learning rate at {iteration}", iteration=entry["iteration"])
        line(what, f"{entry['lr']:.4e}", f"{rate:.4e}", same, other)
    last = page["log"][-1]["iteration"]
    for entry in page["log"]:
        if entry["iteration"] in (10, last):
            ours = steps.get(entry["iteration"], {})
            why = _("the seed of the published run is unknown") if real_model else _("another, tiny model")
            what = _("loss at {iteration}", iteration=entry["iteration"])
            line(what, f"{entry['loss']:.4f}", f"{ours.get('loss', 0):.4f}", False, why)
    ours = steps.get(last, {})
    why = _("another card") if real_model and gpus() else _("no GPU, a tiny model")
    line(_("GPU memory, MB"), page["log"][-1]["memory_mb"], int(ours.get("memory_mb", 0)), False, why)
    line(_("s/iteration"), page["log"][-1]["seconds"], ours.get("seconds", 0), False, _("noise") if on_card else why)
    return lines, all(verdict != DIFFERS for *_line, verdict in lines)


def show(run: Run, console: Any) -> bool:
    """Print published against obtained and the verdict; return whether every comparable line is equal."""
    from rich.table import Table

    lines, equal = compare(run)
    table = Table(
        "", _("published"), _("obtained"), "", title=_("The tutorial, published and reproduced"), title_justify="left"
    )
    for what, theirs, ours, verdict in lines:
        style = {EQUAL: "green", DIFFERS: "bold red"}.get(verdict, "dim")
        table.add_row(what, theirs, ours, f"[{style}]{_(verdict) if verdict in (EQUAL, DIFFERS) else verdict}[/]")
    fold(table)
    console.print(table)
    merged = run.figures("merge")
    found = _(
        "Verdict: the run changed {n:,} of {weights:,} weights ({share:.2%}); fp16 loses {lost:.0%} of what it "
        "trained.",
        n=merged["weights_changed"],
        weights=merged["weights"],
        share=merged["share_changed"],
        lost=run.figures("adapter")["underflow_share"],
    )
    end = _("It trained something.") if merged["weights_changed"] else _("It trained nothing.")
    console.print(sentences(found, end), highlight=False)
    return equal
