"""What surrounds every stage: skipping, renaming into place, the manifest."""

import json

import pytest

from recipe.core import hashing, settings
from recipe.core import stage as stages
from recipe.core.errors import RunFailed


class Counter:
    """A stage that copies a file and counts its runs."""

    def __init__(self, run, source):
        self.count, self.run, self.source = 0, run, source
        self.fail = False
        self.stage = stages.Stage("copy", self.inputs, self.make, str, ("copy.txt", "folder"))

    def inputs(self, run):
        return {"source": self.source, "setting": run.settings.base}

    def make(self, run, out):
        self.count += 1
        (out / "copy.txt").write_text(self.source.read_text())
        (out / "folder").mkdir()
        if self.fail:
            raise RunFailed("half way")
        (out / "folder" / "inner.txt").write_text("x")
        return {"count": self.count}


@pytest.fixture
def counter(run, tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    with run.open():
        yield Counter(run, source)


def test_a_stage_runs_once_until_something_changes(run, counter):
    assert stages.perform(run, counter.stage)[1]
    assert not stages.perform(run, counter.stage)[1]
    counter.source.write_text("two")
    assert stages.perform(run, counter.stage)[1]
    (run.folder / "copy.txt").write_text("somebody edited this")
    assert stages.perform(run, counter.stage)[1]
    (run.folder / "folder" / "inner.txt").unlink()
    assert stages.perform(run, counter.stage)[1]
    run.settings = settings.load("tiny", ["base=other"])[1]
    assert stages.perform(run, counter.stage)[1]
    assert counter.count == 5
    assert (run.folder / "copy.txt").read_text() == "two"


def test_touched_but_equal_outputs_do_not_run_again(run, counter):
    stages.perform(run, counter.stage)
    (run.folder / "copy.txt").write_text("one")
    assert not stages.perform(run, counter.stage)[1]


def test_a_failed_stage_leaves_earlier_outputs_alone(run, counter):
    stages.perform(run, counter.stage)
    counter.source.write_text("two")
    counter.fail = True
    with pytest.raises(RunFailed):
        stages.perform(run, counter.stage)
    assert (run.folder / "copy.txt").read_text() == "one"
    assert (run.folder / "folder" / "inner.txt").exists()
    assert [path.name for path in run.folder.iterdir() if "part" in path.name] == []


def test_a_stage_that_writes_nothing_is_a_failure(run):
    stage = stages.Stage("idle", lambda run: {}, lambda run, out: {}, str, ("promised.txt",))
    with run.open(), pytest.raises(RunFailed, match=r"promised\.txt"):
        stages.perform(run, stage)


def test_manifest(run, counter):
    stages.perform(run, counter.stage)
    manifest = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    entry = manifest["stages"]["copy"]
    assert entry["figures"] == {"count": 1}
    assert entry["outputs"]["copy.txt"]["sha256"] == hashing.digest(run.folder / "copy.txt")
    assert entry["seconds"] >= 0
    assert entry["peak_memory_mb"] > 10
    assert manifest["versions"]["xtuner"] == "0.1.14"
    assert manifest["settings"]["base"] == run.settings.base


def test_an_entry_without_its_outputs_proves_nothing(run, counter):
    stages.perform(run, counter.stage)
    run.manifest["stages"]["copy"]["outputs"] = {}
    assert stages.perform(run, counter.stage)[1]


def test_what_a_stage_made_in_place_is_watched_too(run, tmp_path):
    def make(run, out):
        (run.folder / "made.bin").write_bytes(b"12345")
        return {"made": ["made.bin"]}

    stage = stages.Stage("train", lambda run: {}, make, str)
    with run.open():
        assert stages.perform(run, stage)[1]
        assert not stages.perform(run, stage)[1]
        (run.folder / "made.bin").write_bytes(b"12x45")
        assert stages.perform(run, stage)[1]
        (run.folder / "made.bin").unlink()
        assert stages.perform(run, stage)[1]
