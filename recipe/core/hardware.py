"""The NVIDIA GPUs of this machine, as nvidia-smi reports them, and those of them that CUDA shows to this process.

The only reader of cards, for the stages and for docker/doctor. The latter runs on a bare machine: Python 3.8 and its
standard library are all that this module may use.
"""

import copy
import itertools
import os
import re
import subprocess
from collections import namedtuple
from typing import Any, List, Optional, Tuple

from recipe.core.translation import _

Answer = namedtuple("Answer", "code text")  # code None: no such program; 124: it did not answer in time

# Drivers before 510 do not report the capability: the cards of their time, by name. The first match counts.
CARDS = (
    (r"K20|K40", (3, 5)), (r"K80", (3, 7)), (r"GTX 750|M10\b", (5, 0)), (r"GTX 9\d\d|M[46]0?\b|TITAN X$", (5, 2)),
    (r"P100", (6, 0)), (r"GTX 10|Tesla P|TITAN X|Quadro P", (6, 1)), (r"V100|TITAN V|GV100", (7, 0)),
    (r"T4|RTX 20|GTX 16|TITAN RTX|Quadro [RT]", (7, 5)), (r"A100|A30\b", (8, 0)),
    (r"\bA(10|10G|40|16|2)\b|RTX 30|RTX A", (8, 6)),
)  # fmt: skip
BF16_CAPABILITY = (8, 0)


class Card:
    """A GPU, or a MIG instance of one. Memory is in MiB, None where nvidia-smi has [N/A]."""

    FIELDS = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version", "compute_mode")
    NEWER = ("mig.mode.current", "compute_cap")  # drivers before 450 and before 510 do not know them

    def __init__(self, values: List[str]) -> None:
        self.index, self.uuid, self.name, total, free, self.driver, self.mode = values[:7]
        self.total = int(total) if total.isdigit() else None
        self.free = int(free) if free.isdigit() else self.total
        newer = dict(zip(self.NEWER, values[7:]))
        self.mig = newer.get("mig.mode.current") == "Enabled"
        self.instances: List[Card] = []  # of a card in MIG mode: what CUDA sees in its place
        found = re.match(r"(\d+)\.(\d+)$", newer.get("compute_cap", ""))
        self.capability: Optional[Tuple[int, int]] = (int(found[1]), int(found[2])) if found else None
        if found is None:
            self.capability = next((pair for pattern, pair in CARDS if re.search(pattern, self.name)), None)

    def __str__(self) -> str:
        return _(
            "{card}, {memory} MiB, capability {capability}, driver {driver}",
            card=self.name, memory=self.total or "?", driver=self.driver,
            capability="{}.{}".format(*self.capability) if self.capability else _("unknown"),
        )  # fmt: skip


def ask(*words: Any, seconds: int = 20) -> Answer:
    """Run a command; return its exit code and all its output."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Answer(124, _("{program} did not answer in {seconds} s", program=words[0], seconds=seconds))
    except OSError as error:
        return Answer(None, str(error))
    return Answer(done.returncode, done.stdout.decode("utf-8", "replace").strip())


def query() -> Tuple[List[Card], Answer]:
    """(all cards in the order of the bus, nvidia-smi's answer). Older drivers are asked for fewer fields."""
    for fields in (Card.FIELDS + Card.NEWER, Card.FIELDS + Card.NEWER[:1], Card.FIELDS):
        answer = ask("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
        if "is not a valid field to query" not in answer.text:
            break
    rows = [[part.strip() for part in line.split(",")] for line in answer.text.splitlines()]
    cards = [Card(row) for row in rows if answer.code == 0 and len(row) == len(fields)]
    if any(card.mig for card in cards):
        listed = ask("nvidia-smi", "-L").text
        for card in cards:
            card.instances = _instances(card, listed) if card.mig else []
    return cards, answer


def _instances(card: Card, listed: str) -> List[Card]:
    """A card's MIG instances in nvidia-smi's list. The gigabytes of a profile are rounded: a little less is there."""
    own = re.findall(rf"(?ms)^GPU {card.index}:.*?(?=^GPU \d|\Z)", listed)
    found = []
    for profile, size, uuid in re.findall(
        r"MIG ((?:\d+c\.)?\d+g\.(\d+)gb\S*)\s+Device.*?UUID: (MIG-[^)]+)", own[0] if own else ""
    ):
        one = copy.copy(card)
        one.uuid, one.name, one.instances = uuid, f"{card.name} MIG {profile}", []
        one.total = one.free = int(int(size) * 1e9 / 2**20)
        found.append(one)
    return found


def visible(cards: List[Card]) -> List[Card]:
    """Those of `cards` that CUDA shows to this process, in its order, by the rules of CUDA_VISIBLE_DEVICES.

    CUDA counts in the order of the bus, as nvidia-smi does: recipe/__init__.py and runtime/host set CUDA_DEVICE_ORDER.
    In MIG mode it shows a single instance, the first that it may take, and no other card beside it.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = cards if names is None else _named(cards, names.split(","))
    found: List[Card] = []
    for card in chosen:
        found += (card.instances[:1] if card in cards else [card]) if card.mig else [card]
    return next(([card] for card in found if card.mig), found)


def _named(cards: List[Card], names: List[str]) -> List[Card]:
    """The cards and MIG instances of these names, up to the first name that fits none or several; none at all where two
    names are equal or mean the same.
    """
    kind = names[0][:4]
    chosen: List[Card] = []
    if kind in ("GPU-", "MIG-"):
        names = list(itertools.takewhile(lambda name: name.startswith(kind), names))
        known = cards if kind == "GPU-" else [one for card in cards for one in card.instances]
        for name in names:
            fitting = [card for card in known if card.uuid.startswith(name)]
            if len(fitting) != 1:
                break
            chosen.append(fitting[0])
    else:
        numbers = [re.match(r"\s*\+?(\d+)", name) for name in names]
        names = [str(int(number[1])) for number in itertools.takewhile(bool, numbers) if number]
        chosen = [cards[int(name)] for name in itertools.takewhile(lambda name: int(name) < len(cards), names)]
    distinct = len(set(names)) == len(names) and len({card.uuid for card in chosen}) == len(chosen)
    return chosen if distinct else []


def memory_used(card: Card) -> int:
    """MiB of a card that processes hold; 0 where nvidia-smi does not tell, as for a MIG instance."""
    if card.mig:
        return 0
    answer = ask("nvidia-smi", f"--id={card.index}", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    return int(answer.text) if answer.code == 0 and answer.text.isdigit() else 0


def has_bf16() -> bool:
    """Whether PyTorch's current card computes in bf16. From PyTorch 2.4 on `torch.cuda.is_bf16_supported()` says yes to
    emulation too.
    """
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= BF16_CAPABILITY
