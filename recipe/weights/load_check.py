"""The last check of a merged folder, in a process of its own without a network: `-m recipe.weights.load_check …`.

Rehearses with the base, whose libraries and code the merged model will need, and waits for a line on standard input, a
JSON list of stop words: the folder is there then. Loads config and tokenizer, writes generation_config.json with every
token that ends an answer, and runs one forward pass through two layers drawn at random and a small part of the
vocabulary: two layers of the 7B model are 0.9 GB in bf16, whatever the size of the whole. Prints one line of JSON.
"""

import contextlib
import json
import os
import random
import re
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from recipe.base_model import model_code
from recipe.weights.merge_plan import base_tensors

TEXT = "你好 hello"
LAYERS = 2
LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")  # model.layers.7.attention.wqkv.weight


def stops(place: Path, tokenizer: Any, config: Any, stop_words: Sequence[str]) -> List[int]:
    """Every token that ends an answer: the generation config's, the config's, and stop words that are one token."""
    from transformers import GenerationConfig

    found: List[int] = []
    try:
        generation = GenerationConfig.from_pretrained(str(place))
    except OSError:  # there is none
        generation = GenerationConfig.from_model_config(config)
    for value in (config.eos_token_id, generation.eos_token_id):
        found += value if isinstance(value, list) else [value] if value is not None else []
    for word in stop_words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        found += ids if len(ids) == 1 else []
    generation.eos_token_id = sorted(set(found))
    # Afresh: one derived from the model's config is derived again when used, and would forget the stop tokens.
    generation = GenerationConfig.from_dict({**generation.to_diff_dict(), "_from_model_config": False})
    generation.save_pretrained(str(place))
    told = GenerationConfig.from_pretrained(str(place)).eos_token_id
    assert told == sorted(set(found)), told
    return told


def load(place: Path) -> Tuple[Any, Any]:
    """(tokenizer, config) of a merged folder, by the code that lies in it: of InternLM2 that is a copy of ours."""
    from transformers import AutoConfig, AutoTokenizer

    return (
        AutoTokenizer.from_pretrained(str(place), trust_remote_code=True),
        AutoConfig.from_pretrained(str(place), trust_remote_code=True),
    )


def skeleton(config: Any, layers: int, rows: int) -> Any:
    """The model that the config's code makes, of so many layers and rows of the vocabulary, without weights."""
    import torch
    from accelerate import init_empty_weights

    config.num_hidden_layers, config.vocab_size = layers, rows
    config.pad_token_id = None  # may lie beyond the rows that are kept
    config.use_cache = False
    with init_empty_weights(include_buffers=False):
        return model_code.make_model(config, torch_dtype=torch.bfloat16).eval()


def forward(place: Path, tokenizer: Any, config: Any) -> Dict[str, Any]:
    """Figures of a forward pass of a short text through LAYERS random layers: layers and number of logits.

    Raises ValueError if a weight is missing or a logit is no number.
    """
    import torch
    from accelerate.utils import set_module_tensor_to_device

    stored = base_tensors(place)
    ids = tokenizer.encode(TEXT)
    kept = sorted({*ids, *range(64)})  # the only rows of the vocabulary that are read
    vocabulary = config.vocab_size
    if max(ids) >= vocabulary:
        raise ValueError(f"the tokenizer makes token {max(ids)}, the model has {vocabulary}")
    layers = sorted(random.sample(range(config.num_hidden_layers), min(LAYERS, config.num_hidden_layers)))
    model = skeleton(config, len(layers), len(kept))
    tied = config.tie_word_embeddings and model.get_output_embeddings() is not None
    for name, parameter in list(model.named_parameters()):
        if tied and name not in stored and parameter is model.get_output_embeddings().weight:
            continue  # the folder holds the one matrix under its other name
        tensor = stored[LAYER.sub(lambda m: str(layers[int(m[1])]), name, count=1)]
        if tensor.shape[0] == vocabulary and parameter.shape[0] == len(kept):
            value = torch.cat([tensor.read(row, row + 1) for row in kept])
        else:
            value = tensor.read()
        if value.shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, the model's code wants {tuple(parameter.shape)}")
        set_module_tensor_to_device(model, name, "cpu", value, torch.bfloat16)
    if tied:
        model.tie_weights()
    with torch.inference_mode():
        logits = model(torch.tensor([[kept.index(token) for token in ids]])).logits
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"logits of layers {layers} are no numbers")
    return {"layers": layers, "logits": logits.numel()}


def rehearse(base: Path) -> None:
    """Import what the check will need, by loading what it will load, but for the weights. The base's own code is run
    only where no code of ours loads it.
    """
    model_code.load_tokenizer(base)
    config = model_code.load_config(base)
    skeleton(config, layers=1, rows=1)


def main(folder: str, base: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(Exception):  # what is wrong with it is wrong with the merged model too, and told of that
        rehearse(Path(base))
    ready = time.monotonic()
    stop_words = json.loads(sys.stdin.readline())
    called = time.monotonic()
    tokenizer, config = load(Path(folder))
    told = {
        "stops": stops(Path(folder), tokenizer, config, stop_words),
        **forward(Path(folder), tokenizer, config),
        "seconds": {"rehearsal": round(ready - began, 2), "check": round(time.monotonic() - called, 2)},
    }
    print(json.dumps(told), flush=True)
    os._exit(0)  # taking the libraries down takes time


if __name__ == "__main__":
    main(*sys.argv[1:])
