"""Checks a command line before anything is made or fetched, and answers `--help`: Python's standard library alone.

grammar.json holds the commands as click declares them and the settings as pydantic has them (describe.py writes it).
The command line reads words through this module, and so do the scripts under docker/ (words.py).
"""

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

from recipe.cli.schema import find_errors, wants_text
from recipe.core import data_source, other_names
from recipe.core.commands import command_line, program
from recipe.core.errors import InputWrong
from recipe.core.recipe_files import (
    ROOT,
    Recipe,
    fault,
    find_recipe,
    first_faults,
    line_of,
    read_values,
    recipes,
    toml,
)
from recipe.core.suggestions import did_you_mean
from recipe.core.text_width import width, wrap
from recipe.core.translation import _, listed, mark, sentences

SETTING = re.compile(r"[\w.]*=")
JUST = "{just}"  # stands for commands.program() in grammar.json
COLUMNS = 100  # of help
# Commands that train, predict a training, or show the prompts: they ask for a system prompt that is not known.
PROMPTED = ("demo", "train", "merge", "adapter", "config", "plan", "data-report", "preview")
# Arguments that have choices, and what is said of a word that is none of them.
NO_SUCH = {"TARGET": mark("{word}: no such target."), "ACTION": mark("{word}: no such action.")}


class Words(NamedTuple):
    """A command line, sorted."""

    options: List[str]
    settings: List[str]
    arguments: List[str]


def load() -> Dict[str, Any]:
    """{"commands": {name: …}, "settings": {dotted key: schema}}."""
    found: Dict[str, Any] = json.loads(Path(__file__).with_name("grammar.json").read_text(encoding="utf-8"))
    return found


def unknown_command(name: str, known: Sequence[str]) -> InputWrong:
    listing = _("`{command}` lists them.", command=command_line("help"))
    return InputWrong(sentences(_("There is no command {name!r}.", name=name), did_you_mean(name, known), listing))


def usage(command: Dict[str, Any]) -> str:
    return _("Usage: {usage}", usage=command["usage"].replace(JUST, program()))


def sort_words(command: Dict[str, Any], words: Sequence[str]) -> Words:
    """Sort a command's words into options, settings (key=value) and arguments. Raises InputWrong.

    `port=8502` is another spelling of an option that is marked as a keyword, `--recipe NAME` of the first argument,
    `system=…` of data.system=…, and a target (of export and cluster) may stand anywhere.
    """
    options: Dict[str, Dict[str, Any]] = {name: option for option in command["options"] for name in option["names"]}
    keywords = {option["names"][0][2:]: option["names"][0] for option in command["options"] if option["keyword"]}
    found = Words([], [], [])
    recipe = None
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--":
            found.arguments.extend(rest)
            break
        if name == "--recipe" and command["recipe"]:
            if not equals and not rest:
                raise InputWrong(sentences(_("--recipe needs the name of a recipe."), usage(command)))
            recipe = value if equals else rest.pop(0)
        elif word.startswith("-") and len(word) > 1:
            option = options.get(name)
            if option is None:
                shown = [one for one, about in options.items() if not about["hidden"]]
                said = _("{command} has no option {option}.", command=command["name"], option=name)
                listing = _("`{command}` lists them.", command=command_line(command["name"], "--help"))
                raise InputWrong(sentences(said, did_you_mean(name, shown), listing))
            found.options.append(word)
            if option["value"] and not equals:
                if not rest:
                    raise InputWrong(sentences(_("{option} needs a value.", option=name), usage(command)))
                found.options.append(rest.pop(0))
        elif equals and name in keywords:
            found.options.append(f"{keywords[name]}={value}")
        elif SETTING.match(word) and not (command["name"] == "chat" and _is_question(name, keywords)):
            found.settings.append(f"data.{word}" if name == "system" else word)
        else:
            found.arguments.append(word)
    _refuse_twice(found.settings)
    if recipe is not None:
        found.arguments.insert(0, recipe)
    for argument in command["arguments"][:1]:
        targets = [word for word in found.arguments if word in argument["choices"]]
        if targets:
            found.arguments.remove(targets[0])
            found.arguments.insert(0, targets[0])
    _check_arguments(command, found.arguments, quoting_hint(words, found.arguments))
    return found


def _refuse_twice(settings: Sequence[str]) -> None:
    given: Dict[str, str] = {}
    for word in settings:
        key = word.partition("=")[0]
        if key in given:
            raise InputWrong(
                _("{key} is given twice: {first} and {second}. Keep one.", key=key, first=given[key], second=word)
            )
        given[key] = word


def _is_question(key: str, keywords: Iterable[str]) -> bool:
    """Whether what stands in front of a = is no setting, nor nearly one: x=2的话，y是多少？"""
    settings = list(load()["settings"])
    tables = {one.split(".")[0] for one in settings}
    is_setting = key == "system" or "." in key or key in tables or other_names.hint(key, settings)
    return not is_setting and not did_you_mean(key, [*tables, *keywords])


def value_of(options: Sequence[str], name: str, default: str) -> str:
    """The last value of an option, written `--name value` or `--name=value`."""
    found = default
    for number, word in enumerate(options):
        if word.startswith(f"{name}="):
            found = word[len(name) + 1 :]
        elif word == name and number + 1 < len(options):
            found = options[number + 1]
    return found


def quoting_hint(words: Sequence[str], arguments: Sequence[str]) -> str:
    """A sentence on quoting, where the shell seems to have split a system prompt; else ""."""
    for number, word in enumerate(words):
        key, _equals, value = word.partition("=")
        if key in ("system", "data.system"):
            following = itertools.takewhile(
                lambda one: one in arguments and not os.path.exists(one), words[number + 1 :]
            )
            text = " ".join([value, *following])
            if text != value:
                return _('Put a text with blanks in quotes: {key}="{text}"', key=key, text=text)
    return ""


def _check_arguments(command: Dict[str, Any], given: Sequence[str], hint: str) -> None:
    wanted = command["arguments"]
    for argument, word in zip(wanted, given):
        if argument["choices"] and word not in argument["choices"]:
            said, close = _(NO_SUCH[argument["name"]], word=word), did_you_mean(word, argument["choices"])
            choices = _("There are: {choices}.", choices=listed(argument["choices"]))
            raise InputWrong(sentences(said, close, choices, usage(command)))
    if len(given) > len(wanted) and not (wanted and wanted[-1]["many"]):
        said = _("Too many words: {words}.", words=" ".join(given[len(wanted) :]))
        raise InputWrong(sentences(said, hint, usage(command)))
    missing = [argument["name"] for argument in wanted[len(given) :] if argument["required"]]
    if missing:
        raise InputWrong(sentences(_("{argument} is missing.", argument=missing[0]), usage(command)))


def check_full_width(words: Sequence[str], keys: Sequence[str]) -> None:
    """Refuse the full-width sign ＝, which Chinese input types for =. Raises InputWrong."""
    tables = "|".join(sorted({key.split(".")[0] for key in keys}))
    for word in words:
        if re.match(rf"({tables})[\w.]*＝", word):
            raise InputWrong(
                _("{word}: ＝ is full-width, as Chinese input methods type it. Type = instead.", word=word)
            )


class Checked(NamedTuple):
    """A command line that may run: its words, its run's name, its recipe and values (None where none is read)."""

    words: Words
    name: str
    recipe: Optional[Recipe] = None
    values: Optional[Dict[str, Any]] = None


def check(name: str, words: Sequence[str], folder: Optional[Path] = None) -> Checked:
    """Check a whole command line. `folder`: the clone (default: the current folder). Raises InputWrong."""
    known = load()
    command = known["commands"].get(name)
    if command is None:
        raise unknown_command(name, names(known))
    check_full_width(words, list(known["settings"]))
    found = sort_words(command, words)
    if found.settings and not command["settings"]:
        said = _("{setting}: {command} takes no settings.", setting=found.settings[0], command=name)
        raise InputWrong(sentences(said, usage(command)))
    if not command["recipe"]:
        return Checked(found, "")
    places = [argument["name"] for argument in command["arguments"]]
    index = places.index("RECIPE")
    word = found.arguments[index] if len(found.arguments) > index else command["recipe"]
    if name == "preview" and len(found.arguments) == 1 and word.isdecimal():
        word = command["recipe"]
    if command["runs"]:  # they use the run's own settings: the recipe's file may have been edited since, or be gone
        return Checked(found, word)
    output = (folder or Path.cwd()) / value_of(found.options, "--output", "output")
    try:
        recipe = find_recipe(word, folder, command["recipe"], output)
    except InputWrong as error:
        raise InputWrong(sentences(str(error), quoting_hint(words, found.arguments)))
    reader = toml()
    if reader is None:
        data_source.check_owner(output / recipe.name, folder or Path.cwd(), recipe.data)
        return Checked(found, recipe.name, recipe)

    def is_text(key: str) -> bool:
        return wants_text(known["settings"].get(key, {}))

    text, values, given = read_values(recipe, found.settings, reader, output, folder, is_text)
    overridden = {".".join(keys): override for keys, override in given.items()}
    lines = []
    for key, why in find_errors(values, known["settings"]):
        near = [
            word
            for given, word in overridden.items()
            if f"{key}.".startswith(f"{given}.") or f"{given}.".startswith(f"{key}.")
        ]
        override = near[0] if near else ""
        line = 0 if override else line_of(text, key.split("."), reader)
        lines.append(fault(recipe.path, line, override, key, why))
    if lines:
        raise InputWrong("\n".join(first_faults(lines)))
    return Checked(found, recipe.name, recipe, values)


def names(known: Dict[str, Any]) -> List[str]:
    """Every command that can be typed: the table's, and the justfile's for developing."""
    text = (ROOT / "justfile").read_text(encoding="utf-8")
    return [*known["commands"], *re.findall(r"(?m)^([a-z][a-z-]*)(?: \*args)?:", text)]


def overview(known: Dict[str, Any]) -> str:
    """All commands, grouped."""
    lines = [_("Usage: {usage}", usage=f"{program()} COMMAND [RECIPE] [KEY=VALUE]…"), ""]
    named = _(
        "RECIPE: {recipes}, a file mine.toml, or your data: data/mine.xlsx, a folder of files.",
        recipes=listed(recipes()),
    )
    lines += [named, ""]
    groups: Dict[str, List[Dict[str, Any]]] = {}
    for command in known["commands"].values():
        groups.setdefault(command["group"], []).append(command)
    for group, commands in groups.items():
        rows = [f"  {one['name']:12} {_(one['summary'])}" for one in commands]
        lines += [_("{heading}:", heading=_(group)), *rows, ""]
    lines.append(
        _(
            "`{program} COMMAND --help` tells more. `{program} --list` also shows the commands for developing.",
            program=program(),
        )
    )
    return "\n".join(lines)


def help_text(command: Dict[str, Any]) -> str:
    """A command's help."""
    lines = _usage_lines(command)
    for text in command["help"]["text"]:
        lines += ["", *(f"  {line}" for line in _paragraph(_(text), COLUMNS - 4))]
    lines += ["", _("Options:")]
    options = command["help"]["options"]
    left = max(len(name) for name, _text in options) + 2
    for name, text in options:
        first, *more = _paragraph(_(text), COLUMNS - left - 2)
        lines += [f"  {name:{left}}{first}", *(f"  {'':{left}}{line}" for line in more)]
    lines += ["", _("Examples:"), *(f"  {JUST} {example}" for example in command["examples"])]
    return "\n".join(lines).replace(JUST, program())


def _usage_lines(command: Dict[str, Any]) -> List[str]:
    """The usage, its further lines below the first's words."""
    first = f"{JUST} {command['name']} "
    indent = width(_("Usage: {usage}", usage=first))
    words, *more = wrap(command["usage"][len(first) :], COLUMNS - indent)
    return [_("Usage: {usage}", usage=first + words), *(" " * indent + line for line in more)]


def _paragraph(text: str, columns: int) -> List[str]:
    """The lines of a paragraph. What has lines of its own keeps them, and what is short enough its blanks."""
    is_done = "\n" in text or width(text) <= columns
    return text.split("\n") if is_done else wrap(text, columns)


def answer(words: Sequence[str]) -> Optional[str]:
    """The help that these words ask for; None where they ask for none. Raises InputWrong."""
    name, *rest = words or ["help"]
    known = load()
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name == "help" or (name in ("-h", "--help") and not rest):
        return overview(known)
    if {"-h", "--help"} & set(rest) and name in known["commands"]:
        return help_text(known["commands"][name])
    if name not in names(known):
        raise unknown_command(name, names(known))
    return None
