"""Model folders that are incomplete."""

import pytest

from recipe.base_model import folder
from recipe.core.errors import HostLacks


@pytest.mark.parametrize("text", ["{}", "not json", '{"weight_map": 3}'])
def test_a_damaged_index_is_told(tmp_path, text):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(HostLacks, match="is damaged"):
        folder.check_complete(tmp_path, "models/x")


def test_an_empty_shard_is_missing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(HostLacks, match=r"does not have model\.safetensors"):
        folder.check_complete(tmp_path, "models/x")


def test_a_model_that_is_not_there_is_told_to_every_stage(tmp_path):
    with pytest.raises(HostLacks, match="Fetch it first: just model"):
        folder.fingerprint(tmp_path / "nothing")
