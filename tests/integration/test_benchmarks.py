"""The measurements of benchmarks/, each at a small size, and the page that one writes."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from benchmarks import cost, memory
from recipe.core import measurements
from support.command import ROOT

JUST = shutil.which("just")


def told(*words, cwd=ROOT):
    """What `just` said, as typed by somebody; its stages take this environment."""
    done = subprocess.run([JUST, *words], cwd=str(cwd), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_proofs_model(tmp_path):
    """`just proof --check`: pre-trained weights, rewritten as an InternLM2, are the model that they were."""
    said = told("proof", "--check", "--output", str(tmp_path))
    assert len(re.findall(r"(?m)^holds  ", said)) == 3
    assert "FAILS" not in said
    assert not (tmp_path / "proof.json").exists()
    assert json.loads((tmp_path / "smollm2-internlm2/config.json").read_text())["architectures"] == [
        "InternLM2ForCausalLM"
    ]


def test_the_adapters_speed(tmp_path):
    said = told("bench-adapter", "1", str(tmp_path))
    lines = re.findall(
        r"(?m)^(file|folder)\.pth: ([\d,]+) parameters: work [\d.]+ s,.* other libraries loaded: none$", said
    )
    assert lines == [("file", "10,903,552"), ("folder", "10,903,552")] * 2
    assert os.listdir(str(tmp_path)) == []


def test_the_merges_speed(tmp_path):
    said = told("bench-merge", "0.2", "1", str(tmp_path))
    assert "widths divided by 8" in said
    assert len(re.findall(r"(?m)^merge, cpu.*: [\d.]+ s, .* times as fast as xtuner", said)) == 2
    assert "equal to one rounding of each: 98,174,464 weights" in said
    assert "6 of 10 tensors changed" in said
    assert os.listdir(str(tmp_path)) == []


def test_the_page_is_what_the_command_makes():
    assert memory.PAGE.read_text(encoding="utf-8") == memory.page()


@pytest.mark.parametrize(("language", "readme"), [("en", "README.md"), ("zh", "README.zh-CN.md")])
def test_the_documents_table_of_costs_is_what_the_command_prints(language, readme):
    for path in (ROOT / readme, ROOT / "docs" / language / "speed.md"):
        assert cost.table(language) in path.read_text(encoding="utf-8")


def test_sizes_are_the_models_own():
    seven, twenty, seventy = memory.MODELS
    assert seven.parameters == 7_737_708_544  # of the merged 7B model's files
    assert seven.trained == 157_179_904
    assert twenty.parameters == 19_861_149_696  # from its published shape, 48 layers of 6144
    assert seventy.parameters == 68_976_648_192  # as published


def test_what_is_computed_is_what_was_measured():
    computed = memory.states(memory.MODELS[0], 1, 1)["QLoRA, ZeRO-2"][0] / 2**20
    assert computed == pytest.approx(measurements.memory_mib(0, "H100"), rel=0.02)


@pytest.mark.slow
def test_the_speed_of_answers():
    script = ROOT / "benchmarks" / "generation.py"
    words = [sys.executable, str(script), "--tiny", "--repeats", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=str(ROOT), capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one for one in found if "error" in one] == []
    assert sum("ratio" in one for one in found) == 4
    assert {one["same"] == one["of"] for one in found if one.get("check") == "greedy tokens"} == {True}


@pytest.mark.slow
def test_our_commands_are_timed(tmp_path):
    """The page's own commands run in container/test_shell.py."""
    script = ROOT / "benchmarks" / "whole.py"
    words = [sys.executable, str(script), "ours", "--tiny", "--tokens", "4", "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=str(ROOT), capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(one["way"], one["command"]) for one in found if "command" in one] == [
        ("ours", "train"), ("ours", "merge"), ("ours", "chat"),
    ]  # fmt: skip
