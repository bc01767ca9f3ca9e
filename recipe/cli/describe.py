"""Writes grammar.json, which grammar.py reads: python -m recipe.cli.describe."""

import inspect
import json
from pathlib import Path
from typing import Any, Dict, List

import click
from pydantic import BeforeValidator
from typing_extensions import get_args

from recipe.cli import grammar, main
from recipe.cli.command import Keyword
from recipe.core import settings
from recipe.core.recipe_files import ROOT

KEPT = ("type", "enum", "anyOf", "items", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
        "minItems")  # fmt: skip


def commands() -> Dict[str, Any]:
    """Every command, with its help."""
    parent = click.Context(main.cli, info_name=grammar.JUST)
    return {name: _command(main.cli.get_command(parent, name), name) for name in main.COMMANDS}


def _command(command: Any, name: str) -> Dict[str, Any]:
    context = click_context(command, name)
    options = [one for one in command.params if isinstance(one, click.Option)]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    # --help is none of its own parameters.
    all_options = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    records = [one.get_help_record(context) for one in all_options]
    return {
        "name": name,
        "group": command.group,
        "summary": command.get_short_help_str(100),
        "usage": " ".join([f"{grammar.JUST} {name}", *command.collect_usage_pieces(context)]),
        "recipe": command.default,
        "settings": command.settings,
        "runs": command.runs,
        "arguments": [
            {
                "name": (one.metavar or str(one.name).upper()).strip("[]."),
                "required": one.required,
                "many": one.nargs == -1,
                "choices": list(one.type.choices) if isinstance(one.type, click.Choice) else [],
            }
            for one in arguments
        ],
        "options": [
            {
                "names": [*one.opts, *one.secondary_opts],
                "value": not one.is_flag,
                "keyword": isinstance(one, Keyword),
                "hidden": one.hidden,
            }
            for one in options
        ]
        + [{"names": ["--help", "-h"], "value": False, "keyword": False, "hidden": False}],
        "help": {
            "text": _paragraphs(command.help),
            "options": [list(one) for one in records if one],
        },
        "examples": list(command.examples),
    }


def click_context(command: Any, name: str) -> click.Context:
    """The same on every terminal and by every version of click."""
    return click.Context(
        command, info_name=f"{grammar.JUST} {name}", max_content_width=grammar.COLUMNS, terminal_width=grammar.COLUMNS,
        **command.context_settings,
    )  # fmt: skip


def _paragraphs(text: str) -> List[str]:
    """The paragraphs of a help text, each in one line; one that begins with \\b as it is."""
    parts = inspect.cleandoc(text).split("\n\n")
    return [one[2:] if one.startswith("\b\n") else " ".join(one.split()) for one in parts]


def schemas() -> Dict[str, Any]:
    """dotted key → its JSON schema, as far as schema.find_error knows it."""
    schema = settings.Settings.model_json_schema()
    found: Dict[str, Any] = {}

    def walk(model: Any, table: Dict[str, Any], above: str) -> None:
        for name, field in model.model_fields.items():
            one = table["properties"][name]
            place = one.get("$ref") or next((part["$ref"] for part in one.get("allOf", []) if "$ref" in part), "")
            if place:
                walk(field.annotation, schema["$defs"][place.rpartition("/")[2]], f"{above}{name}.")
                continue
            found[above + name] = _plain(one)
            nested = [part for one in get_args(field.annotation) for part in getattr(one, "__metadata__", ())]
            if any(isinstance(part, BeforeValidator) for part in [*field.metadata, *nested]):
                found[above + name]["bare"] = True  # one text in place of a list of texts

    walk(settings.Settings, schema, "")
    return found


def _plain(schema: Dict[str, Any]) -> Dict[str, Any]:
    """Without titles and defaults, the same from every version of pydantic."""
    made: Dict[str, Any] = {}
    for name in KEPT:
        if name in schema:
            value = schema[name]
            if name == "anyOf":
                value = [_plain(one) for one in value]
            elif name == "items":
                value = _plain(value)
            elif isinstance(value, float) and value == int(value):
                value = int(value)
            made[name] = value
    if "const" in schema:
        made["enum"] = [schema["const"]]
    return made


def text() -> str:
    return json.dumps({"commands": commands(), "settings": schemas()}, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    target = Path(grammar.__file__).with_name("grammar.json")
    target.write_text(text(), encoding="utf-8")
    print(target.relative_to(ROOT))
