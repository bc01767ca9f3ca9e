"""grammar.json is what the commands declare."""

from recipe.cli import describe
from support.command import ROOT


def test_the_grammar_is_that_of_the_commands():
    """`python -m recipe.cli.describe` writes it again."""
    written = (ROOT / "recipe/cli/grammar.json").read_text(encoding="utf-8")
    assert written == describe.text()
