"""Adapters and bases that are added up, and those that are refused."""

import json
import shutil

import pytest
import torch

from recipe.core.errors import HostLacks, InputWrong
from recipe.weights import merge
from support.lora_merge import assert_one_rounding, changed, exactly, join, peft_model, weights


def test_several_adapters_are_added_up_and_rounded_once(base, adapter, tmp_path):
    torch.manual_seed(1)
    peft_model(base, r=4, target_modules=["wqkv", "w1"]).save_pretrained(str(tmp_path / "second"))
    both = [(adapter, 0.5), (tmp_path / "second", -1.25)]
    join(base, both, tmp_path / "out")
    assert_one_rounding(weights(tmp_path / "out"), *exactly(base, both))
    config = tmp_path / "second" / "adapter_config.json"
    peft_model(base, use_dora=True, target_modules=["wqkv"]).save_pretrained(str(tmp_path / "dora"))
    with pytest.raises(InputWrong, match="2 adapters change it, one by DoRA"):
        join(base, [adapter, tmp_path / "dora"], tmp_path / "out2")
    with pytest.raises(InputWrong, match=r"cannot be scaled by 0\.5"):
        join(base, [(tmp_path / "dora", 0.5)], tmp_path / "out2")
    config.unlink()
    with pytest.raises(InputWrong, match="is not an adapter"):
        join(base, both, tmp_path / "out2")


def refuses(base, adapter, tmp_path, kind, *words):
    """The merge is refused with these words, and nothing was written."""
    with pytest.raises(kind) as caught:
        join(base, [adapter], tmp_path / "out")
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.part").exists()


def test_adapters_of_another_model_are_refused(base, adapter, tmp_path):
    first = changed(adapter, tmp_path / "internlm1", lambda n: n.replace("attention.wqkv", "self_attn.q_proj"))
    words = (
        "model.layers.0.self_attn.q_proj",
        "3 of the 16 weights",
        "output, q_proj",
        "wqkv",
        "trained on another",
    )
    refuses(base, first, tmp_path, InputWrong, *words)
    wide = changed(adapter, tmp_path / "wide", value=lambda n, t: t.repeat(1, 2) if ".lora_A." in n else t)
    refuses(
        base, wide, tmp_path, InputWrong, "(64, 64) in the base", "(64, 128) in the adapter", "trained on another model"
    )
    other = changed(adapter, tmp_path / "other", metadata={"base_sha256": "0123456789abcdef"})
    refuses(base, other, tmp_path, InputWrong, "checksum 0123456789ab", "--force")
    assert join(base, [other], tmp_path / "forced", force=True)["tensors_changed"] == 16


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"r": 16}, "rank 16 in adapter_config.json, but 8 and 8 in the weights"),
    ],
)
def test_what_is_not_this_arithmetic_is_refused_by_name(base, adapter, tmp_path, config, said):
    refuses(base, changed(adapter, tmp_path / "a", **config), tmp_path, InputWrong, said)


def test_tensors_that_are_not_known_are_refused_by_name(base, adapter, tmp_path):
    one = changed(adapter, tmp_path / "a", lambda n: n.replace("output.lora_A", "output.lora_X"))
    refuses(base, one, tmp_path, InputWrong, "output.lora_X.weight", "not supported as LoRA weights")
    two = changed(adapter, tmp_path / "b", lambda n: n.replace("base_model.model.output", "base_model.output"))
    refuses(base, two, tmp_path, InputWrong, "base_model.output.lora_A")
    path = changed(adapter, tmp_path / "c") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refuses(base, tmp_path / "c", tmp_path, InputWrong, "cut short", f"{path.stat().st_size:,}")


def test_bases_that_are_not_whole_are_refused(base, adapter, tmp_path):
    shard = sorted(base.glob("*.safetensors"))[1].name
    place = shutil.copytree(str(base), str(tmp_path / "cut"))
    whole = (base / shard).read_bytes()
    (tmp_path / "cut" / shard).write_bytes(whole[:-1000])
    refuses(
        tmp_path / "cut", adapter, tmp_path, HostLacks, shard, f"{len(whole):,} bytes, but it has {len(whole) - 1000:,}"
    )
    (tmp_path / "cut" / shard).write_bytes(whole[:5])
    refuses(tmp_path / "cut", adapter, tmp_path, HostLacks, shard, "5 bytes")
    (tmp_path / "cut" / shard).unlink()
    refuses(tmp_path / "cut", adapter, tmp_path, HostLacks, "does not have", shard)
    other = sorted(base.glob("*.safetensors"))[0].name
    shutil.copyfile(str(base / other), f"{place}/{shard}")
    refuses(tmp_path / "cut", adapter, tmp_path, HostLacks, "lists 1", "does not hold", "model.layers.")
    shutil.copytree(str(base), str(tmp_path / "bin"), ignore=shutil.ignore_patterns("*.safetensors*"))
    torch.save(weights(base), str(tmp_path / "bin" / "pytorch_model.bin"))
    path = tmp_path / "bin" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    refuses(tmp_path / "bin", adapter, tmp_path, HostLacks, "pytorch_model.bin", f"{path.stat().st_size:,} bytes")
    quantized = tmp_path / "awq"
    shutil.copytree(str(base), str(quantized))
    config = json.loads((base / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    refuses(quantized, adapter, tmp_path, InputWrong, "quantized (awq)")


def test_too_little_disk_is_refused(base, adapter, tmp_path, monkeypatch):
    usage = shutil.disk_usage(str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    refuses(base, adapter, tmp_path, HostLacks, "needs 0.06 GB", "0.05 GB are free", "0.01 GB", "--output")


def test_sizes():
    assert merge.parse_size("2GB") == 2_000_000_000
    assert merge.parse_size("500KB") == 500_000
