"""Commands in messages are named as the user types them."""

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong


def test_a_users_own_words_in_errors_stay(monkeypatch):
    monkeypatch.setenv("RECIPE_COMMAND", "./justw")
    assert str(InputWrong("data.system holds 'just answer me'")) == "data.system holds 'just answer me'"
    assert command_line("plan", "coach") == "./justw plan coach"
