"""Suggests what a misspelt word was meant to be. Python's standard library alone."""

import difflib
from typing import Sequence


def did_you_mean(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """ " Did you mean X?", or nothing where no known word is close."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f" Did you mean {close[0]}?" if close else ""
