"""LoRA adapters of random values, and the exact sum with their base."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipe.core import imports
from recipe.weights import merge, merge_write
from recipe.weights import merge_plan as plans

LINEAR = ["wqkv", "wo", "w1", "w2", "w3", "output"]


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


def changed(adapter, place, rename=lambda name: name, value=lambda name, tensor: tensor, **config):
    """A copy of the adapter with other names, values or settings."""
    shutil.copytree(str(adapter), str(place))
    found = load_file(str(adapter / "adapter_model.safetensors"))
    made = {rename(name): value(name, tensor).contiguous() for name, tensor in found.items()}
    save_file(made, str(place / "adapter_model.safetensors"), config.pop("metadata", {"format": "pt"}))
    path = place / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return place


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
