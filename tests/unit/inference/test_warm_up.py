"""What is prepared before a training begins."""

import json
import os
from types import SimpleNamespace

import pytest

from recipe.core import settings
from recipe.inference import warm_up


def test_weights_are_read_where_memory_holds_them(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"1" * 1000)
    (tmp_path / "config.json").write_bytes(b"2" * 1000)
    asked = []
    monkeypatch.setattr(
        warm_up.threading, "Thread", lambda target, args, daemon: SimpleNamespace(start=lambda: target(*args))
    )
    monkeypatch.setattr(os, "posix_fadvise", lambda *words: asked.append(words[1:]))
    for available in (2000, 2001):
        monkeypatch.setattr(warm_up.loading, "available_memory", lambda available=available: available)
        warm_up.read_ahead(tmp_path)
    assert asked == [(0, 0, os.POSIX_FADV_WILLNEED)]
    monkeypatch.undo()
    assert warm_up.loading.available_memory() > 1 << 20


def test_one_layer_has_the_models_widths(run_of_demo, tmp_path):
    config = json.loads((run_of_demo / "config.json").read_text())
    found = warm_up.one_layer(run_of_demo)
    assert found["hidden_size"] == config["hidden_size"]
    assert found["num_hidden_layers"] == 1
    assert warm_up.one_layer(tmp_path) == {}


@pytest.mark.slow
def test_a_step_and_an_answer_of_one_layer(run_of_demo, monkeypatch):
    """What compiles on a GPU runs on a CPU, without kernels."""
    from recipe.inference import decoding

    answered = []
    generate = decoding.Decoder.generate
    monkeypatch.setattr(decoding.Decoder, "generate", lambda *words, **more: answered.append(generate(*words, **more)))
    chosen = settings.load("tiny", ["train.speed=fast", "train.evaluation_inputs=3"])[1]
    warm_up.run_layer(chosen, warm_up.one_layer(run_of_demo), "cpu")
    assert [len(row) for row in answered[0]] == [1, 1, 1]


def test_without_a_card_nothing_is_compiled():
    assert not warm_up.has_kernels(settings.load("coach")[1])
