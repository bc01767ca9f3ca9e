"""The notebooks: valid, marked as not run, every command understood. test_docs.py runs those that can run here."""

import json
import re
import shlex
import subprocess
import sys

import pytest

from recipe.base_model.hub_addresses import branch
from recipe.core import settings
from recipe.planning import memory
from recipe.xtuner import preset_facts, step_choice
from support.command import ROOT
from support.notebooks import NOTEBOOKS, cells, python, shell

OTHERS = {"git", "nvidia-smi"}


def test_there_is_one():
    assert [path.name for path in NOTEBOOKS] == ["t4.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid(path):
    """By a JSON schema of the fields that nbformat names, without outputs; ids differ, and Python's part compiles."""
    schema = str(ROOT / "tests/support/schemas/notebook.json")
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", schema, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in cells(path, "code"):
        compile(python(cell), path.name, "exec")
        assert not [line for line in cell.splitlines() if line.startswith("%") and not re.match("%(cd|env) ", line)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_first_cell_says_that_it_was_not_run(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown"
    assert "**Not run by us yet**" in "".join(first["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_command_is_understood(path):
    names = []
    for line in shell(path):
        program, *words = shlex.split(line)
        if program == "./justw":
            command = [sys.executable, "-m", "recipe.cli.words", *words]
            done = subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            names.append(words[0])
        else:
            assert program in OTHERS, line
    assert names == ["doctor", "demo", "plan", "train", "merge", "chat"]


def test_the_t4_notebook_trains_the_small_model_in_the_small_step():
    for line in shell(ROOT / "notebooks/t4.ipynb"):
        words = shlex.split(line)
        if words[0] == "./justw" and words[1] in ("plan", "train", "merge"):
            chosen = settings.load(words[2], words[3:])[1]
            assert memory.shape_by_name(preset_facts.facts(chosen.base).model).parameters == 1.8e9
            assert chosen.model.id.split("/")[1] == preset_facts.facts(chosen.base).model.split("/")[1]
            assert branch(chosen.model) == "main"
            assert step_choice.speed(chosen) == "small"
