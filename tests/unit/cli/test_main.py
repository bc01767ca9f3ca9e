"""Help of every command, and unexpected errors."""

from recipe.cli import grammar
from recipe.cli.main import COMMANDS
from support.command import recipe, runner


def test_every_command_has_help_with_two_examples():
    known = grammar.load()["commands"]
    assert list(known) == list(COMMANDS)
    for name, command in known.items():
        text = recipe(name, "--help").stdout if name in ("plan", "image") else grammar.answer([name, "--help"])
        assert text.startswith(f"Usage: just {name} ")
        examples = text.partition("Examples:\n")[2].splitlines()
        assert all(line.startswith(f"  just {name}") for line in examples)
        assert len(examples) >= (1 if name in ("shell", "new") else 2), name
        assert command["summary"]


def test_details_of_an_unexpected_error_lie_below_output(tmp_path, monkeypatch):
    """In a container nothing else outlives the command. Where output cannot be written, in the system's own folder."""
    from recipe.cli import main as front

    def fails(*_):
        raise KeyError("what nobody thought of")

    monkeypatch.setattr("recipe.cli.stages.load", fails)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").touch()
    for output, place in (("output", "output"), ("mine/runs", "mine/runs"), ("file", "tmp")):
        done = runner().invoke(front.cli, ["plan", "tiny", "--output", output])
        assert done.exit_code == 1
        [report] = (tmp_path / place).glob("error-*.log")
        assert "KeyError: 'what nobody thought of'" in report.read_text(encoding="utf-8")
        assert f"Details for a report: {report if place == 'tmp' else report.relative_to(tmp_path)}" in done.stderr
        assert "Traceback" not in done.stderr
