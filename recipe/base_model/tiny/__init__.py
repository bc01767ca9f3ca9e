"""Makes a tiny InternLM2 checkpoint, laid out like the published one, for runs without a GPU.

The weights are random, so the model knows nothing. They are scaled so that LoRA over the frozen weights memorizes a few
hundred short answers within minutes on a CPU.
"""

from __future__ import annotations

import io
import struct
from itertools import chain
from pathlib import Path
from typing import Iterable, Optional

import numpy
import sentencepiece
import torch
from transformers import GenerationConfig

from recipe.base_model import architecture, model_code
from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM
from recipe.base_model.tiny.tokenization_internlm2 import MARKERS, InternLM2Tokenizer

# Found by trial: with these gains LoRA (rank 64, alpha 16, learning rate 3e-3) memorizes a hundred answers in 700 steps
# of 2 rows; with gains of 1 the loss is then still 4 instead of 0.03.
NORM_GAIN = {"attention_norm": 4.0, "ffn_norm": 2.0, "norm": 32.0}

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(
    folder: Path,
    texts: Iterable[str],
    *,
    seed: int = 0,
    vocab_size: int = 2048,
    hidden_size: int = 256,
    layers: int = 2,
    heads: int = 8,
    kv_heads: int = 2,
    intermediate_size: int = 704,
    max_shard_size: str = "2MB",
    tokenizer_model: Optional[Path] = None,
) -> dict:
    """Write a base checkpoint into `folder`, the same bytes for the same arguments.

    `texts` train the tokenizer, unless `tokenizer_model` (a file) is given. `vocab_size` includes the 256 bytes and the
    special tokens; placeholders fill what the texts leave over. Returns `parameters`, `vocabulary`, `shards` and
    `bytes` (of the float16 weights). Raises FileExistsError if the folder is not empty, ValueError for sizes that do
    not match each other or the texts.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    if tokenizer_model is not None:
        vocab_size = tokenizer_from_model(tokenizer_model).vocab_size
    config = InternLM2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        auto_map=architecture.AUTO_MAP,
    )
    pieces = train_pieces(texts, vocab_size) if tokenizer_model is None else Path(tokenizer_model).read_bytes()
    write_tokenizer(folder, pieces)
    model = random_model(config, seed)
    model.save_pretrained(str(folder), max_shard_size=max_shard_size, safe_serialization=True)
    model_code.write(folder)
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "parameters": parameters,
        "vocabulary": vocab_size,
        "shards": len(list(folder.glob("*.safetensors"))),
        "bytes": 2 * parameters,
    }


def tokenizer_from_model(path: Path) -> InternLM2Tokenizer:
    """The tokenizer of a single tokenizer.model whose last six ids are the chat markers, like the published file's.

    Raises OSError if the file cannot be read, RuntimeError if it is not a sentencepiece model.
    """
    return InternLM2Tokenizer(vocab_file=str(path))


def write_tokenizer(folder: Path, pieces: bytes) -> None:
    """Write the tokenizer of a serialized sentencepiece model into the folder."""
    path = folder / "tokenizer.model"
    path.write_bytes(pieces)
    tokenizer = InternLM2Tokenizer(
        vocab_file=str(path),
        chat_template=CHAT_TEMPLATE,
        auto_map=architecture.TOKENIZER_MAP,
    )
    tokenizer.save_pretrained(str(folder))


def train_pieces(texts: Iterable[str], vocab_size: int) -> bytes:
    """A serialized sentencepiece model of exactly `vocab_size` pieces, chat markers included.

    Raises ValueError if they are too few for the characters of the texts.
    """
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            # The last text guarantees pieces for the space and the line break: a space made of byte pieces would not
            # decode to a space.
            sentence_iterator=chain(texts, [" \n "]),
            required_chars="\u2581\n",
            model_writer=trained,
            model_type="bpe",
            vocab_size=vocab_size - len(MARKERS),
            # Like the published model: no normalization, no space in front.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            byte_fallback=True,
            character_coverage=0.9999,
            # Short texts give fewer pieces; placeholders fill the rest.
            hard_vocab_limit=False,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"no tokenizer of {vocab_size} pieces for these texts: {error}") from error
    model = trained.getvalue()
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model).GetPieceSize()
    model += b"".join(placeholder(i) for i in range(vocab_size - learnt))
    # Parsing and serializing again puts the fields in their usual order.
    return sentencepiece.SentencePieceProcessor(model_proto=model).serialized_model_proto()


def placeholder(number: int) -> bytes:
    """A placeholder piece to append to a serialized sentencepiece model (protobuf concatenates repeated fields)."""
    name = f"[UNUSED_TOKEN_{number}]".encode()
    score = struct.pack("<f", 0.0)
    user_defined = 4
    piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + score + b"\x18" + bytes([user_defined])
    return b"\x0a" + bytes([len(piece)]) + piece


def random_model(config: InternLM2Config, seed: int) -> InternLM2ForCausalLM:
    """A float16 model whose frozen, random weights are scaled so that LoRA can learn on top of them.

    Embeddings have unit variance and each matrix keeps the variance of its input, divided among the residual branches:
    with the usual standard deviation of 0.02 so small a width gives LoRA almost no gradient. The norms amplify, and the
    matrices after them are smaller by the same factor, so the frozen model computes the same and LoRA's part of each
    product counts for more. The logits start near zero, so the loss starts near the logarithm of the vocabulary.
    """
    model = InternLM2ForCausalLM(config)
    # NumPy guarantees this generator's stream across versions; torch does not.
    random = numpy.random.RandomState(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            kind = name.split(".")[-2]
            if kind in NORM_GAIN:
                weight.fill_(NORM_GAIN[kind])
            else:
                scale = matrix_scale(kind, weight.shape[1], config.num_hidden_layers)
                values = scale * random.standard_normal(tuple(weight.shape))
                weight.copy_(torch.from_numpy(values))
    im_end = config.vocab_size - len(MARKERS) + MARKERS.index("<|im_end|>")
    # A new object: one derived from the model's config is derived again when used and loses the second end token.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[config.eos_token_id, im_end],
        pad_token_id=config.pad_token_id,
    )
    return model.half()


def matrix_scale(kind: str, fan_in: int, layers: int) -> float:
    """The standard deviation of a matrix's random weights; `kind`: its module's name."""
    if kind == "tok_embeddings":
        return 1.0
    share = {
        "wo": (2 * layers) ** -0.5,
        "w2": (2 * layers) ** -0.5,
        "wqkv": 1 / NORM_GAIN["attention_norm"],
        "w1": 1 / NORM_GAIN["ffn_norm"],
        "w3": 1 / NORM_GAIN["ffn_norm"],
        "output": 0.25 / NORM_GAIN["norm"],
    }
    return share[kind] * fan_in**-0.5
