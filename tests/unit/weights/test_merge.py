"""Merge: exact to one rounding, equal to PEFT's and XTuner's up to theirs, complete, and honest about no-ops."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, recipe, refused, sharded
from safetensors.torch import load_file, save_file

from recipe.core import hashing, imports, settings, stage
from recipe.core.errors import HostLacks, InputWrong, RunFailed
from recipe.core.run import Run
from recipe.stages import pipeline
from recipe.stages.merge import STAGE as MERGE
from recipe.weights import load_check, merge, merge_write
from recipe.weights import merge_plan as plans

LINEAR = ["wqkv", "wo", "w1", "w2", "w3", "output"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny InternLM2 in four shards."""
    return sharded(tmp_path_factory.mktemp("merge") / "base", layers=3)


def peft_model(base, **config):
    """The base with a PEFT adapter of random values, in fp32."""
    imports.load()
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(str(base), torch_dtype=torch.float32, trust_remote_code=True)
    made = get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": LINEAR, **config}))
    for name, weight in made.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            weight.data.normal_(std=0.02)
        elif "magnitude" in name:
            weight.data.mul_(1 + 0.1 * torch.rand_like(weight))
        elif "modules_to_save" in name:
            weight.data.add_(0.01 * torch.randn_like(weight))
    return made


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """A plain adapter in fp16, as the adapter stage saves it."""
    place = tmp_path_factory.mktemp("adapter")
    peft_model(base).save_pretrained(str(place))
    path = place / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(str(path)).items()}, str(path), {"format": "pt"})
    return place


def join(base, adapters, place, limit="130KB", monkeypatch=None, **more):
    """A merge without its last check in a fresh process, which takes 5 s."""
    chosen = {key: more.pop(key) for key in ("safe", "force") if key in more}
    plan = merge.make_plan(
        base, [a if isinstance(a, tuple) else (a, 1.0) for a in adapters], merge.parse_size(limit), **chosen
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "check_loads", lambda _: contextlib.nullcontext(lambda *_: {"stops": [2]}))
        return merge.merge(plan, place, **more)


def weights(place):
    return {name: tensor.read() for name, tensor in plans.base_tensors(place).items()}


@pytest.fixture(scope="module")
def merged(base, adapter, tmp_path_factory):
    """(folder, figures) of a whole merge, last check included."""
    place = tmp_path_factory.mktemp("merged") / "merged"
    plan = merge.make_plan(base, [(adapter, 1.0)], merge.parse_size("130KB"))
    return place, merge.merge(plan, place, stop_words=["<|im_end|>", "two tokens"], card=lambda f: f"# {f['shards']}\n")


def exactly(base, adapters):
    """({name: base + Σ weight·scaling·B·A in fp64}, {name: size of the terms}) of plain adapters."""
    exact = {name: tensor.double() for name, tensor in weights(base).items()}
    size = {name: tensor.abs() for name, tensor in exact.items()}
    for place, weight in adapters:
        pairs = load_file(str(place / "adapter_model.safetensors"))
        config = json.loads((place / "adapter_config.json").read_text())
        for name in [n for n in pairs if ".lora_A." in n]:
            a, b = pairs[name].double(), pairs[name.replace(".lora_A.", ".lora_B.")].double()
            target = name[len("base_model.model.") :].replace(".lora_A", "")
            scaling = weight * config["lora_alpha"] / config["r"]
            exact[target] = exact[target] + scaling * (b @ a)
            size[target] = size[target] + abs(scaling) * (b.abs() @ a.abs())
    return exact, size


def assert_one_rounding(found, exact, size):
    """The type's number nearest to the exact sum, or to what fp32 may make of it."""
    assert set(found) == set(exact)
    for name, tensor in found.items():
        slack = 2**-21 * size[name]
        assert bool(((exact[name] - slack).to(tensor.dtype) <= tensor).all()), name
        assert bool((tensor <= (exact[name] + slack).to(tensor.dtype)).all()), name


def test_every_weight_is_the_exact_sum_rounded_once(base, adapter, merged):
    found = weights(merged[0])
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert_one_rounding(found, *exactly(base, [(adapter, 1.0)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bases_of_other_types_keep_them(base, adapter, tmp_path, dtype):
    shutil.copytree(str(base), str(tmp_path / "base"))
    for path in (tmp_path / "base").glob("*.safetensors"):
        save_file({name: t.to(dtype) for name, t in load_file(str(path)).items()}, str(path), {"format": "pt"})
    join(tmp_path / "base", [adapter], tmp_path / "out")
    found = weights(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert_one_rounding(found, *exactly(tmp_path / "base", [(adapter, 1.0)]))


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"rank_pattern": {"wqkv": 4, "layers.1.feed_forward.w1": 2}, "alpha_pattern": {"w2": 3, "wqkv": 5}},
        {"use_rslora": True},
        {"use_dora": True, "target_modules": ["wqkv", "wo", "w2"]},
        {"modules_to_save": ["output", "attention_norm"], "target_modules": ["wqkv", "w1"]},
        {"target_modules": ["tok_embeddings", "wo"]},
    ],
    ids=["plain", "patterns", "rslora", "dora", "modules_to_save", "embeddings"],
)
def test_every_kind_of_lora_equals_pefts_own_merge(base, tmp_path, variant):
    model = peft_model(base, **variant)
    model.save_pretrained(str(tmp_path / "adapter"))
    theirs = model.merge_and_unload().state_dict()
    join(base, [tmp_path / "adapter"], tmp_path / "out")
    ours, before = weights(tmp_path / "out"), weights(base)
    assert set(ours) == set(theirs)
    assert sum(not torch.equal(ours[name], before[name]) for name in ours) >= 4
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name].float(), tensor, rtol=2**-10, atol=2**-24), name


def test_equals_xtuners_own_merge(base, adapter, merged, tmp_path):
    """XTuner's adds fp16 to fp16: the adapter's share is rounded once more than ours."""
    words = ["-m", "xtuner.tools.model_converters.merge", base, adapter, tmp_path, "--device", "cpu"]
    subprocess.run(
        [sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "MKL_THREADING_LAYER": "GNU", "MKL_SERVICE_FORCE_INTEL": "1"},
    )  # fmt: skip
    theirs, ours, before = weights(tmp_path), weights(merged[0]), weights(base)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        added = (ours[name].float() - before[name].float()).abs()
        slack = 2**-10 * (ours[name].float().abs() + added) + 2**-24
        assert bool(((ours[name].float() - tensor.float()).abs() <= slack).all()), name


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


def test_a_folder_that_does_not_load_is_told(merged, tmp_path):
    shutil.copytree(str(merged[0]), str(tmp_path / "m"))
    for path in (tmp_path / "m").glob("*.safetensors"):
        save_file({n: t * float("nan") for n, t in load_file(str(path)).items()}, str(path), {"format": "pt"})
    with pytest.raises(RunFailed, match="not finite"), merge.check_loads(merged[0]) as check:
        check(tmp_path / "m", [])


def test_bin_bases_and_bin_shards(base, adapter, merged, tmp_path):
    """PyTorch's form in and out, as the tutorial writes it."""
    imports.load()
    from transformers import AutoModelForCausalLM

    shutil.copytree(str(base), str(tmp_path / "bin"), ignore=shutil.ignore_patterns("*.safetensors*"))
    model = AutoModelForCausalLM.from_pretrained(str(base), trust_remote_code=True, torch_dtype=torch.float16)
    model.save_pretrained(str(tmp_path / "bin"), safe_serialization=False, max_shard_size="130KB")
    assert len(list((tmp_path / "bin").glob("*.bin"))) > 2
    figures = join(tmp_path / "bin", [adapter], tmp_path / "out", safe=False)
    assert figures["shards"] == len(list((tmp_path / "out").glob("pytorch_model-*-of-*.bin")))
    assert not list((tmp_path / "out").glob("*safetensors*"))
    theirs = weights(merged[0])
    for path in (tmp_path / "out").glob("*.bin"):
        for name, tensor in torch.load(str(path)).items():
            assert torch.equal(tensor, theirs.pop(name)), name
    assert not theirs
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), trust_remote_code=True, torch_dtype="auto")
    assert all(torch.equal(t, weights(merged[0])[n]) for n, t in again.state_dict().items())
    with merge.check_loads(tmp_path / "bin") as check:
        assert check(tmp_path / "out", ["<|im_end|>"])["stops"] == merged[1]["load_check"]["stops"]


def test_an_adapter_that_changes_nothing_is_measured(base, adapter, tmp_path):
    shutil.copytree(str(adapter), str(tmp_path / "adapter"))
    found = load_file(str(adapter / "adapter_model.safetensors"))
    found = {name: (t * 1e-9 if ".lora_B." in name else t) for name, t in found.items()}
    save_file(found, str(tmp_path / "adapter" / "adapter_model.safetensors"))
    figures = join(base, [tmp_path / "adapter"], tmp_path / "out")
    assert figures["tensors_changed"] == figures["weights_changed"] == figures["share_changed"] == 0
    assert figures["kinds"]["wqkv"]["largest"] == figures["weights_check"]["arrived"] == 0


def test_what_changed_is_told_by_module_kind(base, adapter, merged):
    before, after, figures = weights(base), weights(merged[0]), merged[1]
    assert sorted(figures["kinds"]) == sorted(LINEAR)
    for kind, told in figures["kinds"].items():
        names = [name for name in before if name.split(".")[-2] == kind]
        changes = [
            (after[n].float() - before[n].float()).norm().item() / before[n].float().norm().item() for n in names
        ]
        assert told["tensors"] == told["tensors_changed"] == len(names)
        assert told["weights_changed"] == sum(int((after[n] != before[n]).sum()) for n in names)
        assert told["largest"] == pytest.approx(max(changes), rel=1e-4)
        assert told["mean"] == pytest.approx(sum(changes) / len(names), rel=1e-4)
    assert figures["weights_changed"] == sum(k["weights_changed"] for k in figures["kinds"].values())
    said = merge.summary(figures)
    assert f"{figures['tensors_changed']} of {figures['tensors']} tensors" in said
    assert len(said.splitlines()) == 1 + len(LINEAR)


@pytest.mark.parametrize(
    ("force", "known", "ends"), [(False, [], True), (True, [], False), (False, ["few-updates"], False)]
)
def test_a_merge_that_changed_nothing_fails_unless_that_is_known(force, known, ends, monkeypatch, capsys):
    """Exit 1, but for --force and for a recipe that is about it."""
    figures = {"tensors_changed": 0, "tensors": 17, "share_changed": 0.0, "shards": 1, "shards_reused": 0, "kinds": {}}
    monkeypatch.setattr(pipeline, "perform", lambda run, stage: ({"figures": figures, "seconds": 1.0}, True))
    monkeypatch.setitem(pipeline.COMMANDS, "merge", (MERGE,))
    recipe_settings = settings.replace(settings.load("demo")[1], "known_faults", known)
    run = Run("demo", recipe_settings, ROOT, ROOT / "output", force=force)
    if ends:
        with pytest.raises(RunFailed, match="changed nothing"):
            pipeline.run_stages(run, "merge")
        return
    pipeline.run_stages(run, "merge")
    assert "The merge changed nothing" in capsys.readouterr().out


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


def test_weights_of_adapters_are_checked_with_the_recipe():
    with pytest.raises(InputWrong, match="2 numbers for 3 adapters"):
        settings.load("demo", ['merge.adapters=["a", "b"]', "merge.weights=[1.0, 2.0]"])
    chosen = settings.load("demo", ["merge.adapters=a", "merge.weights=[1.0, 0.5]"])[1]
    run = Run("demo", chosen, ROOT, ROOT / "output")
    assert merge.adapters(run) == [(run.adapter, 1.0), (ROOT / "a", 0.5)]


def changed(adapter, place, rename=lambda name: name, value=lambda name, tensor: tensor, **config):
    """A copy of the adapter with other names, values or settings."""
    shutil.copytree(str(adapter), str(place))
    found = load_file(str(adapter / "adapter_model.safetensors"))
    made = {rename(name): value(name, tensor).contiguous() for name, tensor in found.items()}
    save_file(made, str(place / "adapter_model.safetensors"), config.pop("metadata", {"format": "pt"}))
    path = place / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return place


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
        tmp_path / "cut", adapter, tmp_path, HostLacks, shard, f"{len(whole):,} bytes, it has {len(whole) - 1000:,}"
    )
    (tmp_path / "cut" / shard).write_bytes(whole[:5])
    refuses(tmp_path / "cut", adapter, tmp_path, HostLacks, shard, "5 bytes")
    (tmp_path / "cut" / shard).unlink()
    refuses(tmp_path / "cut", adapter, tmp_path, HostLacks, "lacks", shard)
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


def interrupt(monkeypatch, after, error):
    """Let the merge fail with `error` when it has begun `after` tensors."""
    begun = []
    whole = merge_write._task

    def task(*arguments):
        begun.append(arguments)
        if len(begun) > after:
            raise error
        return whole(*arguments)

    monkeypatch.setattr(merge_write, "_task", task)


@pytest.mark.parametrize("safe", [True, False])
def test_an_interrupted_merge_goes_on_from_its_finished_shards(base, adapter, merged, tmp_path, monkeypatch, safe):
    part = tmp_path / ".out.part"
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})  # tensors one after the other
        interrupt(patch, 20, OSError(28, "No space left on device"))
        with pytest.raises(OSError, match="No space"):
            join(base, [adapter], tmp_path / "out", safe=safe)
    assert not (tmp_path / "out").exists()
    assert not (part / "config.json").exists()  # nobody takes it for a model
    kept = json.loads((part / "progress.json").read_text())["shards"]
    assert 1 <= len(kept) < merged[1]["shards"]
    damaged = part / sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    figures = join(base, [adapter], tmp_path / "out", safe=safe)
    assert figures["shards_reused"] == len(kept) - 1
    assert figures["kinds"] == merged[1]["kinds"]
    ours, theirs = weights(tmp_path / "out"), weights(merged[0])
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not part.exists()


def test_shards_written_at_once_are_the_same(base, adapter, merged, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert join(base, [adapter], tmp_path / "out")["kinds"] == merged[1]["kinds"]
    ours, theirs = (
        {p.name: p.read_bytes() for p in place.glob("*.safetensors")} for place in (tmp_path / "out", merged[0])
    )
    assert ours == theirs


def test_an_error_in_any_thread_is_the_one_that_is_told(base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    interrupt(monkeypatch, 12, OSError(5, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        join(base, [adapter], tmp_path / "out")


def test_a_half_made_folder_of_another_merge_is_not_used(base, adapter, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        interrupt(patch, 20, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            join(base, [adapter], tmp_path / "out")
    assert (tmp_path / ".out.part" / "progress.json").exists()
    figures = join(base, [(adapter, 0.5)], tmp_path / "out")
    assert figures["shards_reused"] == 0
    assert_one_rounding(weights(tmp_path / "out"), *exactly(base, [(adapter, 0.5)]))


def test_a_wrong_weight_in_the_written_file_is_found(base, adapter, tmp_path):
    """Taking the base away again must leave the adapter: wrong arithmetic and copied weights that differ are seen."""
    plan = merge.make_plan(base, [(adapter, 1.0)], 10**9)
    join(base, [adapter], tmp_path / "out", "1GB")
    assert merge.check_weights(plan, tmp_path / "out")["arrived"] == pytest.approx(1, abs=0.01)
    path = next((tmp_path / "out").glob("*.safetensors"))
    right = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}  # not a view of the file
    for name in ("model.layers.1.feed_forward.w2.weight", "model.norm.weight"):
        save_file({n: t * 1.01 if n == name else t for n, t in right.items()}, str(path), {"format": "pt"})
        with pytest.raises(RunFailed, match=name):
            merge.check_weights(plan, tmp_path / "out")
    save_file(weights(base), str(path), {"format": "pt"})  # nothing was merged
    with pytest.raises(RunFailed, match="differ from base"):
        merge.check_weights(plan, tmp_path / "out")


def test_values_that_the_type_cannot_hold_are_told(base, adapter, tmp_path):
    huge = changed(adapter, tmp_path / "huge", value=lambda n, t: t * 1e9 if ".lora_B." in n else t)
    with pytest.raises(RunFailed, match="overflows float16"):
        join(base, [huge], tmp_path / "out")


def test_the_stage_goes_on_where_it_was_stopped(base, adapter, tmp_path, monkeypatch):
    """The half-made folder outlives the stage's own; settings reach the merge; nothing is hashed twice."""
    words = [f"model.path={base}", "merge.max_shard_size=130KB", "merge.safe_serialization=false"]
    run = Run("demo", settings.load("demo", words)[1], ROOT, tmp_path)
    shutil.copytree(str(adapter), str(run.adapter))
    run.manifest = {"stages": {"adapter": {"figures": {"base_sha256": "0" * 64, "base_model": "a base"}}}}
    monkeypatch.setattr(merge, "check_loads", lambda _: contextlib.nullcontext(lambda *_: {"stops": [2, 92542]}))
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        interrupt(patch, 20, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            stage.perform(run, MERGE)
    assert not run.merged.exists()
    assert f"resumes   after {len(list((run.folder / merge.PART).glob('*.bin')))} finished" in "\n".join(
        merge.dry_run(run)
    )
    entry, ran = stage.perform(run, MERGE)
    assert ran
    assert entry["figures"]["shards_reused"] >= 1
    assert entry["outputs"]["merged"]["sha256"] == hashing.digest(run.merged)
    assert sorted(path.name for path in run.folder.iterdir()) == ["adapter", "merged", "run.json"]
    card = (run.merged / "README.md").read_text(encoding="utf-8")
    for word in ("base_model: a base", "0" * 64, "adapter × 1", "2, 92542"):
        assert word in card, card
    assert not stage.perform(run, MERGE)[1]
    run.settings = settings.load("demo", [*words, "merge.weights=[0.5]"])[1]
    assert stage.perform(run, MERGE)[1]


def test_dry_run_tells_and_writes_nothing(demo, tmp_path):
    before = sorted(demo[1].rglob("*"))
    done = recipe("merge", "demo", "--dry-run", "--output", demo[1].parent)
    assert done.returncode == 0, done.stderr
    for word in ("base", "adapter", "changes   11 tensors", "wqkv", "shards", "GB free", "Nothing was written"):
        assert word in done.stdout, done.stdout
    assert sorted(demo[1].rglob("*")) == before
    refused(recipe("merge", "demo", "--dry-run", "--output", tmp_path), 2, "no adapter", "just adapter")
    refused(recipe("train", "demo", "--dry-run", "--output", tmp_path), 2, "train has no option --dry-run")


def test_the_demos_merge(demo):
    """Figures in run.json, one line a module kind on the screen, and the cards."""
    manifest = json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))
    entry = manifest["stages"]["merge"]
    assert entry["outputs"]["merged"]["sha256"] == hashing.digest(demo[1] / "merged")
    assert set(entry["figures"]["kinds"]) == set(LINEAR)
    assert re.search(r"wqkv +\d+\.\d% of the weights", demo[0].stdout)
    card = (demo[1] / "merged" / "README.md").read_text(encoding="utf-8")
    assert manifest["stages"]["adapter"]["figures"]["base_sha256"] in card
    assert not list(demo[1].glob(".*part"))


def test_sizes():
    assert merge.parse_size("2GB") == 2_000_000_000
    assert merge.parse_size("500KB") == 500_000
