"""The measurements that `just` has recipes for, each at a size that a suite can bear."""

import json
import os
import re
import shutil
import subprocess

from conftest import ROOT

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
