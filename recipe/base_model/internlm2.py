"""Our InternLM2 classes, under the names that a rendered config imports; a folder's own code is never run."""

import contextlib
import functools
from pathlib import Path
from typing import Any, Dict, Iterator

import torch
from transformers import PreTrainedTokenizerFast, modeling_utils

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM as Model
from recipe.base_model.tiny.tokenization_internlm2 import InternLM2Tokenizer as SentencePieceTokenizer

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2Tokenizer"]


class InternLM2ForCausalLM(Model):
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Like transformers', but a .bin file is read as tensors only, because a pickle can hold code, and a GPU
        converts its weights' dtype.
        """
        device = (kwargs.get("device_map") or {}).get("")
        on_gpu = isinstance(device, int) and not kwargs.get("quantization_config")
        with _tensors_only(), _moved_to(device) if on_gpu else contextlib.nullcontext():
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


class _Moving(Dict[str, torch.Tensor]):
    """A file's weights, each of which moves to the device when it is its turn."""

    device: Any

    def items(self) -> Any:
        return ((name, tensor.to(self.device)) for name, tensor in super().items())


@contextlib.contextmanager
def _moved_to(device: Any) -> Iterator[None]:
    """transformers 4.36 converts weights on the CPU and moves them then: of 15 GB the GPU has done it at once."""
    read = modeling_utils.load_state_dict

    def read_moving(*args: Any, **kwargs: Any) -> _Moving:
        found = _Moving(read(*args, **kwargs))
        found.device = device
        return found

    modeling_utils.load_state_dict = read_moving
    try:
        yield
    finally:
        modeling_utils.load_state_dict = read
