"""Merge: exact to one rounding, equal to PEFT's up to its own rounding, complete, and honest about no-ops."""

import json
import shutil

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from recipe import libraries, merge, pipeline, settings
from recipe.errors import InputWrong, RunFailed
from recipe.stages import Run


@pytest.fixture(scope="module")
def folders(demo):
    """(base, adapter, merged) of the demo run."""
    _, folder = demo
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return ROOT / manifest["stages"]["model"]["figures"]["folder"], folder / "adapter", folder / "merged"


def weights(place):
    return dict(merge.base_tensors(place))


def test_every_tensor_is_base_plus_scaled_product_to_fp16_rounding(folders):
    base, adapter, merged = folders
    before, after = weights(base), weights(merged)
    lora = load_file(str(adapter / "adapter_model.safetensors"))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert set(before) == set(after)
    changed = 0
    for name, tensor in before.items():
        module = "base_model.model." + name[: -len(".weight")]
        exact = tensor.double()
        size = exact.abs()  # of the terms that were added, which bounds what fp32 loses
        if f"{module}.lora_A.weight" in lora:
            a, b = (lora[f"{module}.lora_{x}.weight"].double() for x in "AB")
            scaling = settings["lora_alpha"] / settings["r"]
            exact, size = exact + scaling * (b @ a), size + scaling * (b.abs() @ a.abs())
        assert after[name].dtype == torch.float16
        # the fp16 number nearest to the exact sum, or to what fp32 may make of it
        slack = 2**-21 * size
        assert bool(((exact - slack).half() <= after[name]).all()), name
        assert bool((after[name] <= (exact + slack).half()).all()), name
        changed += not torch.equal(after[name], tensor)
    assert changed > len(before) / 2


def test_equals_pefts_own_merge(folders):
    libraries.load()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, adapter, merged = folders
    model = AutoModelForCausalLM.from_pretrained(str(base), torch_dtype=torch.float32, trust_remote_code=True)
    theirs = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().state_dict()
    ours = weights(merged)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor.half()) or torch.allclose(
            ours[name].float(), tensor, rtol=2**-10, atol=2**-24
        ), name


def test_the_folder_is_whole_and_loads_offline(folders):
    libraries.load()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, _, merged = folders
    copied = {p.name for p in base.iterdir() if not merge.is_weight(p.name)}
    assert copied == {p.name for p in merged.iterdir() if not merge.is_weight(p.name)}
    for name in copied:
        assert (base / name).read_bytes() == (merged / name).read_bytes()
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 2
    assert index["metadata"]["total_size"] == sum(t.numel() * 2 for t in weights(merged).values())
    limit = merge.size("1MB")
    for shard in set(index["weight_map"].values()):
        alone = list(index["weight_map"].values()).count(shard) == 1  # a tensor larger than the limit is not cut
        assert alone or (merged / shard).stat().st_size <= limit + 10_000
    model = AutoModelForCausalLM.from_pretrained(str(merged), trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(str(merged), trust_remote_code=True)
    assert model.generation_config.eos_token_id == [2, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert bool(torch.isfinite(model.float()(**tokenizer("你好", return_tensors="pt")).logits).all())


def test_pytorch_bin_bases_give_the_same(folders, tmp_path):
    base, adapter, merged = folders
    shutil.copytree(str(base), str(tmp_path / "bin"), ignore=shutil.ignore_patterns("*.safetensors*"))
    torch.save(weights(base), str(tmp_path / "bin" / "pytorch_model.bin"))
    merge.merge(tmp_path / "bin", adapter, tmp_path / "out", merge.size("2GB"))
    ours, theirs = weights(tmp_path / "out"), weights(merged)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_that_changes_nothing_is_measured(folders, tmp_path):
    base, adapter, _ = folders
    shutil.copytree(str(adapter), str(tmp_path / "adapter"))
    lora = load_file(str(adapter / "adapter_model.safetensors"))
    lora = {name: (torch.zeros_like(t) if ".lora_B." in name else t) for name, t in lora.items()}
    save_file(lora, str(tmp_path / "adapter" / "adapter_model.safetensors"))
    figures = merge.merge(base, tmp_path / "adapter", tmp_path / "out", merge.size("2GB"))
    assert figures["tensors_changed"] == figures["weights_changed"] == 0
    assert figures["share_changed"] == 0


@pytest.mark.parametrize(
    ("force", "known", "ends"), [(False, [], True), (True, [], False), (False, ["few-updates"], False)]
)
def test_a_merge_that_changed_nothing_fails_unless_that_is_known(force, known, ends, monkeypatch, capsys):
    """Exit 1, but for --force and for a recipe that is about it."""
    figures = {"tensors_changed": 0, "tensors": 17, "shards": 1}
    monkeypatch.setattr(pipeline, "perform", lambda run, stage: ({"figures": figures, "seconds": 1.0}, True))
    monkeypatch.setitem(pipeline.COMMANDS, "merge", (pipeline.MERGE,))
    recipe_settings = settings.replace(settings.load("demo")[1], "known_faults", known)
    run = Run("demo", recipe_settings, ROOT, ROOT / "output", force=force)
    if ends:
        with pytest.raises(RunFailed, match="changed nothing"):
            pipeline.run_stages(run, "merge")
        return
    pipeline.run_stages(run, "merge")
    assert "The merge changed nothing" in capsys.readouterr().out


def test_an_adapter_of_another_model_is_refused(folders, tmp_path):
    base, adapter, _ = folders
    lora = load_file(str(adapter / "adapter_model.safetensors"))
    shutil.copytree(str(adapter), str(tmp_path / "wide"))
    wide = {n: (torch.zeros(t.shape[0], t.shape[1] * 2) if ".lora_A." in n else t) for n, t in lora.items()}
    save_file(wide, str(tmp_path / "wide" / "adapter_model.safetensors"))
    with pytest.raises(InputWrong, match="trained on another model"):
        merge.merge(base, tmp_path / "wide", tmp_path / "out1", 10**9)
    shutil.copytree(str(adapter), str(tmp_path / "other"))
    save_file(
        {n.replace("feed_forward", "mlp"): t for n, t in lora.items()},
        str(tmp_path / "other" / "adapter_model.safetensors"),
    )
    with pytest.raises(InputWrong, match="the base has no"):
        merge.merge(base, tmp_path / "other", tmp_path / "out2", 10**9)


@pytest.mark.parametrize("key", ["use_rslora", "use_dora", "modules_to_save", "rank_pattern"])
def test_adapter_kinds_with_other_arithmetic_are_refused_by_name(folders, tmp_path, key):
    _, adapter, _ = folders
    shutil.copytree(str(adapter), str(tmp_path / "a"))
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: {"x": 1}}))
    with pytest.raises(InputWrong, match=key):
        merge.load_adapter(tmp_path / "a")


def test_sizes():
    assert merge.size("2GB") == 2_000_000_000
    assert merge.size("500KB") == 500_000
