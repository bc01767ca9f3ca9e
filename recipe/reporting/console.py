"""Prints results in the terminal: the plan, a run's figures, the evaluation, sample answers. Also the plan's PNG."""

import json
import unicodedata
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe.core.run import Run
from recipe.reporting.format import seconds

BARS = "▁▂▃▄▅▆▇█"
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
    shown = ", ".join(map(str, numbers[:limit]))
    return f"{shown}, … ({len(numbers)} in total)" if len(numbers) > limit else shown


def plan_rows(plan: Dict[str, Any]) -> List[Sequence[str]]:
    """The plan as (label, figure) rows."""
    p, cost = plan, plan.get("cost")
    here = str(p["ranks"])
    others = [(f"{n} GPU{'s' * (n != '1')}", v) for n, v in p["by_gpus"].items() if n != here]
    gpus = "".join(f"; on {name} {v['iterations']} ({v['updates']})" for name, v in others)
    answers = f"{p['answer_tokens']:,}; kept {p['answer_tokens_kept']:,}"
    rate = f"peak {p['lr_peak']:.4g} of {p['lr_configured']:.4g} configured"
    if "image_tokens" in p:
        how = ""
        packs = [("pairs", f"{p['packs']}, each of an image of {p['image_tokens']} tokens; seed {p['seed']}")]
    else:
        alone = not p.get("packed", True)
        how, where = ("", "one conversation each") if alone else ("by packing ", f"by {p['map_num_proc']} process(es)")
        packs = [("packs", f"{p['packs']} of {'up to ' * alone}{p['max_length']} tokens, {where}; seed {p['seed']}")]
    lines: List[Sequence[str]] = [
        ("[bold]data[/]", ""),
        (
            "conversations",
            f"{p['rows']}, longest {p['longest_row']} tokens of {p['max_length']}, {p['duplicates']} duplicates",
        ),
        ("held out for evaluation", f"{p['held_out']} more conversations"),
        ("tokens", f"{p['tokens']:,}; kept {how}{p['tokens_kept']:,} ({p['tokens_kept'] / p['tokens']:.1%})"),
        ("answer tokens (with loss)", f"{answers} ({p['answer_tokens_kept'] / p['answer_tokens']:.1%})"),
        ("truncated, fully masked", f"{len(p['rows_cut'])}, {len(p['rows_masked'])}"),
        ("[bold]schedule[/]", ""),
        *packs,
        ("iterations", f"{p['iterations_per_epoch']} per epoch, {p['iterations']} in total{gpus}"),
        (
            "optimizer updates",
            f"{p['updates']} ({p['updates_with_deepspeed']} with DeepSpeed, {p['updates_without_deepspeed']} without)",
        ),
        ("learning rate", f"{rate}, warm-up {p['warmup_iterations']} iterations"),
        ("", sparkline(p["lr_trace"], p["lr_configured"])),
        *([("computed in", p["dtype"])] if "dtype" in p else []),
        ("evaluation at", join_numbers(p["evaluations"])),
        ("checkpoints at", f"{join_numbers(p['checkpoints'])}; keeps the last {p['checkpoints_kept']}"),
    ]
    memory = p.get("memory")
    if memory and not cost:
        lines += [("[bold]GPU memory and disk, computed[/]", ""), *_memory_rows(memory)]
    if cost is None:
        return lines
    return [*lines, *_cost_rows(cost, p["ranks"])]


def _cost_rows(cost: Dict[str, Any], gpus: int) -> List[Sequence[str]]:
    """The bill of planning/bill.py."""
    card = cost["card"] + ", as there is no GPU here (plan.card=A100 names another)" * cost["assumed"]
    rows: List[Sequence[str]] = [("[bold]cost of the 7B model on a new machine[/]", ""), ("card", card)]
    if gpus > 1:
        rows.append(("GPUs", f"{gpus}; iterations if they scale perfectly"))
    for line in cost["lines"]:
        time = line["bound"] if line["seconds"] is None else f"{line['bound']} {seconds(line['seconds'])}".strip()
        rows.append((line["what"], f"{time} ({line['basis']})"))
    again = f"{seconds(cost['seconds_again'])} of it with every training"
    rows.append(("in all", f"{_total(cost)}, {again}{_money(cost)}"))
    dated = [price for price in cost["prices"] if "source" in price]
    rows += [(f"  {price['platform']}", f"price of {price['date']}: {price['source']}") for price in dated]
    rows += [(f"on {other['card']}", f"{_total(other)}{_money(other)}") for other in cost["others"]]
    rows.append(("prices", "of the card alone; disks are billed separately, and on Vast.ai so is traffic"))
    rows.append(("GPU memory", f"{cost['memory_mib']:,} MiB"))
    what = "environment, model, checkpoints, adapter and merged model"
    rows.append(("disk", f"{cost['disk_gb']} GB for {what}; {cost['traffic_gb']} GB are downloaded"))
    return rows


def _total(cost: Dict[str, Any]) -> str:
    return {"at least": "more than ", "unknown": "without iterations "}.get(cost["bound"], "about ") + seconds(
        cost["seconds_in_all"]
    )


def _money(cost: Dict[str, Any]) -> str:
    """What the whole run costs, by platform; "" where no price is known."""

    def amount(price: Dict[str, Any]) -> str:
        low, high = (f"{one:.2f}" for one in price["cost"])
        shown = low if low == high else f"{low} to {high}"
        return f"{price['platform']} {shown} {price.get('currency', '')}".strip()

    return "".join(f"; {amount(price)}" for price in cost["prices"])


def _memory_rows(memory: Dict[str, Any]) -> List[Sequence[str]]:
    """Memory computed from the model's shape, alone and with each DeepSpeed stage."""

    def gib(mib: float) -> str:
        return f"{mib / 1024:.1f}"

    lines: List[Sequence[str]] = [
        (
            f"{memory['method']}, one GPU",
            f"{gib(memory['mib'])} GiB: weights {gib(memory['weights'])}, "
            f"gradients and moments {gib(memory['trained'])}, layers and logits {gib(memory['work'])}; "
            f"{memory['parameters'] / 1e9:.2f} billion parameters",
        )
    ]
    for row in memory["zero"]:
        ram = f", and {gib(max(row['host'].values()))} GiB of RAM" if any(row["host"].values()) else ""
        each = ", ".join(f"{gpus}: {gib(mib)}" for gpus, mib in row["gpu"].items())
        lines.append((f"  deepspeed_{row['stage']}", f"GiB per GPU, by number of GPUs: {each}{ram}"))
    gb = {name: f"{size / 1e9:.1f}" for name, size in memory["disk"].items()}
    each = f"{gb['checkpoints']} at most ({gb['checkpoint']} each)"
    lines.append(("disk, GB", f"model {gb['model']}, checkpoints {each}, merged model {gb['merged']}"))
    return lines


def show_plan(plan: Dict[str, Any], console: Console) -> None:
    """Print the plan."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, figure in plan_rows(plan):
        table.add_row(what, figure)
    console.print(table)
    for warning in plan["warnings"]:
        console.print(f"[yellow]note:[/] {warning}", highlight=False)


def save_learning_rate(plan: Dict[str, Any], path: Path) -> None:
    """Plot the planned learning rate, the configured peak, evaluations and checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    iterations = range(1, len(plan["lr_trace"]) + 1)
    axes.plot(iterations, plan["lr_trace"], label=f"learning rate (peak {plan['lr_peak']:.3g})")
    axes.axhline(plan["lr_configured"], linestyle="--", color="grey", label=f"configured {plan['lr_configured']:.3g}")
    for name, marker in (("checkpoints", "s"), ("evaluations", "o")):
        at = [n for n in plan[name] if n > 0]
        axes.plot(at, [plan["lr_trace"][n - 1] for n in at], marker, fillstyle="none", label=name)
    axes.set(xlabel="iteration", ylabel="learning rate", yscale="log", title=f"{plan['updates']} optimizer updates")
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
    lines.append(("rows", f"{d['rows']} in {d['conversations']} conversations; {d['held_out']} more held out"))
    p = figures["plan"]
    lines.append(("tokens", f"{p['tokens']:,}, kept {p['tokens_kept']:,} ({p['tokens_kept'] / p['tokens']:.1%})"))
    t = figures["train"]
    lines.append(("iterations", str(t["iterations"])))
    lines.append(("optimizer updates", str(t["updates"])))
    lines.append(("peak learning rate", f"{p['lr_peak']:.4g} of {p['lr_configured']:.4g} configured"))
    fall = 1 - t["loss_last"] / t["loss_first"]
    lines.append(("loss first → last", f"{t['loss_first']:.3f} → {t['loss_last']:.3f} ({-fall:+.0%})"))
    if "merge" in figures:
        m = figures["merge"]
        lines.append(
            ("weights changed", f"{m['share_changed']:.1%}, in {m['tensors_changed']} of {m['tensors']} tensors")
        )
    lines.append(("seconds", ", ".join(f"{name} {value:.0f}" for name, value in took.items())))
    if t.get("time_breakdown"):
        starts = "training, all starts" if t.get("resumed_from") else "training"
        lines.append((starts, ", ".join(f"{what} {value:.0f}" for what, value in t["time_breakdown"].items())))
    lines.append(("peak memory (RAM)", f"{max(e['peak_memory_mb'] for e in run.manifest['stages'].values()):,} MB"))
    table = Table(title=f"Recipe {run.name}", show_header=False, title_justify="left")
    for name, value in lines:
        table.add_row(name, value)
    return table


def show_evaluation(run: Run, console: Console) -> None:
    """Print eval.json: metrics of base and tuned side by side, and some answers."""
    found = json.loads((run.folder / "eval.json").read_text(encoding="utf-8"))
    table = Table(
        title=f"Held out: {found['conversations']} conversations, {found['tokens']:,} tokens", title_justify="left"
    )
    for heading in ("", "base", "tuned", "data"):
        table.add_column(heading, justify="right" if heading else "left")
    for what, form, key in METRICS:
        row = [form.format(*_values(found["models"][name], key)) for name in ("base", "tuned")]
        table.add_row(what, *row, f"{found['reference_length']:.0f}" if key == "answer_length" else "")
    console.print(table)
    for sample in found["samples"][:MAX_SAMPLES]:
        _show_sample(sample["question"], sample, ("base", "tuned"), console, sample["reference"])
    click.echo(f"\n{evaluation_verdict(run)}")


def evaluation_verdict(run: Run) -> str:
    """The verdict in one line, with an explanation for the tiny model."""
    figures = run.figures("eval")
    tiny = run.settings.model.is_tiny and figures["verdict"] == "worse"
    why = "\nThis is expected: a tiny model with random weights only memorizes its training data."
    return click.style(figures["summary"], bold=True) + (why if tiny else "")


METRICS = (
    ("loss, nats per token", "{:.3f}", "loss"), ("  its 95 % interval", "{:.3f} to {:.3f}", "loss_interval"),
    ("perplexity", "{:,.1f}", "perplexity"), ("BLEU-4", "{:.1f}", "bleu4"), ("ROUGE-L", "{:.1f}", "rouge_l"),
    ("chrF", "{:.1f}", "chrf"), ("answers with repetition", "{:.0%}", "repetition"),
    ("answers copied from training", "{:.0%}", "copied"), ("answers without an end", "{:.0%}", "never_stops"),
    ("mean answer length, characters", "{:.0f}", "answer_length"),
)  # fmt: skip
MAX_SAMPLES = 3


def _values(model: Dict[str, Any], key: str) -> List[float]:
    return model[key] if isinstance(model[key], list) else [model[key]]


def show_samples(run: Run, console: Console) -> None:
    """Print the evaluation questions with the answers of base and merged model."""
    if run.settings.model.is_tiny:
        click.echo("\nThe base model has random weights, so its answers are noise.")
    for sample in json.loads((run.folder / "samples.json").read_text(encoding="utf-8")):
        _show_sample(sample["question"], sample, ("base", "merged"), console)


def _show_sample(
    question: str, sample: Dict[str, Any], names: Sequence[str], console: Console, reference: str = ""
) -> None:
    table = Table.grid(padding=(0, 0, 0, 2))
    if reference:
        table.add_row("data", _shorten(reference))
    for name in names:
        answer = _shorten(sample[name])
        if not sample[f"{name}_ended"]:
            answer.append(" … (hit the length limit)", "dim")
        table.add_row(name, answer)
    console.print(Text(f"\n{question}", "bold"))
    console.print(table)


def _shorten(text: str) -> Text:
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else "�" for c in text)
    return Text(f"{text[:MAX_ANSWER]}{'…' if len(text) > MAX_ANSWER else ''}")
