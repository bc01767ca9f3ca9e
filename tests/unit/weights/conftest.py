"""A tiny base, its adapter and their merge."""

import pytest
from safetensors.torch import load_file, save_file

from recipe.weights import merge
from support.lora_merge import peft_model
from support.models import sharded


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A tiny InternLM2 in four shards."""
    return sharded(tmp_path_factory.mktemp("merge") / "base", layers=3)


@pytest.fixture(scope="session")
def adapter(base, tmp_path_factory):
    """A plain adapter in fp16, as the adapter stage saves it."""
    place = tmp_path_factory.mktemp("adapter")
    peft_model(base).save_pretrained(str(place))
    path = place / "adapter_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(str(path)).items()}, str(path), {"format": "pt"})
    return place


@pytest.fixture(scope="session")
def merged(base, adapter, tmp_path_factory):
    """(folder, figures) of a whole merge, last check included."""
    place = tmp_path_factory.mktemp("merged") / "merged"
    plan = merge.make_plan(base, [(adapter, 1.0)], merge.parse_size("130KB"))
    return place, merge.merge(plan, place, stop_words=["<|im_end|>", "two tokens"], card=lambda f: f"# {f['shards']}\n")
