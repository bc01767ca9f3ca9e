"""Model folders of which transformers would load something else, or nothing."""

import json
import shutil

import pytest

from recipe.base_model import folder
from recipe.core import settings
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from support.command import ROOT
from support.models import sharded

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a21' * 10}abcd\nsize 12345\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("model") / "internlm2", 2)


@pytest.fixture
def place(model, tmp_path):
    shutil.copytree(str(model), str(tmp_path / "copy"))
    return tmp_path / "copy"


def check(place, *overrides):
    run = Run("tiny", settings.load("tiny", [f"model.path={place}", *overrides])[1], ROOT, place.parent)
    folder.check(run, place)


def test_a_whole_folder_is_accepted(place):
    check(place)
    assert folder.index(place, "x")[0] == INDEX


@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
def test_a_stray_file_beside_an_index_is_refused(place, index):
    first = sorted(place.glob("model-*.safetensors"))[0]
    if index == INDEX:
        shutil.copyfile(str(first), str(place / "model.safetensors"))
    else:
        weights = json.loads((place / INDEX).read_text())["weight_map"]
        for path in [place / INDEX, *place.glob("*.safetensors")]:
            path.unlink()
        (place / index).write_text(
            json.dumps({"weight_map": dict.fromkeys(weights, "pytorch_model-00001-of-00001.bin")})
        )
        (place / "pytorch_model-00001-of-00001.bin").write_bytes(b"x")
        (place / "pytorch_model.bin").write_bytes(b"y")
    with pytest.raises(InputWrong, match=r"transformers loads .* alone, and what it lacks gets random numbers"):
        check(place)


def test_shards_without_their_index_are_refused(place):
    (place / INDEX).unlink()
    with pytest.raises(HostLacks, match=r"not model\.safetensors\.index\.json"):
        check(place)


def test_weights_under_another_name_are_refused(place):
    for path in [place / INDEX, *place.glob("*.safetensors")]:
        path.unlink()
    (place / "consolidated.safetensors").write_bytes(b"x")
    with pytest.raises(HostLacks, match=r"consolidated\.safetensors, which transformers does not load"):
        check(place)


def test_a_folder_without_a_tokenizer_is_refused_unless_one_is_named(place):
    shutil.move(str(place / "tokenizer.model"), str(place.parent / "tokenizer.model"))
    with pytest.raises(HostLacks, match="has no tokenizer"):
        check(place)
    check(place, f"model.tokenizer={place.parent / 'tokenizer.model'}")


@pytest.mark.parametrize(
    ("name", "auto_map", "missing"),
    [
        ("config.json", {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}, "modeling_x.py"),
        ("config.json", {"AutoConfig": "me/code--configuration_x.XConfig"}, "configuration_x.py of me/code"),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}, "tokenization_x.py"),
    ],
)
def test_a_folder_without_its_code_is_refused(place, name, auto_map, missing):
    for path in place.glob("*.py"):
        path.unlink()
    for file in ("config.json", "tokenizer_config.json"):
        values = {"model_type": "x", "architectures": ["XForCausalLM"]} if file == "config.json" else {}
        values["auto_map"] = auto_map if file == name else {}
        (place / file).write_text(json.dumps(values))
    with pytest.raises(HostLacks, match=f"does not have {missing}"):
        check(place)


@pytest.mark.parametrize("name", ["tokenizer.model", "config.json", INDEX, "model-00001-of-"])
def test_pointers_of_git_lfs_are_named(place, name):
    path = next(one for one in place.iterdir() if one.name.startswith(name))
    path.write_text(POINTER)
    with pytest.raises(HostLacks, match=rf"{path.name}: it is a Git LFS pointer.*git lfs pull"):
        check(place)


def test_the_model_stage_says_it(place, tmp_path):
    from support.command import recipe, refused

    (place / "tokenizer.model").unlink()
    refused(recipe("model", "tiny", f"model.path={place}", "--output", tmp_path), 3, "has no tokenizer")
