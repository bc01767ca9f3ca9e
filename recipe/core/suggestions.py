"""Suggests what a misspelt word was meant to be. Python's standard library alone."""

import difflib
from typing import Sequence

from recipe.core.translation import _


def closest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The known word that is closest to `word`; "" if none is close."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), "")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """ "Did you mean X?", or nothing where no known word is close."""
    close = closest(word, known)
    return _("Did you mean {word}?", word=close) if close else ""
