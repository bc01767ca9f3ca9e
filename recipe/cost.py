"""What a run will cost: time, GPU memory, disk, money. Scaled from measurements (measured.toml), never guessed.

docker/diagnosis reads it too, where nothing is installed yet: what is not of the standard library is imported late.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional

MEASURED = Path(__file__).with_name("measured.toml")


def measurements() -> Dict[str, Any]:
    """measured.toml: `measurement`, a list of tables, and `disk`."""
    import tomli

    return tomli.loads(MEASURED.read_text(encoding="utf-8"))


def is_measured(settings: Any) -> bool:
    """Whether it is InternLM2's 7B model by QLoRA, which is what was measured."""
    from . import families

    shipped = families.facts(settings.base).model.lower()
    return families.method(settings) == "qlora" and "internlm2" in shipped and "7b" in shipped


def nearest(card: str, tokens: int) -> Optional[Dict[str, Any]]:
    """The measurement of `card` (its name holds the measured name or the other way round) nearest in tokens."""
    wanted = card.lower().replace(" ", "")
    fitting: List[Dict[str, Any]] = []
    for entry in measurements()["measurement"]:
        name = entry["card"].lower().replace(" ", "")
        if name in wanted or wanted in name:
            fitting.append(entry)
    return min(fitting, key=lambda e: abs(e["batch_size"] * e["max_length"] - tokens), default=None)


def memory_per_token() -> float:
    """MiB that one more token an iteration needs, from the two H100 measurements of different size."""
    small, large = sorted(
        (e for e in measurements()["measurement"] if e["card"] == "H100"),
        key=lambda e: e["batch_size"] * e["max_length"],
    )
    tokens = [e["batch_size"] * e["max_length"] for e in (small, large)]
    return (large["memory_mib"] - small["memory_mib"]) / (tokens[1] - tokens[0])


def memory_mib(tokens: int, card: str) -> int:
    """MiB that training allocates at its peak with `tokens` an iteration. For a card that was never measured, the
    most that any measured one would take: it depends on the card by a few percent only.
    """
    entry = nearest(card, tokens)
    return max(
        round(e["memory_mib"] + (tokens - e["batch_size"] * e["max_length"]) * memory_per_token())
        for e in ([entry] if entry else measurements()["measurement"])
    )


def estimate(plan: Dict[str, Any], card: str, price: float) -> Dict[str, Any]:
    """Cost of the planned run on `card` ("" for this machine's GPU).

    {card, seconds, memory_mib, price, scaled_from, source, disk_gb}; figures are None for a card that was never
    measured. Training only: loading the model, evaluation samples and the merge come on top.
    """
    from .stages import gpus

    if not card:
        found = gpus()
        card = found[0]["name"] if found else "RTX 3090"
    tokens = plan["batch_size"] * plan["max_length"]
    disk = measurements()["disk"]
    kept = min(2, plan["iterations"])
    cost = {
        "card": card,
        "seconds": None,
        "memory_mib": None,
        "price": None,
        "scaled_from": None,
        "source": None,
        "disk_gb": round(sum(disk.values()) + (kept - 1) * disk["checkpoint"], 1),
    }
    entry = nearest(card, tokens)
    if entry:
        measured = entry["batch_size"] * entry["max_length"]
        seconds = entry["seconds"] * tokens / measured * plan["iterations"]
        cost.update(
            seconds=round(seconds),
            memory_mib=memory_mib(tokens, card),
            price=round(seconds / 3600 * price, 2) if price else None,
            scaled_from=f"{entry['batch_size']}×{entry['max_length']} on {entry['card']}",
            source=entry["source"],
        )
    return cost
