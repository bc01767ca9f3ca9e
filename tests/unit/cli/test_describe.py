"""grammar.json is what the commands declare, and the help made of it is click's."""

import click
import pytest

from recipe.cli import describe, grammar, main
from recipe.core import translation
from recipe.core.text_width import width
from support.command import ROOT

KNOWN = grammar.load()["commands"]


def test_the_grammar_is_that_of_the_commands():
    """`python -m recipe.cli.describe` writes it again."""
    written = (ROOT / "recipe/cli/grammar.json").read_text(encoding="utf-8")
    assert written == describe.text()


@pytest.mark.parametrize("name", KNOWN)
def test_help_is_laid_out_as_click_does(name):
    command = main.cli.get_command(click.Context(main.cli), name)
    context = describe.click_context(command, name)
    examples = "".join(f"\n  {grammar.JUST} {example}" for example in command.examples)
    expected = f"{click.Command.get_help(command, context)}\n\nExamples:{examples}"
    assert grammar.help_text(KNOWN[name]) == expected.replace(grammar.JUST, "just")
    context.info_name = name
    assert command.get_help(context) == grammar.help_text(KNOWN[name])


@pytest.mark.parametrize("name", KNOWN)
def test_help_in_chinese_is_in_columns(name):
    with translation.use("zh"):
        text = grammar.help_text(KNOWN[name])
    lines = text.splitlines()
    assert lines[0].startswith(f"用法：just {name} [OPTIONS]")
    assert max(map(width, lines)) <= grammar.COLUMNS
    for heading in ("选项：", "示例："):
        assert heading in lines
    options = lines[lines.index("选项：") + 1 : lines.index("示例：") - 1]
    left = len(options[-1].partition("显示")[0])
    for line in options:
        assert line[left - 2 : left] == "  "
        assert line[left] != " "
