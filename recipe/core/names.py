"""A recipe's name where only a few characters are allowed: for engines, schedulers and clusters."""

import hashlib
import re

LONGEST = 40  # characters; Kubernetes appends to it


def plain_name(name: str) -> str:
    """A name of letters, digits, dots and dashes; different for every recipe's name, also where characters are lost."""
    return _distinct(name, re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-."), "model")


def label(name: str) -> str:
    """A name as a Kubernetes label: lowercase letters, digits and dashes, beginning with a letter."""
    made = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return _distinct(name, made if made[:1].isalpha() else f"recipe-{made}".strip("-"), "recipe")


def _distinct(name: str, made: str, without: str) -> str:
    if made == name and len(made) <= LONGEST:
        return made
    kept = made[: LONGEST - 7].strip("-.") or without
    return f"{kept}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"
