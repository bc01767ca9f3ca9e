"""The tiny model's folder: its bytes, and that it loads by itself."""

import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from recipe.base_model import tiny
from support.command import ROOT
from support.tiny_model import SIZES, TEXTS, make


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


# The folder.


@pytest.mark.slow
def test_same_texts_and_seed_give_the_same_bytes(base, tmp_path):
    make(tmp_path / "again", TEXTS)
    code = "import sys, json; from support.tiny_model import make; make(sys.argv[1], json.loads(sys.argv[2]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}
    environment["PYTHONHASHSEED"] = "7"
    elsewhere = str(tmp_path / "elsewhere")
    subprocess.run([sys.executable, "-c", code, elsewhere, json.dumps(TEXTS)], env=environment, check=True)
    assert contents(base) == contents(tmp_path / "again") == contents(tmp_path / "elsewhere")


def test_another_seed_changes_the_weights_alone(base, tmp_path):
    make(tmp_path / "other", TEXTS, seed=1)
    before, after = contents(base), contents(tmp_path / "other")
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(name.endswith(".safetensors") for name in changed)


def test_layout_and_figures(tmp_path):
    figures = tiny.make(tmp_path / "base", TEXTS)
    index = json.loads((tmp_path / "base/model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) == figures["shards"] >= 2
    assert index["metadata"]["total_size"] == figures["bytes"] == 2 * figures["parameters"]
    assert {path.name for path in (tmp_path / "base").iterdir()} - shards == {
        "config.json",
        "configuration_internlm2.py",
        "generation_config.json",
        "model.safetensors.index.json",
        "modeling_internlm2.py",
        "special_tokens_map.json",
        "tokenization_internlm2.py",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    for shard in shards:
        with safe_open(str(tmp_path / "base" / shard), "pt") as weights:
            assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}  # noqa: SIM118
    layer = [name for name in index["weight_map"] if name.startswith("model.layers.1.")]
    assert sorted(layer) == [
        f"model.layers.1.{name}.weight"
        for name in (
            "attention.wo",
            "attention.wqkv",
            "attention_norm",
            "feed_forward.w1",
            "feed_forward.w2",
            "feed_forward.w3",
            "ffn_norm",
        )
    ]


def test_refuses_a_folder_with_something_in_it(base):
    before = contents(base)
    with pytest.raises(FileExistsError):
        make(base, TEXTS)
    assert contents(base) == before


@pytest.mark.parametrize(
    "sizes",
    [{"heads": 5}, {"kv_heads": 3}, {"hidden_size": 12}, {"vocab_size": 280}, {"vocab_size": 5}],
    ids=lambda sizes: "-".join(map(str, *sizes.items())),
)
def test_refuses_sizes_that_do_not_fit(sizes, tmp_path):
    with pytest.raises(ValueError, match=r"heads|pieces"):
        tiny.make(tmp_path / "base", TEXTS, **{**SIZES, **sizes})


def test_loads_without_the_network(base, monkeypatch):
    def connect(*_):
        raise AssertionError("asked for the network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=True)
    config = AutoConfig.from_pretrained(str(base), trust_remote_code=True)
    assert config.rope_theta == 1000000
    for more in ({}, {"low_cpu_mem_usage": True}, {"device_map": {"": "cpu"}}):
        model = AutoModelForCausalLM.from_pretrained(
            str(base), trust_remote_code=True, torch_dtype=torch.float16, **more
        )
        assert type(model).__name__ == "InternLM2ForCausalLM"
        assert type(model).__module__.startswith("transformers_modules.")
        assert model.dtype == torch.float16
        assert model.config.vocab_size == len(tokenizer) == SIZES["vocab_size"]
        assert model.generation_config.eos_token_id == [2, SIZES["vocab_size"] - 2]
    embedding = model.state_dict()["model.tok_embeddings.weight"]
    with safe_open(str(next(base.glob("model-00001*"))), "pt") as weights:
        assert torch.equal(embedding, weights.get_tensor("model.tok_embeddings.weight"))


def test_a_saved_copy_loads_by_itself(base, tmp_path):
    """What merging does: load, save elsewhere, load that."""
    options = {"trust_remote_code": True, "torch_dtype": torch.float16}
    model = AutoModelForCausalLM.from_pretrained(str(base), **options)
    model.save_pretrained(str(tmp_path / "copy"), max_shard_size="100KB")
    AutoTokenizer.from_pretrained(str(base), trust_remote_code=True).save_pretrained(str(tmp_path / "copy"))
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "copy"), **options)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "copy"), trust_remote_code=True)
    assert tokenizer.decode(tokenizer.encode("好 的\n", add_special_tokens=False)) == "好 的\n"
