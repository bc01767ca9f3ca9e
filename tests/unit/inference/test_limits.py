"""Prompts that are longer than positions or memory."""

from types import SimpleNamespace

import pytest
import torch

from recipe.core.errors import InputWrong
from recipe.inference import limits, loading

SEVEN_B = dict(
    max_position_embeddings=32768, vocab_size=92544, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "changes", "free", "words"),
    [
        (32768, {}, 1e15, ["32,768 tokens", "32,768 positions"]),
        (50000, {}, 1e15, ["50,000 tokens", "32,768 positions"]),
        (2048, {"max_position_embeddings": 2048}, 1e15, ["2,048 tokens", "2,048 positions"]),
        (20000, {}, 24e9, ["20,000 tokens", "24.0 GB"]),
        (8000, {"max_position_embeddings": None}, 8e9, ["8,000 tokens", "8.0 GB"]),
        (4000, {"num_key_value_heads": None}, 1e9, ["4,000 tokens", "1.0 GB"]),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(tokens, changes, free, words):
    with pytest.raises(InputWrong) as caught:
        limits.check_prompt(SimpleNamespace(**{**SEVEN_B, **changes}), tokens, 2, free)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("tokens", "free"), [(32767, 1e15), (2000, 8e9), (10, 1e8)])
def test_a_prompt_that_fits_is_answered(tokens, free):
    limits.check_prompt(SimpleNamespace(**SEVEN_B), tokens, 2, free)
    limits.check_prompt(SimpleNamespace(), tokens, 4, free)  # a model of other names


def test_memory_that_pytorch_keeps_for_the_next_answer_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in (
        ("mem_get_info", (int(1e9), int(24e9))),
        ("memory_reserved", int(20e9)),
        ("memory_allocated", int(16e9)),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert loading.free_memory() == 5e9
