"""Checks and parses a command line for the scripts under docker/, with Python's standard library alone.

`python3 -m recipe.cli.words COMMAND WORD …` prints what the scripts need to know, a `name<TAB>value` pair a line. Exit
code 2: the words are wrong, and stderr says why. Exit code 10: the words ask for help, which is printed instead. At a
terminal it asks for the system prompt of a data file that has none yet; Ctrl-C there is exit code 130.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import List, Sequence, Tuple

from recipe.cli import grammar
from recipe.core import data_source
from recipe.core.errors import InputWrong
from recipe.core.recipe_files import ROOT
from recipe.core.translation import _, prepare_streams

HELP = 10  # exit code
PATH = re.compile(r"/|\.\./|.*/\.\./")  # leads out of the clone, where commands run
QUOTED_PATH = re.compile(r"""(["'])((?:/|\.\./)[^"'\n]*)\1""")


def facts(command: str, words: Sequence[str]) -> List[Tuple[str, str]]:
    """(name, value) pairs of a command line; `reads` and `writes` may repeat. Raises InputWrong.

    command, recipe (its run's name), output; values: the recipe's settings as JSON, where this Python reads TOML;
    writes: folders that the command writes to; reads: paths outside the clone that it may read; host, port: of the web
    page; detach, json: the option is given.
    """
    checked = grammar.check(command, words, ROOT)
    options = checked.words.options
    found = [("command", command), ("recipe", _utf8(checked.name))]
    if checked.recipe and checked.recipe.data:
        data = os.path.realpath(str(ROOT / checked.recipe.data))  # a link in the clone may lead out of it
        found.append(("reads", _utf8(data)))
        if command in grammar.PROMPTED:
            _ask_system(checked, ROOT / grammar.value_of(options, "--output", "output"))
    found.append(("values", json.dumps(checked.values, default=str)))
    output, chart = (_utf8(grammar.value_of(options, name, "")) for name in ("--output", "--png"))
    found.append(("output", output or "output"))
    if output:
        found.append(("writes", output))
    if chart:
        found.append(("writes", os.path.dirname(chart) or "."))
    found += [("reads", path) for path in paths(words)]
    if command == "web":
        host = grammar.value_of(options, "--host", "127.0.0.1").strip("[]").replace("localhost", "127.0.0.1")
        found.append(("host", f"[{host}]" if ":" in host else host))
        found.append(("port", grammar.value_of(options, "--port", "8501")))
    return found + [(name, "yes") for name in ("detach", "json") if f"--{name}" in options]


def _ask_system(checked: grammar.Checked, output: Path) -> None:
    """Ask before a container starts or the run is detached."""
    assert checked.recipe
    with contextlib.suppress(OSError):  # a folder that cannot be written is reported by the command itself
        data_source.ask_system(output / checked.name, checked.recipe.data, checked.words.settings)


def paths(words: Sequence[str]) -> List[str]:
    """Paths outside the clone that the words name, alone, in a list, or in a recipe file."""
    found: List[str] = []
    for word in words:
        value = word.partition("=")[2] or word
        outside = [one for one in (word, value) if PATH.match(one) and "\n" not in one]
        if outside:
            found.append(_utf8(outside[0]))
        else:
            found += _quoted(_utf8(value))
        if value.endswith(".toml") and os.path.isfile(value):
            found += _quoted(Path(value).read_text(encoding="utf-8", errors="surrogateescape"))
    return found


def _utf8(word: str) -> str:
    """The same bytes as UTF-8, as in recipe files: the shell may have another encoding."""
    return os.fsencode(word).decode("utf-8", errors="surrogateescape")


def _quoted(text: str) -> List[str]:
    return [path for _quote, path in QUOTED_PATH.findall(text)]


def main(words: Sequence[str]) -> int:
    try:
        text = grammar.answer(words)
        if text is not None:
            print(text)
            return HELP
        if words[0] in grammar.load()["commands"]:  # the justfile runs the other commands itself
            lines = "".join(f"{name}\t{value}\n" for name, value in facts(words[0], words[1:]))
            sys.stdout.buffer.write(lines.encode("utf-8", errors="surrogateescape"))
    except InputWrong as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_("Stopped."), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    prepare_streams()
    sys.exit(main(sys.argv[1:]))
