"""Prints what `coach` costs on each card: docker/runtime/host exec python benchmarks/cost.py (docs/*/speed.md)

The plan's own figures (recipe/planning/bill.py) for the tutorial's workbook; `zh` prints it in Chinese. Tests compare
the documents with it, and COACH with the plan.
"""

import sys
from typing import Any, Dict, List

from recipe.core import settings
from recipe.planning import bill

# What the plan of `coach` says of the tutorial's workbook where there is no GPU.
COACH = {"batch_size": 2, "max_length": 512, "iterations": 78, "ranks": 1, "way": "fast", "checkpoints": [39, 78]}
ANSWERS = 1950  # tokens at most, of three questions
PLATFORMS = ("AutoDL", "RunPod", "Vast.ai")
HEADS = {
    "en": ["card", "environment, model", "training", "of it iterations", "adapter, merge, evaluation", "in all"],
    "zh": ["显卡", "环境、模型", "训练", "其中迭代", "适配器、合并、评估", "合计"],
}
MARKS = {bill.AT_MOST: "≤ ", bill.AT_LEAST: "≥ ", bill.EXACT: ""}


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def row(card: str) -> List[str]:
    """Minutes of each part on a card, and the money on each platform."""
    chosen = settings.load("coach", [f"plan.card={card}"])[1]
    found = bill.bill(COACH, chosen, ANSWERS)
    lines: Dict[str, Any] = {line["what"]: line for line in found["lines"]}
    train = sum(one["seconds"] for name, one in lines.items() if name.startswith("training"))
    end = sum(lines[name]["seconds"] for name in ("adapter", "merge", "evaluation"))
    setup = sum(lines[name]["seconds"] for name in bill.SETUP)
    mark = MARKS[found["bound"]]
    times = [minutes(setup), minutes(train), mark + minutes(lines[bill.ITERATIONS]["seconds"]), minutes(end)]
    whole = ("≥ " if found["bound"] == bill.AT_LEAST else "") + minutes(found["seconds_in_all"])
    return [card, *times, whole, *(money(found["prices"], name) for name in PLATFORMS)]


def money(prices: List[Dict[str, Any]], platform: str) -> str:
    price = next((one for one in prices if one["platform"] == platform), None)
    if price is None:
        return "—"
    low, high = (f"{one:.2f}" for one in price["cost"])
    return f"{low if low == high else f'{low}–{high}'} {price['currency']}"


def table(language: str) -> str:
    """The table of the document in this language (en, zh)."""
    heads = [*HEADS[language], *PLATFORMS]
    head, *rest = (f"| {' | '.join(cells)} |\n" for cells in (heads, *(row(card["name"]) for card in bill.cards())))
    return f"{head}|{'---|' * len(heads)}\n{''.join(rest)}"


if __name__ == "__main__":
    print(table("zh" if "zh" in sys.argv[1:] else "en"), end="")
