"""The last check of a merged folder, in a fresh process without a network: `python -m recipe.merging.trial FOLDER`.

Waits for a line on standard input, a JSON list of stop words: the folder is there then. Loads config and
tokenizer, writes generation_config.json with every token that ends an answer, and runs one forward pass through two
layers drawn at random and a small part of the vocabulary: two layers of the 7B model are 0.9 GB in bf16, whatever the
size of the whole. Prints one line of JSON.
"""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

from .plan import base_tensors

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


def forward(place: Path, tokenizer: Any, config: Any) -> Dict[str, Any]:
    """Figures of a forward pass of a short text through LAYERS random layers: layers and number of logits.

    Raises ValueError if a weight is missing or a logit is no number.
    """
    import torch
    from accelerate import init_empty_weights
    from accelerate.utils import set_module_tensor_to_device
    from transformers import AutoModelForCausalLM

    stored = base_tensors(place)
    ids = tokenizer.encode(TEXT)
    kept = sorted({*ids, *range(64)})  # the only rows of the vocabulary that are read
    if max(ids) >= config.vocab_size:
        raise ValueError(f"the tokenizer makes token {max(ids)}, the model has {config.vocab_size}")
    vocabulary, config.vocab_size = config.vocab_size, len(kept)
    layers = sorted(random.sample(range(config.num_hidden_layers), min(LAYERS, config.num_hidden_layers)))
    config.num_hidden_layers = len(layers)
    config.pad_token_id = None  # may lie beyond the rows that are kept
    config.use_cache = False
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, torch_dtype=torch.bfloat16).eval()
    for name, parameter in list(model.named_parameters()):
        tensor = stored[LAYER.sub(lambda m: str(layers[int(m[1])]), name, count=1)]
        if tensor.shape[0] == vocabulary and parameter.shape[0] == len(kept):
            value = torch.cat([tensor.read(row, row + 1) for row in kept])
        else:
            value = tensor.read()
        if value.shape != parameter.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, the model's code wants {tuple(parameter.shape)}")
        set_module_tensor_to_device(model, name, "cpu", value, torch.bfloat16)
    with torch.inference_mode():
        logits = model(torch.tensor([[kept.index(token) for token in ids]])).logits
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(f"logits of layers {layers} are no numbers")
    return {"layers": layers, "logits": logits.numel()}


def main(folder: str) -> None:
    from accelerate import init_empty_weights  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    stop_words = json.loads(sys.stdin.readline())
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    told = {
        "stops": stops(Path(folder), tokenizer, config, stop_words),
        **forward(Path(folder), tokenizer, config),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
