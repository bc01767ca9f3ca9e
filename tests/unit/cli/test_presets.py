"""`just presets` and `just new`."""

import re

import pytest

from recipe.cli import presets
from recipe.core import data_source, settings
from recipe.core.errors import InputWrong
from recipe.core.recipe_files import recipes
from recipe.xtuner import config, preset_facts
from support.command import ROOT
from support.presets import PRETRAIN

TABLE = ROOT / "docs" / "presets.tsv"


def test_the_table_is_the_one_committed():
    """docs/presets.tsv: `just presets --write` makes it again."""
    assert TABLE.read_text(encoding="utf-8") == presets.as_tsv(presets.rows())
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 409
    assert all(re.search(r"\t(accepted; code: |refused: )\S", line) for line in lines[1:])


def test_a_new_recipe_parses_and_renders_and_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for base in ("llama2_7b_chat_qlora_medical_e1", "internlm2_chat_1_8b_full_alpaca_e3", PRETRAIN):
        path = presets.write_recipe(f"mine_{base}", base)
        name, found = settings.load(str(path))
        assert (name, found.base, found.model.id) == (f"mine_{base}", base, preset_facts.facts(base).model)
        preset_facts.check(found)
        config.render(found, "m", "d", {"save_steps": 5})
        with pytest.raises(InputWrong, match="already exists"):
            presets.write_recipe(f"mine_{base}", base)
    with pytest.raises(InputWrong, match="no preset"):
        presets.write_recipe("other", "llama9")


@pytest.mark.parametrize("base", recipes())
def test_a_new_recipe_from_one_that_ships_has_data_of_ones_own(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, found = settings.load(str(presets.write_recipe("mine", base)))
    shipped = settings.load(base)[1]
    assert (name, found.data.files, found.data.sha256, found.data.url) == ("mine", ["data/mine.xlsx"], "", "")
    assert found.data.system == ""
    assert found.train.evaluation_inputs == data_source.QUESTIONS
    assert found.train.max_epochs == shipped.train.max_epochs
    assert found.model == shipped.model
    with pytest.raises(InputWrong, match="a recipe that ships"):
        presets.write_recipe(base, base)


def test_a_new_recipe_goes_on_from_a_data_file_that_was_named(tmp_path, monkeypatch):
    """It is the same source, so it may have the run's folder."""
    monkeypatch.chdir(tmp_path)
    data_source.remember(tmp_path / "output/mine", {"data": "/elsewhere/mine.csv", "system": "你是“教练”。"})
    found = settings.load(str(presets.write_recipe("mine", "coach")))[1]
    assert (found.data.files, found.data.system) == (["/elsewhere/mine.csv"], "你是“教练”。")
