"""Prints a run's results in the terminal: its figures, the evaluation, sample answers."""

import json
import unicodedata
from typing import Any, Dict, List, Tuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipe.core.run import Run
from recipe.core.text_width import fold
from recipe.core.translation import _, listed, mark, ngettext, stored

PARTS = (mark("start"), mark("answers"))  # of TimingHook's time_breakdown, beside iterations and checkpoints
MAX_ANSWER = 400  # characters of an answer in the closing samples


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
