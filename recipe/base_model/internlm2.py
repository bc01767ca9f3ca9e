"""Our InternLM2 classes, under the names that a rendered config imports; a folder's own code is never run."""

import contextlib
import functools
from pathlib import Path
from typing import Any, Iterator

import torch
from transformers import PreTrainedTokenizerFast

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM as Model
from recipe.base_model.tiny.tokenization_internlm2 import InternLM2Tokenizer as SentencePieceTokenizer

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2Tokenizer"]


class InternLM2ForCausalLM(Model):
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Like transformers', but a .bin file is read as tensors only, because a pickle can hold code."""
        with _tensors_only():
            return super().from_pretrained(*args, **kwargs)


class InternLM2Tokenizer(SentencePieceTokenizer):
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Like transformers'. Another model in InternLM2's layout (smollm2) has a tokenizer.json in place of
        tokenizer.model.
        """
        place = Path(pretrained_model_name_or_path)
        if (place / "tokenizer.json").is_file() and not (place / "tokenizer.model").is_file():
            return PreTrainedTokenizerFast.from_pretrained(str(place), *args, **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """transformers 4.36 calls torch.load without weights_only."""
    load = torch.load
    torch.load = functools.partial(load, weights_only=True)
    try:
        yield
    finally:
        torch.load = load
