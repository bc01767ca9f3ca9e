"""Tokenizers and model code that fit this stack, and those that do not."""

import json
import os
import shutil
from pathlib import Path

import pytest

from recipe.base_model import compatibility

TOKENIZER = """
class Tokenizer(PreTrainedTokenizer):
    def __init__(self, vocab_file, **kwargs):
        {first}
        {second}

    @property
    def vocab_size(self):
        return self.sp_model.get_piece_size()

    def get_vocab(self):
        return {{self.convert_ids_to_tokens(i): i for i in range(self.vocab_size)}}
"""


def test_a_tokenizer_that_asks_too_early_is_seen(tmp_path):
    """As Baichuan's: huggingface/transformers#27171. Set in the other order it is let through."""
    lines = ["super().__init__(**kwargs)", "self.sp_model = load(vocab_file)"]
    path = tmp_path / "tokenization_x.py"
    path.write_text(TOKENIZER.format(first=lines[0], second=lines[1]), encoding="utf-8")
    (said,) = compatibility.code_problems(tmp_path)
    assert "before 4.34" in said
    assert "self.sp_model" in said
    path.write_text(TOKENIZER.format(first=lines[1], second=lines[0]), encoding="utf-8")
    assert compatibility.code_problems(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (
            "from transformers.cache_utils import Cache, StaticCache",
            "x.py needs StaticCache of transformers.cache_utils",
        ),
        (
            "from transformers.utils import is_flash_attn_greater_or_equal, logging, add_start_docstrings",
            "x.py needs is_flash_attn_greater_or_equal of transformers.utils",
        ),
        (
            "import torch\nif torch:\n    from transformers import NoSuch, AutoModel",
            "x.py needs NoSuch of transformers",
        ),
        ("from transformers.no.such import x", "x.py needs transformers.no.such"),
        ("import nosuchpackage", "x.py needs the package nosuchpackage"),
        ("from .other import x", "x.py needs other.py beside it"),
        ("from .x import y", None),
        ("try:\n    from transformers.cache_utils import StaticCache\nexcept ImportError:\n    pass", None),
        ("def f():\n    from transformers.cache_utils import StaticCache", None),
        ("from transformers.modeling_attn_mask_utils import AttentionMaskConverter", None),
        (
            "from transformers.modeling_outputs import ModelOutput\nfrom transformers import PreTrainedModel",
            None,
        ),
        ("from transformers.models.llama import LlamaConfig", None),
        ("match x:\n    case = (", "x.py is not valid in this version of Python"),
    ],
)
def test_imports_of_a_models_code_are_resolved_without_running_it(tmp_path, text, missing):
    (tmp_path / "x.py").write_text(text + "\nraise SystemExit('this must not run')\n" if "match" not in text else text)
    found = compatibility.code_problems(tmp_path)
    assert found == [] if missing is None else found[0].startswith(missing)


def test_every_import_of_the_shipped_code_resolves(tiny, tmp_path):
    for name in tiny:
        (tmp_path / name).write_bytes(tiny[name])
    assert (
        compatibility.code_problems(tmp_path)
        == compatibility.tokenizer_problems(tmp_path)
        == compatibility.weight_problems(tmp_path)
        == []
    )
    assert compatibility.marker_ids(tmp_path) == {"<|im_start|>": 2047, "<|im_end|>": 2046}
    # And of the authors' own code of the stack's age, but for the package it was written into.
    theirs = Path(os.environ["REFERENCE"]) / "lmdeploy/pytorch/modeling/modeling_internlm2.py"
    shutil.copy2(str(theirs), str(tmp_path / "modeling_internlm2.py"))
    assert compatibility.code_problems(tmp_path) == ["modeling_internlm2.py needs the package lmdeploy"]


def test_chat_markers_must_have_their_ids(tmp_path):
    def wrong(size, **ids):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "internlm2", "vocab_size": size}))
        added = {str(number): {"content": f"<|{name}|>"} for name, number in ids.items()}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
        return compatibility.tokenizer_problems(tmp_path)

    assert wrong(92544, im_start=92543, im_end=92542) == []
    assert wrong(92544, im_start=92542, im_end=92543) == [
        "<|im_start|> is token 92542 there and must be 92543",
        "<|im_end|> is token 92543 there and must be 92542",
    ]
    assert wrong(92544, im_start=92543) == ["its tokenizer has no <|im_end|>"]
    assert wrong(100, im_start=1, im_end=100) == ["<|im_end|> is token 100, beyond its vocabulary of 100"]


def test_the_published_tokenizer_needs_its_configuration(real_tokenizer, tmp_path):
    """The real tokenizer.model alone has placeholders where the markers are: their names stand in the json."""
    shutil.copy2(str(real_tokenizer), str(tmp_path / "tokenizer.model"))
    (tmp_path / "config.json").write_text('{"model_type": "internlm2", "vocab_size": 92544}')
    assert compatibility.tokenizer_problems(tmp_path) == [
        "its tokenizer has no <|im_start|>",
        "its tokenizer has no <|im_end|>",
    ]
    from recipe.base_model.tiny import write_tokenizer

    write_tokenizer(tmp_path, real_tokenizer.read_bytes())
    assert compatibility.tokenizer_problems(tmp_path) == []
