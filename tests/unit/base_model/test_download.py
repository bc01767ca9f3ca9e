"""Models made here and folders of the user's own."""

import json
import subprocess
import sys

import pytest

from recipe.base_model import download, folder
from recipe.core import settings
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from support.command import ROOT


@pytest.fixture
def run(tmp_path):
    return Run("tiny", settings.load("tiny")[1], tmp_path, tmp_path / "output")


# The folder


def test_a_tiny_model_is_made_whole_and_named_after_what_it_is_made_of(run):
    place = download.ensure(run)
    assert place == folder.folder(run)
    assert place.name.startswith("tiny-internlm2-")
    assert download.ensure(run) == place
    assert [p.name for p in place.parent.iterdir() if "part" in p.name] == []


def test_other_weights_of_the_same_size_are_another_model(run):
    place = download.ensure(run)
    before = folder.fingerprint(place)
    shard = next(iter(folder.weights(place)))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1000] + bytes(reversed(data[-1000:])))
    after = folder.fingerprint(place)
    assert {name for name in before if before[name] != after[name]} == {shard.name}


@pytest.mark.slow
def test_two_at_once_make_one_model(tmp_path):
    code = (
        "import sys; from pathlib import Path; from recipe.base_model import download; "
        "from recipe.core import run, settings; "
        "root = Path(sys.argv[1]); print(download.ensure(run.Run('tiny', settings.load('tiny')[1], root, root)))"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=str(ROOT), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate()[0] for child in both]
    assert [child.returncode for child in both] == [0, 0]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 92544}, r"tok_embeddings\.weight is \[2048, 256\], config\.json says \[92544, 256\]"),
        ({"num_hidden_layers": 32}, "the weights have 2 layers, config.json says 32"),
    ],
)
def test_config_and_weights_must_agree(run, change, words):
    place = download.ensure(run)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputWrong, match=words):
        download.ensure(run)


def test_a_folder_of_ones_own_with_a_weight_file_cut_short(run, tmp_path):
    place = download.ensure(run)
    shard = next(iter(folder.weights(place)))
    shard.write_bytes(shard.read_bytes()[:-100])
    own = Run("x", settings.load("tiny", [f"model.path={place}"])[1], tmp_path, tmp_path / "output")
    with pytest.raises(InputWrong, match=f"{shard.name} is damaged or cut short.*model.path"):
        download.ensure(own)
