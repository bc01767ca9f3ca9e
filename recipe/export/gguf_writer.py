"""Writes an InternLM2 model folder as a GGUF file for llama.cpp and Ollama. Needs no GPU; holds one tensor in memory.

Works like llama.cpp's converter, except for two differences that keep tokenization equal to the model's tokenizer:
user-defined pieces of sentencepiece stay whole (the converter may merge them), and the piece "\\0" gets a name that no
text contains (the converter uses a dragon emoji). Uses the `gguf` package (docker/locks/more.in).
"""

import json
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from recipe.base_model import architecture, folder, licence
from recipe.core import tensor_files
from recipe.core.errors import InputWrong
from recipe.core.translation import _

TYPES = ("f16", "f32", "bf16", "q8_0")
NUL = "[NUL]"  # llama.cpp reads pieces as C strings, where "\0" is empty
ROWS = 2048  # of a matrix converted to fp32 at a time
FIXED_SCORE = -1000.0  # of added tokens, which are never merged

# InternLM2's names → GGUF's. wqkv becomes three tensors.
NAMES = {
    "model.tok_embeddings.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "output.weight": "output.weight",
}
LAYER = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.wo.weight": "attn_output.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
}
WQKV = "attention.wqkv.weight"


def gguf_names(name: str) -> List[str]:
    """GGUF names of an InternLM2 weight: one name, or three (q, k, v) for wqkv. Raises InputWrong if unknown."""
    if name in NAMES:
        return [NAMES[name]]
    parts = name.split(".", 3)
    if name.startswith("model.layers.") and len(parts) == 4:
        if parts[3] == WQKV:
            return [f"blk.{parts[2]}.attn_{part}.weight" for part in "qkv"]
        if parts[3] in LAYER:
            return [f"blk.{parts[2]}.{LAYER[parts[3]]}"]
    raise InputWrong(
        _("{weight} is not an InternLM2 weight. Use llama.cpp's convert_hf_to_gguf.py for other models.", weight=name)
    )


def interleave_halves(weight: Any, heads: int) -> Any:
    """Rows [heads · dim, in] of q or k with each head's two halves interleaved, as llama.cpp rotates them."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def split_wqkv(weight: Any, heads: int, kv_heads: int) -> Tuple[Any, Any, Any]:
    """wqkv [(heads + 2 · kv_heads) · dim, in] → q, k, v in llama.cpp's order.

    Its rows are grouped by key-value head: that head's queries, then its key, then its value.
    """
    columns = weight.shape[1]
    groups = weight.reshape(kv_heads, heads // kv_heads + 2, -1, columns)
    query = groups[:, :-2].reshape(-1, columns)
    key, value = groups[:, -2].reshape(-1, columns), groups[:, -1].reshape(-1, columns)
    return interleave_halves(query, heads), interleave_halves(key, kv_heads), value


def weights(model: Path) -> Iterator[Tuple[str, tensor_files.Stored]]:
    """(name, location) of every weight in a model folder."""
    for path in folder.weights(model):
        yield from sorted(tensor_files.tensors(path).items())


def tensors(model: Path) -> Iterator[Tuple[str, Any]]:
    """(name, tensor) of every weight; one tensor in memory."""
    for name, stored in weights(model):
        yield name, stored.read()


def vocabulary(model: Path, size: int) -> Tuple[List[bytes], List[float], List[int], bool]:
    """(pieces, scores, types, add_space_prefix) of the tokenizer, with added tokens.

    `size` is the model's vocabulary; ids beyond the tokenizer's are filled with unused pieces.
    """
    import gguf
    from transformers.utils import sentencepiece_model_pb2_new as sentencepiece_model

    kinds = gguf.TokenType
    spm = sentencepiece_model.ModelProto()
    spm.ParseFromString((model / "tokenizer.model").read_bytes())
    pieces, scores, types = [], [], []
    for piece in spm.pieces:
        nul = piece.piece == "\0"
        pieces.append(NUL.encode() if nul else piece.piece.encode("utf-8"))
        scores.append(piece.score)
        types.append(int(kinds.UNUSED) if nul else piece.type)  # GGUF's numbers are sentencepiece's
    for number in range(len(pieces), size):
        pieces.append(f"[PAD{number}]".encode())
        scores.append(FIXED_SCORE)
        types.append(int(kinds.UNUSED))
    for number, added in added_tokens(model).items():
        if number >= len(pieces):
            raise InputWrong(
                _(
                    "{model}: the added token {token!r} has id {number}, beyond the vocabulary.",
                    model=model,
                    token=added["content"],
                    number=number,
                )
            )
        pieces[number] = added["content"].encode("utf-8")
        scores[number] = FIXED_SCORE
        types[number] = int(kinds.CONTROL if added.get("special") else kinds.USER_DEFINED)
    return pieces, scores, types, spm.normalizer_spec.add_dummy_prefix


def _write_sentencepiece(writer: Any, model: Path, size: int) -> List[bytes]:
    pieces, scores, types, prefix = vocabulary(model, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_space_prefix(prefix)
    return pieces


def _write_bpe(writer: Any, model: Path, size: int) -> List[bytes]:
    """The vocabulary of a tokenizer.json that splits text as SmolLM2's does."""
    import gguf

    bpe = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    added = added_tokens(model)
    words = {**{number: word for word, number in bpe["vocab"].items()}, **{n: a["content"] for n, a in added.items()}}
    if sorted(words) != list(range(size)):
        raise InputWrong(
            _(
                "{model}/tokenizer.json does not hold the {size:,} tokens of config.json's vocabulary.",
                model=model,
                size=size,
            )
        )
    pieces = [words[number].encode("utf-8") for number in range(size)]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(pieces)
    writer.add_token_types([int(kinds.CONTROL if number in added else kinds.NORMAL) for number in range(size)])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]])
    return pieces


def added_tokens(model: Path) -> Dict[int, Dict[str, Any]]:
    """Added tokens of tokenizer_config.json, by id."""
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    return {int(number): added for number, added in settings.get("added_tokens_decoder", {}).items()}


def rope_scaling(config: Dict[str, Any]) -> float:
    """Factor of linear position scaling, 1.0 without scaling. Raises InputWrong for other kinds.

    Ignores dynamic scaling: it starts beyond the trained length, which is the GGUF file's context length.
    """
    _theta, scaling = architecture.rope(config)
    kind = architecture.rope_type(scaling)
    if kind in (None, "default", "dynamic"):
        return 1.0
    if kind == "linear":
        return float(scaling["factor"])
    raise InputWrong(
        _(
            "rope_scaling {scaling} of the model's config.json is not supported in an InternLM2 GGUF file.",
            scaling=scaling,
        )
    )


def quantize(tensor: Any, kind: Any) -> Any:
    """Quantize a tensor to a NumPy array of gguf's type `kind`; converts ROWS rows to fp32 at a time."""
    import gguf
    import numpy

    if tensor.dim() == 1:
        return gguf.quantize(tensor.float().numpy(), kind)
    if str(tensor.dtype) == "torch.float16" and kind == gguf.GGMLQuantizationType.F16:
        return tensor.contiguous().numpy()
    result = None
    for at in range(0, len(tensor), ROWS):
        with numpy.errstate(over="ignore"):
            part = gguf.quantize(tensor[at : at + ROWS].float().numpy(), kind)
        if result is None:
            result = numpy.empty((len(tensor), *part.shape[1:]), part.dtype)
        result[at : at + ROWS] = part
    return result


def write(model: Path, path: Path, kind: str, name: str, stop: str, chat_template: str) -> Dict[str, Any]:
    """Write the model folder `model` as the GGUF file `path`, matrices in `kind` (one of TYPES), vectors in f32.

    `stop` is the token that ends an answer, `chat_template` Jinja. Figures: tensors, bytes, kind. Raises InputWrong
    if the model is not InternLM2, or a weight overflows in `kind`.
    """
    import gguf
    import numpy

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    architecture_name = (config.get("architectures") or ["?"])[0]
    if architecture_name != architecture.CLASS or config.get("bias"):
        raise InputWrong(
            _(
                "{model} is a model of kind {kind} with biases; only InternLM2 without biases is supported. Use "
                "llama.cpp's convert_hf_to_gguf.py for others.",
                model=model,
                kind=architecture_name,
            )
            if config.get("bias")
            else _(
                "{model} is a model of kind {kind}; only InternLM2 without biases is supported. Use "
                "llama.cpp's convert_hf_to_gguf.py for others.",
                model=model,
                kind=architecture_name,
            )
        )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config["hidden_size"] // heads
    quantization = getattr(gguf.GGMLQuantizationType, kind.upper())
    file_type = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}[kind]

    writer = gguf.GGUFWriter(str(path), "internlm2")
    writer.add_type("model")
    writer.add_name(name)
    terms = licence.read_card(model)
    for add, value in zip((writer.add_license, writer.add_license_name, writer.add_license_link), terms):
        if value:
            add(value)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, file_type)))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(float(architecture.rope(config)[0] or 10000))
    if rope_scaling(config) != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope_scaling(config))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])

    write_vocabulary = _write_sentencepiece if (model / "tokenizer.model").is_file() else _write_bpe
    pieces = write_vocabulary(writer, model, config["vocab_size"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(config["bos_token_id"])
    # All versions of llama.cpp stop at this token; they find the model's </s> by its name.
    writer.add_eos_token_id(pieces.index(stop.encode("utf-8")))
    writer.add_eot_token_id(pieces.index(stop.encode("utf-8")))
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template)

    def tensor_kind(shape: Tuple[int, ...]) -> Any:
        """f32 for vectors, and for matrices whose rows do not divide into blocks."""
        block = gguf.GGML_QUANT_SIZES[quantization][0]
        return quantization if len(shape) > 1 and shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32

    count = 0
    for weight, source in weights(model):
        shape = source.shape
        targets = gguf_names(weight)
        row_counts = [shape[0]] if len(targets) == 1 else [heads * dim, kv_heads * dim, kv_heads * dim]
        if sum(row_counts) != shape[0]:
            raise InputWrong(
                _(
                    "{model}: {weight} has {rows} rows, not {expected}.",
                    model=model,
                    weight=weight,
                    rows=shape[0],
                    expected=sum(row_counts),
                )
            )
        for target, rows in zip(targets, row_counts):
            target_shape = (rows, *shape[1:])
            target_kind = tensor_kind(target_shape)
            block, size = gguf.GGML_QUANT_SIZES[target_kind]
            total = int(numpy.prod(target_shape)) // block * size
            writer.add_tensor_info(target, target_shape, numpy.dtype(numpy.float32), total, raw_dtype=target_kind)
        count += len(targets)
    if count != 3 + 9 * config["num_hidden_layers"]:
        raise InputWrong(
            _(
                "{model} has weights for {tensors} tensors, not {expected}.",
                model=model,
                tensors=count,
                expected=3 + 9 * config["num_hidden_layers"],
            )
        )
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for weight, tensor in tensors(model):
            for part in split_wqkv(tensor, heads, kv_heads) if weight.endswith(WQKV) else (tensor,):
                data = quantize(part, tensor_kind(tuple(part.shape)))
                if kind == "f16" and not numpy.isfinite(data).all():
                    raise InputWrong(
                        _("{weight} has values that overflow in f16. Use export.type=bf16.", weight=weight)
                    )
                writer.write_tensor_data(data)
    finally:
        writer.close()
    return {"tensors": count, "bytes": path.stat().st_size, "type": kind}
