"""The plan's table: data, schedule, learning rate, memory and cost, as the terminal shows them."""

from typing import Any, Dict, List, Sequence

from rich.console import Console
from rich.table import Table

from recipe.core.text_width import fold
from recipe.core.translation import _, listed, mark, ngettext, sentences, stored
from recipe.reporting.format import seconds

BARS = "▁▂▃▄▅▆▇█"


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
