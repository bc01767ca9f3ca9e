"""Chooses the conversations that are held out: never trained on, used by `evaluate`.

The choice depends only on their text and the recipe's seed: adding, moving or removing other rows does not change it.
A conversation that shares a question with another one is never held out: the answer would be in training. With images
many conversations share a question, so whole images are held out, by their sha256.
"""

import hashlib
import json
import re
import unicodedata
from array import array
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Set

MIN_HELD_OUT = 2  # conversations: one alone has no interval
NOT_LETTERS = re.compile(r"[\W_]+")

Conversation = List[Dict[str, str]]


def key(question: str, seed: int) -> int:
    """A 64-bit number for a question, the same for questions that differ in case, width, spaces or punctuation."""
    text = NOT_LETTERS.sub("", unicodedata.normalize("NFKC", question).casefold()) or question
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=8).digest(), "little")


def keys(conversation: Conversation, seed: int = 0, image: str = "") -> Set[int]:
    """The keys of a conversation's questions about an image's sha256; of its texts, if they have no question."""
    return {key(image + (turn["input"] or turn["output"]), seed) for turn in conversation}


def choose(conversations: Iterable[Conversation], share: float, seed: int) -> Set[int]:
    """Numbers (from 0) of the conversations to hold out: `share` of all, rounded; none if below MIN_HELD_OUT."""
    import numpy

    asked, owners, ranks = array("Q"), array("Q"), array("Q")
    for number, conversation in enumerate(conversations):
        found = keys(conversation, seed)
        asked.extend(found)
        owners.extend([number] * len(found))
        ranks.append(min(found))
    count = int(share * len(ranks) + 0.5)
    if count < MIN_HELD_OUT:
        return set()
    _, which, times = numpy.unique(numpy.frombuffer(asked, "uint64"), return_inverse=True, return_counts=True)
    unique = numpy.ones(len(ranks), dtype=bool)
    unique[numpy.frombuffer(owners, "uint64")[times[which] > 1].astype(int)] = False
    order = numpy.argsort(numpy.frombuffer(ranks, "uint64"), kind="stable")
    chosen = order[unique[order]][:count]
    return set(chosen.tolist()) if len(chosen) >= MIN_HELD_OUT else set()


def choose_images(images: Sequence[str], share: float, seed: int) -> Set[int]:
    """Numbers (from 0) of the conversations to hold out, given the sha256 of each one's image.

    Whole images are chosen until their conversations are `share` of all or slightly more; none if below MIN_HELD_OUT.
    """
    by_image: Dict[str, List[int]] = {}
    for number, image in enumerate(images):
        by_image.setdefault(image, []).append(number)
    count = int(share * len(images) + 0.5)
    chosen: Set[int] = set()
    for image in sorted(by_image, key=lambda sha256: key(sha256, seed)):
        if len(chosen) < count >= MIN_HELD_OUT:
            chosen.update(by_image[image])
    return chosen if MIN_HELD_OUT <= len(chosen) < len(images) else set()


def move_lines(source: Path, target: Path, chosen: Set[int]) -> int:
    """Moves the lines numbered `chosen` (from 0) of the jsonl file `source` to `target`. Returns their turns."""
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
    """Removes from the jsonl file `source` what shares a question (and its image) with `trained` or an earlier line."""

    def line_keys(line: Dict[str, Any]) -> Set[int]:
        return keys(line["conversation"], image=line.get("sha256", ""))

    seen: Set[int] = set()
    for line in trained:
        seen |= line_keys(line)
    kept = []
    texts = source.read_text(encoding="utf-8").splitlines(keepends=True)
    for text in texts:
        found = line_keys(json.loads(text))
        if not found & seen:
            kept.append(text)
            seen |= found
    source.write_text("".join(kept), encoding="utf-8")
    return {"held_out": len(kept), "held_out_dropped": len(texts) - len(kept)}
