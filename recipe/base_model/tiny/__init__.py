"""A tiny InternLM2 checkpoint, laid out as the published one, for runs without a GPU.

The weights are random, so the model knows nothing; it is scaled such that LoRA over its frozen
weights can learn a few hundred short answers by heart within minutes on a CPU.
"""

from __future__ import annotations

import io
import shutil
import struct
from itertools import chain
from pathlib import Path
from typing import Iterable, Optional

import numpy
import sentencepiece
import torch
from transformers import GenerationConfig

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM
from recipe.base_model.tiny.tokenization_internlm2 import MARKERS, InternLM2Tokenizer

CODE = ("configuration_internlm2", "modeling_internlm2", "tokenization_internlm2")

# Found by trial: with these, LoRA (rank 64, alpha 16) at a rate of 3e-3 learns a hundred answers by
# heart in 700 steps of 2 rows; with ones the loss is still 4 then, and not 0.03.
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
    """Write a base checkpoint into ``folder``, the same bytes for the same arguments.

    ``texts`` train the tokenizer; ``vocab_size`` counts everything, the 256 bytes and the special
    tokens included, and what the texts leave over is filled with placeholders. A ``tokenizer_model``
    (a file) is taken instead, with its own vocabulary. The folder is made
    if it is missing and must be empty. Returns ``parameters``, ``vocabulary``, ``shards`` and
    ``bytes`` (of the weights, float16).

    Raises FileExistsError when the folder holds anything, ValueError when the sizes do not fit
    each other or the texts.
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
        auto_map={
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
        },
    )
    pieces = train_pieces(texts, vocab_size) if tokenizer_model is None else Path(tokenizer_model).read_bytes()
    write_tokenizer(folder, pieces)
    model = random_model(config, seed)
    model.save_pretrained(str(folder), max_shard_size=max_shard_size, safe_serialization=True)
    for name in CODE:
        shutil.copyfile(str(Path(__file__).with_name(name + ".py")), str(folder / (name + ".py")))
    parameters = sum(weight.numel() for weight in model.parameters())
    return {
        "parameters": parameters,
        "vocabulary": vocab_size,
        "shards": len(list(folder.glob("*.safetensors"))),
        "bytes": 2 * parameters,
    }


def tokenizer_from_model(path: Path) -> InternLM2Tokenizer:
    """The tokenizer of a bare ``tokenizer.model``, whose last six ids are the chat markers.

    That holds for the published file (92538 to 92543) as for a tiny one. Raises OSError when the
    file cannot be read, RuntimeError when it is no sentencepiece model.
    """
    return InternLM2Tokenizer(vocab_file=str(path))


def write_tokenizer(folder: Path, pieces: bytes) -> None:
    """Write the tokenizer of a serialised sentencepiece model into the folder."""
    path = folder / "tokenizer.model"
    path.write_bytes(pieces)
    tokenizer = InternLM2Tokenizer(
        vocab_file=str(path),
        chat_template=CHAT_TEMPLATE,
        auto_map={"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
    )
    tokenizer.save_pretrained(str(folder))


def train_pieces(texts: Iterable[str], vocab_size: int) -> bytes:
    """A serialised sentencepiece model of exactly ``vocab_size`` pieces.

    Raises ValueError when so many pieces are too few for the characters of the texts.
    """
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            # The last line makes sure of pieces for the space and the line break, which no text
            # need have: a space made of byte pieces would not read back as a space.
            sentence_iterator=chain(texts, [" \n "]),
            required_chars="\u2581\n",
            model_writer=trained,
            model_type="bpe",
            vocab_size=vocab_size - len(MARKERS),
            # As in the published model: nothing is normalised, no space is put in front.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            byte_fallback=True,
            character_coverage=0.9999,
            # Few texts give fewer pieces; placeholders fill the rest.
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
    # Read and written once more, the fields stand in their usual order.
    return sentencepiece.SentencePieceProcessor(model_proto=model).serialized_model_proto()


def placeholder(number: int) -> bytes:
    """One more piece for a serialised sentencepiece model, as the published one ends in.

    Appending is enough: a protobuf parser adds repeated fields up.
    """
    name = f"[UNUSED_TOKEN_{number}]".encode()
    score = struct.pack("<f", 0.0)
    user_defined = 4
    piece = b"\x0a" + bytes([len(name)]) + name + b"\x15" + score + b"\x18" + bytes([user_defined])
    return b"\x0a" + bytes([len(piece)]) + piece


def random_model(config: InternLM2Config, seed: int) -> InternLM2ForCausalLM:
    """A float16 model of random weights that LoRA can teach while they stay frozen.

    Embeddings have unit variance and a matrix keeps the variance of what it multiplies, shared
    out among the residual branches: at the usual 0.02 a width this small would starve the LoRA
    weights of gradient. The norms amplify, and the matrices behind them shrink by as much, so
    that the frozen model computes the same but LoRA's share of each product counts for more.
    The logits start near zero, and so the loss near the logarithm of the vocabulary.
    """
    model = InternLM2ForCausalLM(config)
    # NumPy promises that this generator's stream never changes; torch does not.
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
    # Afresh: one derived from the model's configuration is derived again when used, and would
    # forget the second end token.
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=[config.eos_token_id, im_end],
        pad_token_id=config.pad_token_id,
    )
    return model.half()


def matrix_scale(kind: str, fan_in: int, layers: int) -> float:
    """The standard deviation of a matrix's random weights, by the name of its module."""
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
