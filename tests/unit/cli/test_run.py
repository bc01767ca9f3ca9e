"""Names of folders in commands and in errors."""

import pytest

from support.command import ROOT, recipe, refused


def test_what_names_no_folder_is_refused(tmp_path):
    path = tmp_path / "...toml"
    path.write_text((ROOT / "recipe/tiny.toml").read_text(encoding="utf-8"), encoding="utf-8")
    refused(recipe("data", path, "--output", tmp_path / "out"), 2, "its name does not begin with a dot")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    refused(recipe("data", "tiny", "--output", ""), 2, "--output= is empty")
    refused(recipe("data", "tiny", "data.files=", "--output", tmp_path), 2, "data.files contains an empty file name")


def test_commands_in_errors_are_typed_as_this_users(tmp_path):
    words = ("chat", "tiny", "--output", tmp_path)
    refused(recipe(*words, RECIPE_COMMAND="./justw"), 2, f": ./justw merge tiny --output {tmp_path}")
    refused(recipe(*words), 2, f": just merge tiny --output {tmp_path}")


@pytest.mark.slow
def test_the_next_command_has_the_folder(tmp_path):
    done = recipe("plan", "tiny", "train.lr=3e-4", "--output", tmp_path)
    assert f"Next: just train tiny --output {tmp_path} train.lr=3e-4\n" in done.stdout
