"""Prints results in the terminal: the plan, a run's figures, the evaluation, sample answers. Also the plan's PNG."""

import contextlib
import json
import unicodedata
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe.core.run import Run
from recipe.core.text_width import fold
from recipe.core.translation import _, english, listed, mark, ngettext, sentences, stored
from recipe.reporting import charts
from recipe.reporting.format import seconds

BARS = "▁▂▃▄▅▆▇█"
ITERATION, LEARNING_RATE = mark("iteration"), mark("learning rate")
PARTS = (mark("start"), mark("answers"))  # of TimingHook's time_breakdown, beside iterations and checkpoints
MAX_ANSWER = 400  # characters of an answer in the closing samples


def sparkline(values: Sequence[float], top_value: float = 0.0, width: int = 48) -> str:
    """`values` as at most `width` bars; `top_value` (default: the maximum) is a full bar."""
    if not values:
        return ""
    step = max(1, len(values) / width)
    picked = [
        max(values[int(i * step) : max(int(i * step) + 1, int((i + 1) * step))]) for i in range(int(len(values) / step))
    ]
    top = top_value or max(picked) or 1.0
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in picked)


def join_numbers(numbers: Sequence[int], limit: int = 8) -> str:
    shown = listed(numbers[:limit])
    return _("{numbers}, … ({n} in total)", numbers=shown, n=len(numbers)) if len(numbers) > limit else shown


def plan_rows(plan: Dict[str, Any]) -> List[Sequence[str]]:
    """The plan as (label, figure) rows."""
    p, cost = plan, plan.get("cost")
    iterations = _(
        "{per_epoch} per epoch, {iterations} in total", per_epoch=p["iterations_per_epoch"], iterations=p["iterations"]
    )
    others = [
        ngettext(
            "on {n} GPU {iterations} ({updates})",
            "on {n} GPUs {iterations} ({updates})",
            int(gpus),
            iterations=figures["iterations"],
            updates=figures["updates"],
        )
        for gpus, figures in p["by_gpus"].items()
        if gpus != str(p["ranks"])
    ]
    answers = _(
        "{tokens:,}; kept {kept:,} ({share:.1%})",
        tokens=p["answer_tokens"],
        kept=p["answer_tokens_kept"],
        share=p["answer_tokens_kept"] / p["answer_tokens"],
    )
    is_packed = p.get("packed", True) and "image_tokens" not in p
    kept = {"tokens": p["tokens"], "kept": p["tokens_kept"], "share": p["tokens_kept"] / p["tokens"]}
    conversations = ngettext(
        "{rows}, longest {longest} tokens of {limit}, {n} duplicate",
        "{rows}, longest {longest} tokens of {limit}, {n} duplicates",
        p["duplicates"],
        rows=p["rows"],
        longest=p["longest_row"],
        limit=p["max_length"],
    )
    updates = _(
        "{updates} ({with_deepspeed} with DeepSpeed, {without} without)",
        updates=p["updates"],
        with_deepspeed=p["updates_with_deepspeed"],
        without=p["updates_without_deepspeed"],
    )
    warmup = ngettext(
        "peak {peak:.4g} of {configured:.4g} configured, warm-up {n} iteration",
        "peak {peak:.4g} of {configured:.4g} configured, warm-up {n} iterations",
        p["warmup_iterations"],
        peak=p["lr_peak"],
        configured=p["lr_configured"],
    )
    checkpoints = _("{numbers}; keeps the last {n}", numbers=join_numbers(p["checkpoints"]), n=p["checkpoints_kept"])
    lines: List[Sequence[str]] = [
        (_heading(_("data")), ""),
        (_("conversations"), conversations),
        (
            _("held out for evaluation"),
            ngettext("{n} more conversation", "{n} more conversations", p["held_out"]),
        ),
        (
            _("tokens"),
            _("{tokens:,}; kept by packing {kept:,} ({share:.1%})", **kept)
            if is_packed
            else _("{tokens:,}; kept {kept:,} ({share:.1%})", **kept),
        ),
        (_("answer tokens (with loss)"), answers),
        (_("truncated, fully masked"), listed((len(p["rows_cut"]), len(p["rows_masked"])))),
        (_heading(_("schedule")), ""),
        _packs(p),
        (_("iterations"), _("; ").join([iterations, *others])),
        (_("optimizer updates"), updates),
        (_("learning rate"), warmup),
        ("", sparkline(p["lr_trace"], p["lr_configured"])),
        *([(_("computed in"), stored(p["dtype"]))] if "dtype" in p else []),
        (_("evaluation at"), join_numbers(p["evaluations"])),
        (_("checkpoints at"), checkpoints),
    ]
    memory = p.get("memory")
    if memory and not cost:
        lines += [(_heading(_("GPU memory and disk, computed")), ""), *_memory_rows(memory)]
    if cost is None:
        return lines
    return [*lines, *_cost_rows(cost, p["ranks"])]


def _heading(text: str) -> str:
    return f"[bold]{text}[/]"


def _packs(p: Dict[str, Any]) -> Sequence[str]:
    """What a training sequence is made of."""
    if "image_tokens" in p:
        pairs = _(
            "{n}, each of an image of {tokens} tokens; seed {seed}",
            n=p["packs"],
            tokens=p["image_tokens"],
            seed=p["seed"],
        )
        return _("pairs"), pairs
    if not p.get("packed", True):
        alone = _(
            "{n} of up to {tokens} tokens, one conversation each; seed {seed}",
            n=p["packs"],
            tokens=p["max_length"],
            seed=p["seed"],
        )
        return _("packs"), alone
    return _("packs"), _(
        "{n} of {tokens} tokens, by {processes} process(es); seed {seed}",
        n=p["packs"],
        tokens=p["max_length"],
        processes=p["map_num_proc"],
        seed=p["seed"],
    )


BOUNDS = {"at most": mark("at most {time}"), "at least": mark("at least {time}")}  # of planning/bill.py


def _cost_rows(cost: Dict[str, Any], gpus: int) -> List[Sequence[str]]:
    """The bill of planning/bill.py."""
    card = cost["card"]
    if cost["assumed"]:
        card = _("{card}, as there is no GPU here (plan.card=A100 names another)", card=card)
    rows: List[Sequence[str]] = [(_heading(_("cost of the 7B model on a new machine")), ""), (_("card"), card)]
    if gpus > 1:
        rows.append((_("GPUs"), _("{n}; iterations if they scale perfectly", n=gpus)))
    for line in cost["lines"]:
        time = stored(line["bound"]) if line["seconds"] is None else _bounded(line["bound"], seconds(line["seconds"]))
        rows.append((stored(line["what"]), _("{figure} ({why})", figure=time, why=stored(line["basis"]))))
    again = _("{time} of it with every training", time=seconds(cost["seconds_again"]))
    rows.append((_("in all"), _("{first}, {second}", first=_total(cost), second=again) + _money(cost)))
    dated = [price for price in cost["prices"] if "source" in price]
    rows += [
        (
            f"  {stored(price['platform'])}",
            _("price of {date}: {source}", date=price["date"], source=stored(price["source"])),
        )
        for price in dated
    ]
    rows += [(_("on {card}", card=other["card"]), f"{_total(other)}{_money(other)}") for other in cost["others"]]
    rows.append((_("prices"), _("of the card alone; disks are billed separately, and on Vast.ai so is traffic")))
    rows.append((_("GPU memory"), f"{cost['memory_mib']:,} MiB"))
    disk = _(
        "{disk} GB for environment, model, checkpoints, adapter and merged model; {traffic} GB are downloaded",
        disk=cost["disk_gb"],
        traffic=cost["traffic_gb"],
    )
    rows.append((_("disk"), disk))
    return rows


def _bounded(bound: str, time: str) -> str:
    return _(BOUNDS[bound], time=time) if bound in BOUNDS else f"{stored(bound)} {time}".strip()


def _total(cost: Dict[str, Any]) -> str:
    time = seconds(cost["seconds_in_all"])
    if cost["bound"] == "at least":
        return _("more than {time}", time=time)
    if cost["bound"] == "unknown":
        return _("without iterations {time}", time=time)
    return _("about {time}", time=time)


def _money(cost: Dict[str, Any]) -> str:
    """What the whole run costs, by platform; "" where no price is known."""

    def amount(price: Dict[str, Any]) -> str:
        low, high = (f"{one:.2f}" for one in price["cost"])
        shown = low if low == high else _("{low} to {high}", low=low, high=high)
        return f"{stored(price['platform'])} {shown} {price.get('currency', '')}".strip()

    return "".join(_("; ") + amount(price) for price in cost["prices"])


def _memory_rows(memory: Dict[str, Any]) -> List[Sequence[str]]:
    """Memory computed from the model's shape, alone and with each DeepSpeed stage."""

    def gib(mib: float) -> str:
        return f"{mib / 1024:.1f}"

    figures = _(
        "{total} GiB: weights {weights}, gradients and moments {trained}, layers and logits {work}; {parameters:.2f} "
        "billion parameters",
        total=gib(memory["mib"]),
        weights=gib(memory["weights"]),
        trained=gib(memory["trained"]),
        work=gib(memory["work"]),
        parameters=memory["parameters"] / 1e9,
    )
    lines: List[Sequence[str]] = [(_("{method}, one GPU", method=stored(memory["method"])), figures)]
    for row in memory["zero"]:
        each = listed(f"{gpus}: {gib(mib)}" for gpus, mib in row["gpu"].items())
        figures = _("GiB per GPU, by number of GPUs: {each}", each=each)
        if any(row["host"].values()):
            ram = gib(max(row["host"].values()))
            figures = _("GiB per GPU, by number of GPUs: {each}, and {ram} GiB of RAM", each=each, ram=ram)
        lines.append((f"  deepspeed_{row['stage']}", figures))
    gb = {name: f"{size / 1e9:.1f}" for name, size in memory["disk"].items()}
    disk = _(
        "model {model}, checkpoints {checkpoints} at most ({checkpoint} each), merged model {merged}",
        model=gb["model"],
        checkpoints=gb["checkpoints"],
        checkpoint=gb["checkpoint"],
        merged=gb["merged"],
    )
    lines.append((_("disk, GB"), disk))
    return lines


def show_plan(plan: Dict[str, Any], console: Console) -> None:
    """Print the plan."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, figure in plan_rows(plan):
        table.add_row(what, figure)
    fold(table)
    console.print(table)
    for warning in plan["warnings"]:
        note = _("note:")
        rest = sentences(note, stored(warning))[len(note) :]
        console.print(f"[yellow]{note}[/]{rest}", highlight=False)


def save_learning_rate(plan: Dict[str, Any], path: Path) -> None:
    """Plot the planned learning rate, the configured peak, evaluations and checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peak, configured = f"{plan['lr_peak']:.3g}", f"{plan['lr_configured']:.3g}"
    # Without a font that has Chinese characters, the picture's texts are English.
    has_fonts = charts.can_draw(ITERATION, LEARNING_RATE)
    with contextlib.nullcontext() if has_fonts else english(), pyplot.rc_context(charts.font_settings()):
        figure, axes = pyplot.subplots(figsize=(8, 4))
        iterations = range(1, len(plan["lr_trace"]) + 1)
        axes.plot(iterations, plan["lr_trace"], label=_("learning rate (peak {rate})", rate=peak))
        axes.axhline(plan["lr_configured"], linestyle="--", color="grey", label=_("configured {rate}", rate=configured))
        for name, label, marker in (("checkpoints", _("checkpoints"), "s"), ("evaluations", _("evaluations"), "o")):
            at = [n for n in plan[name] if n > 0]
            axes.plot(at, [plan["lr_trace"][n - 1] for n in at], marker, fillstyle="none", label=label)
        updates = ngettext("{n} optimizer update", "{n} optimizer updates", plan["updates"])
        axes.set(xlabel=_(ITERATION), ylabel=_(LEARNING_RATE), yscale="log", title=updates)
        axes.legend()
        figure.tight_layout()
        figure.savefig(str(path), format="png", dpi=120)
        pyplot.close(figure)


def summary_table(run: Run) -> Table:
    """A finished run's figures from its manifest."""
    figures = {name: entry["figures"] for name, entry in run.manifest["stages"].items()}
    took = {name: entry["seconds"] for name, entry in run.manifest["stages"].items()}
    lines: List[Tuple[str, str]] = []
    d = figures["data"]
    rows = _(
        "{rows} in {conversations} conversations; {held_out} more held out",
        rows=d["rows"],
        conversations=d["conversations"],
        held_out=d["held_out"],
    )
    lines.append((_("rows"), rows))
    p = figures["plan"]
    share = p["tokens_kept"] / p["tokens"]
    kept = _("{tokens:,}, kept {kept:,} ({share:.1%})", tokens=p["tokens"], kept=p["tokens_kept"], share=share)
    lines.append((_("tokens"), kept))
    t = figures["train"]
    lines.append((_("iterations"), str(t["iterations"])))
    lines.append((_("optimizer updates"), str(t["updates"])))
    peak = _("{peak:.4g} of {configured:.4g} configured", peak=p["lr_peak"], configured=p["lr_configured"])
    lines.append((_("peak learning rate"), peak))
    fall = 1 - t["loss_last"] / t["loss_first"]
    lines.append((_("loss first → last"), f"{t['loss_first']:.3f} → {t['loss_last']:.3f} ({-fall:+.0%})"))
    if "merge" in figures:
        m = figures["merge"]
        changed = _(
            "{share:.1%}, in {n} of {tensors} tensors",
            share=m["share_changed"],
            n=m["tensors_changed"],
            tensors=m["tensors"],
        )
        lines.append((_("weights changed"), changed))
    lines.append((_("seconds"), listed(f"{name} {value:.0f}" for name, value in took.items())))
    if t.get("time_breakdown"):
        starts = _("training, all starts") if t.get("resumed_from") else _("training")
        lines.append((starts, listed(f"{stored(what)} {value:.0f}" for what, value in t["time_breakdown"].items())))
    memory = max(e["peak_memory_mb"] for e in run.manifest["stages"].values())
    lines.append((_("peak memory (RAM)"), f"{memory:,} MB"))
    table = Table(title=_("Recipe {name}", name=run.name), show_header=False, title_justify="left")
    for name, value in lines:
        table.add_row(name, value)
    fold(table)
    return table


def show_evaluation(run: Run, console: Console) -> None:
    """Print eval.json: metrics of base and tuned side by side, and some answers."""
    found = json.loads((run.folder / "eval.json").read_text(encoding="utf-8"))
    title = ngettext(
        "Held out: {n} conversation, {tokens:,} tokens",
        "Held out: {n} conversations, {tokens:,} tokens",
        found["conversations"],
        tokens=found["tokens"],
    )
    table = Table(title=title, title_justify="left")
    for heading in ("", _("base"), _("tuned"), _("data")):
        table.add_column(heading, justify="right" if heading else "left")
    for what, form, key in METRICS:
        row = [_figure(form, found["models"][name][key]) for name in TUNED]
        indent = "  " if key.endswith("_interval") else ""
        table.add_row(indent + _(what), *row, f"{found['reference_length']:.0f}" if key == "answer_length" else "")
    console.print(table)
    for sample in found["samples"][:MAX_SAMPLES]:
        _show_sample(sample["question"], sample, TUNED, console, sample["reference"])
    click.echo(f"\n{evaluation_verdict(run)}")


def evaluation_verdict(run: Run) -> str:
    """The verdict in one line, with an explanation for the tiny model."""
    figures = run.figures("eval")
    tiny = run.settings.model.is_tiny and figures["verdict"] == "worse"
    why = _("This is expected: a tiny model with random weights only memorizes its training data.")
    return click.style(stored(figures["summary"]), bold=True) + (f"\n{why}" if tiny else "")


METRICS = (
    (mark("loss, nats per token"), "{:.3f}", "loss"),
    (mark("its 95 % interval"), "{:.3f}", "loss_interval"),
    (mark("perplexity"), "{:,.1f}", "perplexity"), ("BLEU-4", "{:.1f}", "bleu4"), ("ROUGE-L", "{:.1f}", "rouge_l"),
    ("chrF", "{:.1f}", "chrf"), (mark("answers with repetition"), "{:.0%}", "repetition"),
    (mark("answers copied from training"), "{:.0%}", "copied"),
    (mark("answers without an end"), "{:.0%}", "never_stops"),
    (mark("mean answer length, characters"), "{:.0f}", "answer_length"),
)  # fmt: skip
TUNED = {"base": mark("base"), "tuned": mark("tuned")}
MERGED = {"base": mark("base"), "merged": mark("merged")}
MAX_SAMPLES = 3


def _figure(form: str, value: Any) -> str:
    if isinstance(value, list):
        return _("{low} to {high}", low=form.format(value[0]), high=form.format(value[1]))
    return form.format(value)


def show_samples(run: Run, console: Console) -> None:
    """Print the evaluation questions with the answers of base and merged model."""
    if run.settings.model.is_tiny:
        click.echo("\n" + _("The base model has random weights, so its answers are noise."))
    for sample in json.loads((run.folder / "samples.json").read_text(encoding="utf-8")):
        _show_sample(sample["question"], sample, MERGED, console)


def _show_sample(
    question: str, sample: Dict[str, Any], names: Dict[str, str], console: Console, reference: str = ""
) -> None:
    table = Table.grid(padding=(0, 0, 0, 2))
    if reference:
        table.add_row(_("data"), _shorten(reference))
    for name, label in names.items():
        answer = _shorten(sample[name])
        if not sample[f"{name}_ended"]:
            answer.append(f" … {_('(hit the length limit)')}", "dim")
        table.add_row(_(label), answer)
    console.print(Text(f"\n{question}", "bold"))
    console.print(table)


def _shorten(text: str) -> Text:
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "�" for c in text)
    return Text(f"{text[:MAX_ANSWER]}{'…' if len(text) > MAX_ANSWER else ''}")
