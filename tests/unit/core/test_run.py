"""A run's folder and its manifest."""

import pytest

from recipe.core.errors import HostLacks
from recipe.core.run import Run


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '{"stages": []}', '{"stages": {"copy": 5}}', '{"stages": {"copy": {}}}']
)
def test_a_manifest_of_another_shape_proves_nothing(run, text):
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(text)
    with run.open():
        assert run.manifest == {}


def test_a_second_run_on_the_same_folder_is_refused(run):
    with run.open(), pytest.raises(HostLacks, match="Another run"):
        Run("tiny", run.settings, run.root, run.output).open()


def test_an_output_folder_that_cannot_be_made(run):
    run.output.write_text("a file is in the way")
    with pytest.raises(HostLacks, match="--output"):
        run.open()
