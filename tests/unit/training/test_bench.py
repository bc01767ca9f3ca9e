"""`just bench`: what it measures and the bound that it computes."""

import contextlib
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from recipe.core import measurements, settings
from recipe.core.errors import InputWrong
from recipe.training import bench
from support.command import ROOT

BENCH = """
import json, sys
from pathlib import Path
from recipe.core import settings
from recipe.training import bench
bench.TIMED_STEPS = bench.WARMUP_STEPS = 1
said = []
found = bench.run(settings.load("tiny", ["train.max_length=32"])[1], Path(sys.argv[1]), said.append)
print(json.dumps([found, said]))
"""


@pytest.mark.slow
def test_bench_measures_and_plan_reckons_with_it(tmp_path, monkeypatch):
    """In a process of its own, as it runs: what it compares depends on what a process has set in PyTorch."""
    done = subprocess.run(
        [sys.executable, "-c", BENCH, str(tmp_path)], cwd=str(ROOT), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found, said = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == found
    assert [entry["way"] for entry in found["tiny"]] == ["stock", "fast", "kept", "small"], said
    assert all(entry["seconds"] > 0 and entry["floor"] > 0 for entry in found["tiny"])
    assert found["ceilings"]["matmul"] > 1e8
    assert found["measurement"] == []  # nothing of the tiny model is taken for the 7B model's
    assert len(said) == 6
    card = "NVIDIA GeForce RTX 4090"
    plan = dict(batch_size=2, max_length=512, iterations=10, way="fast")
    assert measurements.estimate(plan, card)["seconds"] is None
    own = {"card": card, "way": "fast", "batch_size": 1, "max_length": 512, "seconds": 2.5, "memory_mib": 9000}
    (tmp_path / "bench.json").write_text(json.dumps({"measurement": [{**own, "source": "just bench"}]}))
    monkeypatch.setattr(measurements, "BENCH", tmp_path / "bench.json")
    estimated = measurements.estimate(plan, card)
    assert estimated["seconds"] == 50
    assert estimated["source"] == "just bench"
    assert 9000 < estimated["memory_mib"] < 12_000
    with pytest.raises(InputWrong, match="InternLM2-7B"):
        bench.run(settings.load("tiny", ["base=llama2_7b_chat_qlora_medical_e1"])[1], tmp_path, said.append)


def test_the_floor_counts_what_must_be_done():
    """By hand for one layer: products of 2·tokens·out·in, twice, and all but the last once more; the head twice."""
    sizes = {**bench.SHAPES_TINY, "num_hidden_layers": 1, "vocab_size": 10}
    matrices = [(384, 256), (256, 256), (704, 256), (704, 256), (256, 704)]
    assert bench.matrix_shapes(sizes) == matrices
    numbers = sum(out * inner for out, inner in matrices)
    ceilings = {"matmul": 1e9, "layout": 1e-3}
    assert bench.step_floor(sizes, ceilings, 5, False) == pytest.approx(2 * 5 * (2 * numbers + 2 * 2560) / 1e9 + 2e-3)
    more = bench.step_floor(sizes, ceilings, 5, True) - bench.step_floor(sizes, ceilings, 5, False)
    assert more == pytest.approx(2 * 5 * (numbers - 704 * 256) / 1e9)


def test_the_layout_of_weights_is_timed_without_pythons_waiting(monkeypatch):
    """As a CUDA graph: what is recorded once is replayed, and a replay's time divided. Here the card is made up."""
    done = []

    class Graph:
        def replay(self):
            done.append("replay")
            time.sleep(0.02)

    @contextlib.contextmanager
    def record(graph):
        done.append("record")
        yield
        done.append("recorded")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    took = bench.graph_seconds(lambda: done.append("work"), 20)
    assert done[:2] == ["work", "wait"]
    assert done[2:24] == ["record", *["work"] * 20, "recorded"]
    assert done[24:] == ["replay"] * (bench.WARMUP_STEPS + bench.TIMED_STEPS)
    assert 0.001 <= took < 0.005
    steps = iter([0.0, 10.0, 13.0, 20.0, 22.0])  # of a clock: the warm-up begins, then two steps
    monkeypatch.setattr(bench, "WARMUP_STEPS", 1)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(steps)))
    assert bench.time_calls(lambda: None, 2) == [3.0, 2.0]
