"""Our InternLM2 classes, under the names that a rendered config imports; a folder's own code is never run."""

import contextlib
import functools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ContextManager, Deque, Dict, Iterator, Tuple

import torch
from transformers import PreTrainedTokenizerFast, modeling_utils

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM as Model
from recipe.base_model.tiny.tokenization_internlm2 import InternLM2Tokenizer as SentencePieceTokenizer

__all__ = ["InternLM2Config", "InternLM2ForCausalLM", "InternLM2Tokenizer"]


class InternLM2ForCausalLM(Model):
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Like transformers', but a .bin file is read as tensors only, because a pickle can hold code, and weights are
        read and converted in threads, or converted by the GPU they belong to.
        """
        places, dtype = kwargs.get("device_map"), kwargs.get("torch_dtype")
        device = places.get("") if isinstance(places, dict) else None
        prepared: ContextManager[None] = contextlib.nullcontext()
        if kwargs.get("quantization_config") is not None and isinstance(dtype, torch.dtype):
            prepared = _prepared("cpu", dtype)  # bitsandbytes takes them from there
        elif isinstance(device, int):
            prepared = _prepared(device, None)
        with _tensors_only(), prepared:
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


AHEAD = 4  # weights that are read before it is their turn


class _Prepared(Dict[str, torch.Tensor]):
    """A file's weights, moved to `device` and converted to `dtype` by threads shortly before each one's turn."""

    device: Any
    dtype: Any

    def items(self) -> Any:
        waiting: Deque[Tuple[str, Future[torch.Tensor]]] = deque()
        with ThreadPoolExecutor(AHEAD) as threads:
            for later in self:
                waiting.append((later, threads.submit(self._prepare, later)))
                if len(waiting) > AHEAD:
                    name, made = waiting.popleft()
                    yield name, made.result()
            for name, made in waiting:
                yield name, made.result()

    def _prepare(self, name: str) -> torch.Tensor:
        tensor = self[name]
        return tensor.to(self.device, self.dtype if torch.is_floating_point(tensor) else None)


@contextlib.contextmanager
def _prepared(device: Any, dtype: Any) -> Iterator[None]:
    """transformers 4.36 reads, converts and moves one weight after the other."""
    read = modeling_utils.load_state_dict

    def read_prepared(*args: Any, **kwargs: Any) -> Any:
        found = _Prepared(read(*args, **kwargs))
        found.device, found.dtype = device, dtype
        return found

    modeling_utils.load_state_dict = read_prepared
    try:
        yield
    finally:
        modeling_utils.load_state_dict = read
