"""The base model's folder: what identifies it, what is missing from it, who makes it."""

import subprocess
import sys

import pytest
from conftest import ROOT

from recipe import model, settings, stages
from recipe.errors import HostLacks


@pytest.fixture
def run(tmp_path):
    return stages.Run("demo", settings.load("demo")[1], tmp_path, tmp_path / "output")


def test_a_tiny_model_is_made_whole_and_named_after_what_it_is_made_of(run):
    place = model.ensure(run)
    assert place == model.folder(run)
    assert place.name.startswith("tiny-internlm2-")
    assert model.ensure(run) == place
    assert [p.name for p in place.parent.iterdir() if "part" in p.name] == []


def test_other_weights_of_the_same_size_are_another_model(run):
    place = model.ensure(run)
    before = model.fingerprint(place)
    shard = next(iter(model.weights(place)))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000] + bytes(reversed(data[-1000:])))
    after = model.fingerprint(place)
    assert {name for name in before if before[name] != after[name]} == {shard.name}


def test_two_at_once_make_one_model(tmp_path):
    code = (
        "import sys; from pathlib import Path; from recipe import model, settings, stages; "
        "root = Path(sys.argv[1]); print(model.ensure(stages.Run('demo', settings.load('demo')[1], root, root)))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate()[0] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert said[0] == said[1]


@pytest.mark.parametrize("text", ["{}", "not json", '{"weight_map": 3}'])
def test_a_damaged_index_is_told(tmp_path, text):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(HostLacks, match="is damaged"):
        model.check(tmp_path, "models/x")


def test_an_empty_shard_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HostLacks, match=r"lacks model\.safetensors"):
        model.check(tmp_path, "models/x")
