"""A run's folder and its manifest."""

import pytest

from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.core.translation import use

ENTRY = '{"key": "k", "figures": {}, "outputs": %s, "seconds": 1, "peak_memory_mb": 1}'


@pytest.mark.parametrize(
    "text",
    [
        "[]", "null", "5", "", "{", '{"stages": []}', '{"stages": {"copy": 5}}', '{"stages": {"copy": {}}}',
        '{"stages": {"copy": ' + ENTRY % "null" + "}}", '{"stages": {"copy": ' + ENTRY % '{"a": 1}' + "}}",
        '{"stages": {"copy": ' + ENTRY % "[]" + "}}", '{"stages": {}, "trained": []}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused_and_stays(run, text):
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(text)
    for _ in range(2):  # the lock is released
        with pytest.raises(InputWrong, match=r"run\.json is damaged.*: mv "):
            run.open()
    assert (run.folder / "run.json").read_text() == text


def test_another_recipe_of_the_same_name_is_told(run, tmp_path):
    files = [tmp_path / "one" / "demo.toml", tmp_path / "two" / "demo.toml"]
    for number, path in enumerate(files):
        path.parent.mkdir()
        path.write_text(f"# {number}")

    def told(path):
        again = Run("demo", run.settings, run.root, run.output, recipe_file=path)
        with again.open():
            said = again.other_recipe()
            again.manifest.setdefault("stages", {})
            again.save()
        return said

    assert told(files[0]) == ""
    files[0].write_text("# edited")
    assert told(files[0]) == ""
    said = told(files[1])
    assert "one/demo.toml" in said
    assert "two/demo.toml" in said
    files[0].write_text("# 1")  # a copy
    assert told(files[0]) == ""


def test_a_second_run_on_the_same_folder_is_refused(run):
    with run.open(), pytest.raises(HostLacks, match="Another run"):
        Run("tiny", run.settings, run.root, run.output).open()


def test_an_output_folder_that_cannot_be_made(run):
    run.output.write_text("a file is in the way")
    with pytest.raises(HostLacks, match="--output"):
        run.open()


def test_what_the_system_says_is_in_the_users_language(run):
    run.output.write_text("a file is in the way")
    with use("zh"), pytest.raises(HostLacks) as caught:
        run.open()
    assert "Not a directory" not in str(caught.value)
    assert "File exists" not in str(caught.value)
