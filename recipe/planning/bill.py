"""Adds up what a run costs on a newly rented machine, from the download to the evaluation: time, traffic, disk, money.

Each line says on which card it was measured. Nothing is scaled from one card to another: a card on which no iteration
was measured gets a bound from one that is slower or faster in every respect (prices.toml), or no figure.

The texts are stored, so they are English; what shows them translates them by `stored`.
"""

import functools
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core import host, measurements
from recipe.core.commands import command_line
from recipe.core.settings import Settings
from recipe.core.translation import _, english, mark

PRICES = Path(__file__).with_name("prices.toml")
# What a number of seconds means.
EXACT, AT_MOST, AT_LEAST, UNKNOWN = "", mark("at most"), mark("at least"), mark("unknown")
SETUP = (mark("environment"), mark("base model"))  # done once on a machine
ITERATIONS = mark("training: iterations")
# What the iterations are scaled from, with its source, and the sources of prices.toml that have words to translate.
BASES = (
    mark("{batch}×{length} on {card}: {source}"),
    mark("{batch}×{length} on {card}, {way}: {source}"),
    mark("{batch}×{length} on {card}, XTuner's own step, not {way}: {source}"),
    mark("{address}, as a report of that day copied it; members pay 5 % less"),
    mark("{address}, its lowest price"),
    mark("https://www.runpod.io/pricing, copied in {address}"),
)


@functools.lru_cache(maxsize=None)
def _table() -> Dict[str, Any]:
    import tomli

    found: Dict[str, Any] = tomli.loads(PRICES.read_text(encoding="utf-8"))
    return found


def cards() -> List[Dict[str, Any]]:
    """The cards that plan compares: {name, tflops, gb_per_s, bf16 if false, source}, the slowest first."""
    found: List[Dict[str, Any]] = _table()["card"]
    return found


def prices(card: str) -> List[Dict[str, Any]]:
    """The dated prices of a card: {platform, card, per_hour (lowest, highest), currency, date, source}."""
    return [price for price in _table()["price"] if _is_card(price["card"], card)]


def _is_card(name: str, card: str) -> bool:
    """Whether `card`, as nvidia-smi or a user names it (4090), is the card `name`; a 4090 D and a Ti are others."""
    number, text = name.lower().replace("rtx ", ""), card.lower()
    is_named = re.search(rf"(?:rtx|(?<![a-z0-9])){number}(?![a-z0-9])", text)
    return bool(is_named) and not {"d", "ti", "super", "laptop"} & set(re.split(r"[\s-]+", text))


def bill(plan: Dict[str, Any], settings: Settings, answers: int) -> Dict[str, Any]:
    """Cost of the planned run on the recipe's card: measurements.estimate's fields, and

    lines: [{what, seconds (None: unknown), bound, basis}]; seconds_in_all and seconds_again (environment and model are
    there); bound; answers (tokens at most); disk_gb, traffic_gb; prices, of which each has `cost` (lowest, highest);
    assumed: whether no card is here or named; others: the same sums for the other cards of prices.toml.
    """
    with english():
        found = _on_card(plan, settings.plan.card, settings, answers)
    sizes, kept = measurements.measurements()["disk"], min(2, plan["iterations"])
    found["assumed"] = not settings.plan.card and not host.gpus()
    found["answers"] = answers
    found["disk_gb"] = round(sum(sizes.values()) + (kept - 1) * sizes["checkpoint"], 1)
    found["traffic_gb"] = round(sum(measurements.measurements()["traffic"].values()), 1)
    gpus = plan.get("ranks", 1)
    found["prices"] = _priced(found, settings.plan.price_per_hour, gpus)
    found["others"] = []
    for card in cards():
        if _is_card(card["name"], found["card"]):
            continue
        with english():
            other = _on_card(plan, card["name"], settings, answers)
        entry = {name: other[name] for name in ("card", "seconds_in_all", "seconds_again", "bound")}
        found["others"].append({**entry, "prices": _priced(other, 0, gpus)})
    return found


def _on_card(plan: Dict[str, Any], card: str, settings: Settings, answers: int) -> Dict[str, Any]:
    known = next((one for one in cards() if _is_card(one["name"], card)), {})
    if settings.train.speed == "auto" and not known.get("bf16", True):  # as in xtuner/step_choice.py
        plan = {**plan, "way": "stock"}
    found = measurements.estimate(plan, card)
    lines = _lines(plan, found, settings.plan.download_mbit, answers)
    taken = [line["seconds"] or 0 for line in lines]
    bounds = {line["bound"] for line in lines if line["what"] == ITERATIONS}
    return {
        **found,
        "lines": lines,
        "seconds_in_all": round(sum(taken)),
        "seconds_again": round(sum(taken[len(SETUP) :])),
        "bound": bounds.pop(),
    }


def _lines(plan: Dict[str, Any], found: Dict[str, Any], mbit: float, answers: int) -> List[Dict[str, Any]]:
    card, known = found["card"], measurements.measurements()
    traffic, asked = known["traffic"], measurements.answers(card)

    def line(what: str, seconds: Optional[float], basis: str, bound: str = EXACT) -> Dict[str, Any]:
        return {"what": what, "seconds": None if seconds is None else round(seconds), "bound": bound, "basis": basis}

    def measured(what: str, *names: str, times: int = 1) -> Dict[str, Any]:
        phases = [measurements.phase(name, card) for name in names]
        basis = "; ".join(dict.fromkeys(f"{one['card']}, {one['source']}" for one in phases))
        return line(what, times * sum(one["seconds"] for one in phases), _("measured: {source}", source=basis))

    def download(gigabytes: float) -> Tuple[float, str]:
        return 8000 * gigabytes / mbit, _("{size} GB at plan.download_mbit={speed:g}", size=gigabytes, speed=mbit)

    seconds, basis = download(traffic["environment"])
    making = measurements.phase("environment", card)
    iterations, bound, why = _iterations(plan, found)
    return [
        line(
            SETUP[0],
            seconds + making["seconds"],
            _(
                "{download}; {seconds} s to make it, measured: {source}",
                download=basis,
                seconds=making["seconds"],
                source=f"{making['card']}, {making['source']}",
            ),
        ),
        line(SETUP[1], *download(traffic["model"])),
        measured(mark("doctor and plan"), "doctor", "plan"),
        measured(mark("training: load the model"), "start"),
        line(
            mark("training: questions"),
            answers / asked["tokens_per_second"],
            _(
                "{n:,} tokens; {speed} a second measured: {source}",
                n=answers,
                speed=asked["tokens_per_second"],
                source=f"{asked['card']}, {asked['source']}",
            ),
            AT_MOST,
        ),
        line(ITERATIONS, iterations, why, bound),
        measured(mark("training: checkpoints"), "checkpoint", times=len(plan.get("checkpoints", ())) or 1),
        measured(mark("adapter"), "adapter"),
        measured(mark("merge"), "merge"),
        measured(mark("evaluation"), "evaluation"),
    ]


def _iterations(plan: Dict[str, Any], found: Dict[str, Any]) -> Tuple[Optional[float], str, str]:
    """(seconds, what they mean, why)."""
    if found["seconds"] is not None:
        return found["seconds"], AT_MOST if found["at_most"] else EXACT, f"{found['scaled_from']}: {found['source']}"
    own = next((card for card in cards() if _is_card(card["name"], found["card"])), None)
    slower, faster = [], []
    for card in cards():
        other = measurements.estimate(plan, card["name"])
        if own is None or card is own or other["seconds"] is None:
            continue
        if all(card[what] <= own[what] for what in ("tflops", "gb_per_s")):
            slower.append((other["seconds"], card["name"]))
        elif all(card[what] >= own[what] for what in ("tflops", "gb_per_s")) and not other["at_most"]:
            faster.append((other["seconds"], card["name"]))
    if slower:
        seconds, name = min(slower)
        return seconds, AT_MOST, _("not measured; {card}, slower by its data sheet, takes that", card=name)
    if faster:
        seconds, name = max(faster)
        return seconds, AT_LEAST, _("not measured; {card}, faster by its data sheet, takes that", card=name)
    return None, UNKNOWN, _("not measured on this card; there, {command} measures them", command=command_line("bench"))


def _priced(found: Dict[str, Any], own: float, gpus: int) -> List[Dict[str, Any]]:
    """The prices of a card with the cost of the whole run; `own` (not 0) takes their place."""
    hours = gpus * found["seconds_in_all"] / 3600
    if own:
        return [{"platform": mark("your price"), "per_hour": [own, own], "cost": [round(own * hours, 2)] * 2}]
    return [
        {**price, "date": f"{price['date']}", "cost": [round(one * hours, 2) for one in price["per_hour"]]}
        for price in prices(found["card"])
    ]
