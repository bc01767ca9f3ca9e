"""Time, GPU memory and disk as measured (measured.toml, and `just bench` on this machine), and what is scaled from
them. planning/bill.py adds them up.

docker/doctor reads it too, where nothing is installed yet: anything outside the standard library is imported late.
"""

import functools
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from recipe.core.translation import mark

MEASURED = Path(__file__).with_name("measured.toml")
SMALL = 14_000  # MiB of a card below which train.speed=auto takes least memory
BENCH = Path(__file__).resolve().parent.parent.parent / "output" / "bench.json"  # of this machine, made by `just bench`


# The sources that measured.toml names, with words to translate.
SOURCES = (
    mark("the tutorial's published log, {date}, DeepSpeed ZeRO-2"),
    mark("a step and an update under an allocator limit of {limit}, {versions}"),
    mark("{card}, the decoder in cu13, {document}"),
    mark("{card}, transformers' generate, {document}"),
    mark("{n} shared CPU cores, {date}"),
)


@functools.lru_cache(maxsize=None)
def _shipped() -> Dict[str, Any]:
    import tomli

    found: Dict[str, Any] = tomli.loads(MEASURED.read_text(encoding="utf-8"))
    return found


def measurements() -> Dict[str, Any]:
    """measured.toml: `measurement`, a list of tables, this machine's own first; `phase`, `disk`, `traffic`."""
    own = json.loads(BENCH.read_text(encoding="utf-8"))["measurement"] if BENCH.is_file() else []
    return {**_shipped(), "measurement": [*own, *_shipped()["measurement"]]}


def for_step(way: str) -> List[Dict[str, Any]]:
    """The measurements of one training step: stock, fast, kept (fast without checkpointing) or small."""
    return [entry for entry in measurements()["measurement"] if entry.get("way", "stock") == way]


def nearest(card: str, tokens: int, way: str = "stock") -> Optional[Dict[str, Any]]:
    """The measurement of `card` nearest in tokens; one name must contain the other."""
    wanted = card.lower().replace(" ", "")
    fitting: List[Dict[str, Any]] = []
    for entry in for_step(way):
        name = entry["card"].lower().replace(" ", "")
        if name in wanted or wanted in name:
            fitting.append(entry)
    if not fitting:
        return None
    return min(fitting, key=lambda e: abs(e["batch_size"] * e["max_length"] - tokens))


def memory_per_token(way: str = "stock") -> float:
    """MiB per token of an iteration, from the smallest and the largest H100 measurement; at least what the layers are
    known to hold.
    """
    by_size = sorted(
        (e for e in for_step(way) if e["card"] == "H100"),
        key=lambda e: e["batch_size"] * e["max_length"],
    )
    small, large = by_size[0], by_size[-1]
    tokens = [e["batch_size"] * e["max_length"] for e in (small, large)]
    slope = (large["memory_mib"] - small["memory_mib"]) / (tokens[1] - tokens[0])
    return max(slope, measurements()["mib_per_token"].get(way, 0.0))


def memory_mib(tokens: int, card: str, way: str = "stock") -> int:
    """Peak MiB of training with `tokens` per iteration (stock: allocated by PyTorch; else reserved). For a card without
    measurements, the maximum over all measured cards, which differ by a few percent.
    """
    entry = nearest(card, tokens, way)
    return max(
        round(e["memory_mib"] + (tokens - e["batch_size"] * e["max_length"]) * memory_per_token(way))
        for e in ([entry] if entry else for_step(way))
    )


def fits_without_checkpointing(tokens: int, card: str, total: int) -> bool:
    """Whether training without activation checkpointing fits a card of `total` MiB, with 15 % to spare."""
    return memory_mib(tokens, card, "kept") <= 0.85 * total


def phase(name: str, card: str) -> Dict[str, Any]:
    """What a part of a run beside the iterations took: {name, card, seconds, source}, on `card` where it was measured
    there, else where it took longest.
    """
    entries = [entry for entry in measurements()["phase"] if entry["name"] == name]
    return max(_of_card(entries, card), key=lambda entry: entry["seconds"])


def answers(card: str) -> Dict[str, Any]:
    """How fast questions are answered during training: {card, tokens_per_second, source}, on `card` where it was
    measured there, else where it was slowest.
    """
    return min(_of_card(measurements()["answers"], card), key=lambda entry: entry["tokens_per_second"])


def _of_card(entries: List[Dict[str, Any]], card: str) -> List[Dict[str, Any]]:
    """Those of a card, as nvidia-smi or a user names it; all if there is none."""
    return [entry for entry in entries if entry["card"].lower() in card.lower()] or entries


def estimate(plan: Dict[str, Any], card: str) -> Dict[str, Any]:
    """Iterations of the planned run on `card` ("" for this machine's GPU), or on several of it that share the work at
    best: {card, seconds, at_most, memory_mib, scaled_from, source}, in English.

    seconds is None for a card that was never measured. `at_most`: of XTuner's own step, the only one that was measured
    on the card.
    """
    from recipe.core.host import gpus

    if not card:
        found = gpus()
        card = found[0]["name"] if found else "RTX 3090"
    tokens = plan["batch_size"] * plan["max_length"]
    way = plan.get("way", "stock")
    cost = {
        "card": card,
        "seconds": None,
        "at_most": False,
        "memory_mib": memory_mib(tokens, card, way),
        "scaled_from": None,
        "source": None,
    }
    entry = nearest(card, tokens, way)
    if entry is None and way != "stock":  # where both were measured, no way was slower than XTuner's own
        entry = nearest(card, tokens)
        cost["at_most"] = entry is not None
    if entry:
        measured = entry["batch_size"] * entry["max_length"]
        cost.update(
            seconds=round(entry["seconds"] * tokens / measured * plan["iterations"]),
            scaled_from=_scaled_from(way, bool(cost["at_most"])).format(
                batch=entry["batch_size"], length=entry["max_length"], card=entry["card"], way=way
            ),
            source=entry["source"],
        )
    return cost


def _scaled_from(way: str, at_most: bool) -> str:
    if way == "stock":
        return mark("{batch}×{length} on {card}")
    if at_most:
        return mark("{batch}×{length} on {card}, XTuner's own step, not {way}")
    return mark("{batch}×{length} on {card}, {way}")
