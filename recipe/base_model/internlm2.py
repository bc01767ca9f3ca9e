"""InternLM2's classes, our own, by the names that a rendered config loads them by. None of a folder's own code runs."""

import contextlib
import functools
from typing import Any, Iterator

import torch

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM as Model
from recipe.base_model.tiny.tokenization_internlm2 import InternLM2Tokenizer

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2Tokenizer"]


class InternLM2ForCausalLM(Model):
    @classmethod
    def from_pretrained(cls, *given: Any, **more: Any) -> Any:
        """transformers' own, but that a .bin file is read as tensors alone: a pickle can hold code."""
        with _tensors_alone():
            return super().from_pretrained(*given, **more)


@contextlib.contextmanager
def _tensors_alone() -> Iterator[None]:
    """transformers 4.36 calls torch.load without weights_only."""
    load = torch.load
    torch.load = functools.partial(load, weights_only=True)
    try:
        yield
    finally:
        torch.load = load
