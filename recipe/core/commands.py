"""Names this project's commands as the user types them, for messages. Python's standard library alone."""

import os


def program() -> str:
    """`just`, or `./justw` for a user who starts commands through that script."""
    return os.environ.get("RECIPE_COMMAND", "just")


def command_line(*words: str) -> str:
    """The command to type: `just plan coach` of "plan", "coach"."""
    return " ".join([program(), *words])
