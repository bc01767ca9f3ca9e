"""The merged folder is complete and loads offline."""

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipe.core import hashing, imports
from recipe.core.errors import RunFailed
from recipe.weights import load_check, merge
from recipe.weights import merge_plan as plans
from support.lora_merge import weights


@pytest.mark.slow
def test_the_folder_is_whole_and_loads_offline(base, merged):
    imports.load()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place, figures = merged
    for path in base.iterdir():
        if not plans.is_weight(path.name) and path.name != "generation_config.json":
            assert path.read_bytes() == (place / path.name).read_bytes(), path.name
    assert (place / "README.md").read_text() == f"# {figures['shards']}\n"
    assert not [p.name for p in place.iterdir() if p.name.startswith(".") or "part" in p.name or "progress" in p.name]
    checked = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=str(place), capture_output=True)
    assert checked.returncode == 0, checked.stderr
    listed = (place / "SHA256SUMS").read_text().split()[1::2]
    assert sorted([*listed, "SHA256SUMS"]) == sorted(p.name for p in place.iterdir())
    assert merge.checksum_digest(place) == hashing.digest(place)
    index = json.loads((place / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == figures["shards"] >= 3
    assert index["metadata"]["total_size"] == figures["bytes"] == sum(t.numel() * 2 for t in weights(place).values())
    for shard in set(index["weight_map"].values()):
        alone = list(index["weight_map"].values()).count(shard) == 1  # a tensor larger than the limit is not cut
        assert alone or (place / shard).stat().st_size <= 130_000 + 10_000
        assert set(load_file(str(place / shard))) == {n for n, s in index["weight_map"].items() if s == shard}
    model = AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=True)
    assert model.generation_config.eos_token_id == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert bool(torch.isfinite(model.float()(**tokenizer("你好", return_tensors="pt")).logits).all())


def test_the_last_check_says_what_it_did(merged, base):
    told = merged[1]["load_check"]
    assert told["stops"] == json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    assert len(told["layers"]) == 2
    assert told["logits"] > 64
    assert merged[1]["weights_check"]["arrived"] == pytest.approx(1, abs=0.01)
    assert merged[1]["weights_check"]["weights_checked"] > 5_000


def test_stop_tokens_come_from_the_folder_and_its_template(base, tmp_path):
    """A base without generation config, another family's end token, a stop word that is no token."""
    imports.load()
    from transformers import AutoTokenizer, PretrainedConfig

    tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=True)
    load_check.preload(base)  # whose errors would not be told
    config = PretrainedConfig(eos_token_id=7)
    assert load_check.write_stop_tokens(tmp_path, tokenizer, config, []) == [7]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert load_check.write_stop_tokens(tmp_path, tokenizer, config, ["<|im_end|>", "两个词"]) == [7, end]
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [7, end]


@pytest.mark.slow
def test_a_folder_that_does_not_load_is_told(merged, tmp_path):
    shutil.copytree(str(merged[0]), str(tmp_path / "m"))
    for path in (tmp_path / "m").glob("*.safetensors"):
        save_file({n: t * float("nan") for n, t in load_file(str(path)).items()}, str(path), {"format": "pt"})
    with pytest.raises(RunFailed, match="not finite"), merge.check_loads(merged[0]) as check:
        check(tmp_path / "m", [])
