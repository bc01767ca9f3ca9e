"""Loads a merged folder offline in its own process: python -m recipe.weights.load_check MERGED BASE.

Preloads the libraries with the base, then waits for a JSON list of stop words on standard input, which says that the
folder is complete. Loads config and tokenizer, writes generation_config.json with every stop token, and runs a forward
pass through two random layers and a part of the vocabulary (0.9 GB for the 7B model in bf16). Prints a line of JSON.
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


def write_stop_tokens(place: Path, tokenizer: Any, config: Any, stop_words: Sequence[str]) -> List[int]:
    """Write every stop token to generation_config.json: the configs' own and stop words of one token. Return them."""
    from transformers import GenerationConfig

    found: List[int] = []
    try:
        generation = GenerationConfig.from_pretrained(str(place))
    except OSError:  # the folder has none
        generation = GenerationConfig.from_model_config(config)
    for value in (config.eos_token_id, generation.eos_token_id):
        found += value if isinstance(value, list) else [value] if value is not None else []
    for word in stop_words:
        ids = tokenizer.encode(word, add_special_tokens=False)
        found += ids if len(ids) == 1 else []
    generation.eos_token_id = sorted(set(found))
    # transformers derives it again from the model's config, losing the stop tokens, unless this flag is off.
    generation = GenerationConfig.from_dict({**generation.to_diff_dict(), "_from_model_config": False})
    generation.save_pretrained(str(place))
    written = GenerationConfig.from_pretrained(str(place)).eos_token_id
    assert written == sorted(set(found)), written
    return written


def load(place: Path) -> Tuple[Any, Any]:
    """Load (tokenizer, config) of a merged folder with the code in it; for InternLM2 that is a copy of ours."""
    from transformers import AutoConfig, AutoTokenizer

    return (
        AutoTokenizer.from_pretrained(str(place), trust_remote_code=True),
        AutoConfig.from_pretrained(str(place), trust_remote_code=True),
    )


def empty_model(config: Any, layers: int, rows: int) -> Any:
    """Model of the config's class without weights, with `layers` layers and `rows` rows of the vocabulary."""
    import torch
    from accelerate import init_empty_weights

    config.num_hidden_layers, config.vocab_size = layers, rows
    config.pad_token_id = None  # may be outside the kept rows
    config.use_cache = False
    with init_empty_weights(include_buffers=False):
        return model_code.make_model(config, torch_dtype=torch.bfloat16).eval()


def forward(place: Path, tokenizer: Any, config: Any) -> Dict[str, Any]:
    """Run a short text through LAYERS random layers; return their numbers and the number of logits.

    Raises ValueError for a missing weight or a non-finite logit.
    """
    import torch
    from accelerate.utils import set_module_tensor_to_device

    stored = base_tensors(place)
    ids = tokenizer.encode(TEXT)
    kept = sorted({*ids, *range(64)})  # the only rows of the vocabulary to load
    vocabulary = config.vocab_size
    if max(ids) >= vocabulary:
        raise ValueError(f"the tokenizer yields token {max(ids)}, but the model's vocabulary has {vocabulary}")
    layers = sorted(random.sample(range(config.num_hidden_layers), min(LAYERS, config.num_hidden_layers)))
    model = empty_model(config, len(layers), len(kept))
    tied = config.tie_word_embeddings and model.get_output_embeddings() is not None
    for name, parameter in list(model.named_parameters()):
        if tied and name not in stored and parameter is model.get_output_embeddings().weight:
            continue  # stored under its other name
        tensor = stored[LAYER.sub(lambda m: str(layers[int(m[1])]), name, count=1)]
        if tensor.shape[0] == vocabulary and parameter.shape[0] == len(kept):
            value = torch.cat([tensor.read(row, row + 1) for row in kept])
        else:
            value = tensor.read()
        if value.shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, the model's code expects {tuple(parameter.shape)}")
        set_module_tensor_to_device(model, name, "cpu", value, torch.bfloat16)
    if tied:
        model.tie_weights()
    with torch.inference_mode():
        logits = model(torch.tensor([[kept.index(token) for token in ids]])).logits
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"the logits of layers {layers} are not finite")
    return {"layers": layers, "logits": logits.numel()}


def preload(base: Path) -> None:
    """Import what the check needs by loading the base without weights. Runs the base's own code only for model families
    that we have no code for.
    """
    model_code.load_tokenizer(base)
    config = model_code.load_config(base)
    empty_model(config, layers=1, rows=1)


def main(folder: str, base: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(Exception):  # an error shows again with the merged model
        preload(Path(base))
    ready = time.monotonic()
    stop_words = json.loads(sys.stdin.readline())
    started = time.monotonic()
    tokenizer, config = load(Path(folder))
    figures = {
        "stops": write_stop_tokens(Path(folder), tokenizer, config, stop_words),
        **forward(Path(folder), tokenizer, config),
        "seconds": {"preload": round(ready - began, 2), "check": round(time.monotonic() - started, 2)},
    }
    print(json.dumps(figures), flush=True)
    os._exit(0)  # skips the libraries' slow shutdown


if __name__ == "__main__":
    main(*sys.argv[1:])
