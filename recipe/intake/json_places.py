"""Where in a JSON text something stands that Python's parser reports without a place."""

import re
from typing import List, Optional, Set

from recipe.core.translation import _

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]|NaN|-?Infinity', re.S)


def show(text: str, position: int, one_line: bool) -> str:
    """A position in the text for a message."""
    before = text[:position]
    column = position - before.rfind("\n")
    if one_line:
        return _("column {character}", character=column)
    return _("line {line}, column {character}", line=before.count("\n") + 1, character=column)


def constant(text: str) -> int:
    """The position of the first NaN or Infinity outside of a text."""
    return next((token.start() for token in TOKEN.finditer(text) if token.group()[0] in "N-I"), 0)


def double_key(text: str) -> int:
    """The position of the first key that its object has already."""
    objects: List[Optional[Set[str]]] = []  # the keys so far; None for a list
    last = None
    for token in TOKEN.finditer(text):
        sign = token.group()
        if sign in "{[":
            objects.append(set() if sign == "{" else None)
        elif sign in "}]" and objects:
            objects.pop()
        elif sign == ":" and last is not None and objects and objects[-1] is not None:
            if last.group() in objects[-1]:
                return last.start()
            objects[-1].add(last.group())
        last = token
    return 0
