"""Which conversations are held out: never trained on, asked by `evaluate`.

Chosen by their text and the recipe's seed alone, so that the choice outlives other rows being added, moved or taken
away, and only among conversations of which no question stands in another one: nothing held out is in training in other
words, and none of it counts twice. Of images, one question stands with many: there whole images are held out, by their
sums, so that none of them was seen in training.
"""

import hashlib
import json
import re
import unicodedata
from array import array
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Set

MIN_HELD_OUT = 2  # conversations: one alone has no interval
SIGNS = re.compile(r"[\W_]+")

Conversation = List[Dict[str, str]]


def key(question: str, seed: int) -> int:
    """A number of 64 bits for a question; the same for questions that differ in case, width, spaces or punctuation."""
    text = SIGNS.sub("", unicodedata.normalize("NFKC", question).casefold()) or question
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "little")


def keys(conversation: Conversation, seed: int = 0, image: str = "") -> Set[int]:
    """The keys of a conversation's questions, about the image of this sum; of texts without a question, their own."""
    return {key(image + (turn["input"] or turn["output"]), seed) for turn in conversation}


def choose(conversations: Iterable[Conversation], share: float, seed: int) -> Set[int]:
    """Numbers (from 0) of the conversations to hold out: `share` of all, rounded; none if that is fewer than MIN_HELD_OUT."""
    import numpy

    asked, owners, ranks = array("Q"), array("Q"), array("Q")
    for number, conversation in enumerate(conversations):
        found = keys(conversation, seed)
        asked.extend(found)
        owners.extend([number] * len(found))
        ranks.append(min(found))
    wanted = int(share * len(ranks) + 0.5)
    if wanted < MIN_HELD_OUT:
        return set()
    _, which, times = numpy.unique(numpy.frombuffer(asked, "uint64"), return_inverse=True, return_counts=True)
    alone = numpy.ones(len(ranks), dtype=bool)
    alone[numpy.frombuffer(owners, "uint64")[times[which] > 1].astype(int)] = False
    order = numpy.argsort(numpy.frombuffer(ranks, "uint64"), kind="stable")
    chosen = order[alone[order]][:wanted]
    return set(chosen.tolist()) if len(chosen) >= MIN_HELD_OUT else set()


def choose_images(images: Sequence[str], share: float, seed: int) -> Set[int]:
    """Numbers (from 0) of the conversations to hold out, by the sums of what they are about: of so many images that it
    is `share` of all conversations, or somewhat more; none if that is fewer than MIN_HELD_OUT.
    """
    about: Dict[str, List[int]] = {}
    for number, image in enumerate(images):
        about.setdefault(image, []).append(number)
    wanted, chosen = int(share * len(images) + 0.5), set()  # type: ignore[var-annotated]
    for image in sorted(about, key=lambda one: key(one, seed)):
        if len(chosen) < wanted >= MIN_HELD_OUT:
            chosen.update(about[image])
    return chosen if MIN_HELD_OUT <= len(chosen) < len(images) else set()


def move_lines(source: Path, target: Path, chosen: Set[int]) -> int:
    """Move the lines numbered `chosen` (from 0) of the jsonl file `source` to `target`; how many turns they hold."""
    if not chosen:
        target.touch()
        return 0
    rest = source.with_name(f"{source.name}.rest")
    turns = 0
    with source.open("rb") as old, rest.open("wb") as kept, target.open("wb") as moved:
        for number, line in enumerate(old):
            if number in chosen:
                turns += len(json.loads(line.decode("utf-8"))["conversation"])
            (moved if number in chosen else kept).write(line)
    rest.replace(source)
    return turns


def drop_seen(source: Path, trained: Iterable[Dict[str, Any]]) -> Dict[str, int]:
    """Take out of the jsonl file `source` what has a question (of images, about the same one) in common with the lines
    that are trained on, or with an earlier line.
    """

    def of(line: Dict[str, Any]) -> Set[int]:
        return keys(line["conversation"], image=line.get("sha256", ""))

    seen = array("Q")
    for line in trained:
        seen.extend(of(line))
    taken: Any = set(seen)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for line in lines:
        found = of(json.loads(line))
        if not found & taken:
            kept.append(line)
            taken |= found
    source.write_text("".join(kept), encoding="utf-8")
    return {"held_out": len(kept), "held_out_dropped": len(lines) - len(kept)}
