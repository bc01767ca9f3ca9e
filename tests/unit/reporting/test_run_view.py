"""Manifests that cannot be read."""

import pytest

from recipe.core.errors import InputWrong
from recipe.reporting import run_view


@pytest.mark.parametrize("text", ["", "{", '{"stages": {}}', '{"settings": {"base": 1}, "stages": {}}', "[]"])
def test_a_damaged_manifest(tmp_path, text):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/run.json").write_text(text)
    with pytest.raises(InputWrong, match="cannot be read"):
        run_view.find_run("x", tmp_path, tmp_path)
