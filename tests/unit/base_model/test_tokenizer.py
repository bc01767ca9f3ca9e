"""Where the recipe's tokenizer comes from."""

import shutil

from recipe.base_model import tokenizer
from recipe.core import settings
from recipe.core.run import Run


def test_a_tokenizers_file_may_be_given_alone_or_in_a_folder(run_of_demo, tmp_path):
    shutil.copy(str(run_of_demo / "tokenizer.model"), str(tmp_path / "tokenizer.model"))
    found = []
    for given in (tmp_path / "tokenizer.model", tmp_path, run_of_demo):
        run = Run("tiny", settings.load("tiny", [f"model.tokenizer={given}"])[1], tmp_path, tmp_path / "output")
        found.append(tokenizer.tokenizer(run).encode("压力很大"))
    assert found[0] == found[1] == found[2]
