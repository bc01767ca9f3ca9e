"""What export says beside the commands: English in run.json, in the user's language on the terminal."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipe.core import settings
from recipe.core.run import Run
from recipe.core.translation import english, use
from recipe.export import gguf_writer, targets
from recipe.export.merged import MergedModel
from recipe.inference import terminal

CONFIG = {"hidden_size": 4096, "model_type": "internlm2", "max_position_embeddings": 32768, "rope_scaling": {
    "type": "dynamic", "factor": 2.0}}  # fmt: skip


@pytest.fixture
def merged(tmp_path):
    template = SimpleNamespace(SYSTEM="<s>{system}\n", INSTRUCTION="<u>{input}<a>")
    place = tmp_path / "merged"
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(b"0" * 100)
    return MergedModel(place, "coach", "coach", dict(CONFIG), template, "{{ x }}", False, ["</s>"], "Be kind.", "</s>")


@pytest.mark.parametrize("hidden", [4096, 5])
@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_notes_are_english_in_files_and_chinese_where_they_are_shown(target, hidden, merged, tmp_path, monkeypatch):
    run = Run("coach", settings.load("coach")[1], tmp_path, tmp_path / "output")
    run.folder.mkdir(parents=True)
    monkeypatch.setattr(terminal, "questions", lambda run: ["你好？"])
    monkeypatch.setattr(gguf_writer, "write", lambda *given: {})
    monkeypatch.setattr("recipe.export.gguf.find_spec", lambda name: True)
    monkeypatch.setitem(merged.config, "hidden_size", hidden)
    stage = targets.export_stage(target, merged)

    def notes(language, name):
        with use(language):
            return stage.make(run, tmp_path / name)["notes"]

    figures = {"notes": notes("en", "one")}
    assert figures["notes"] == notes("zh", "two")
    assert not re.search(r"[一-鿿]", "".join(figures["notes"]))
    with use("zh"):
        told = stage.summary(figures).splitlines()
    assert all(re.search(r"[一-鿿]", line) for line in told), told
    with english():
        assert stage.summary(figures).splitlines() == figures["notes"]


def test_every_target_has_notes():
    assert set(targets.TARGETS) == {path.stem for path in Path(targets.__file__).parent.glob("*.py")} - {
        "__init__", "gguf_writer", "merged", "targets",
    }  # fmt: skip
