"""Counts and drops duplicate conversations in dataset.jsonl."""

from array import array
from pathlib import Path


def drop_duplicates(target: Path, hashes: "array[int]", drop: bool) -> int:
    """The number of different conversations; with `drop`, removes every later copy from `target`."""
    if len(hashes) < 1 << 18 and not drop:  # few enough: importing numpy would take longer
        return len(set(hashes))
    import numpy

    values = numpy.frombuffer(hashes, dtype="int64")
    if not drop:
        values.sort()  # in place, to save memory
        return 1 + int(numpy.count_nonzero(values[1:] != values[:-1]))
    first = numpy.unique(values, return_index=True)[1]
    if len(first) < len(values):
        keep = numpy.zeros(len(values), dtype=bool)
        keep[first] = True
        part = target.with_name("dataset.unique")
        with target.open("rb") as old, part.open("wb") as new:
            new.writelines(line for line, kept in zip(old, keep) if kept)
        part.replace(target)
    return len(first)
