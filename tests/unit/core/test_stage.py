"""What surrounds every stage: skipping, renaming into place, the manifest, the lock on the folder."""

import json

import pytest
from conftest import runner

from recipe.core import hashing, host, settings
from recipe.core import stage as stages
from recipe.core.errors import HostLacks, RunFailed
from recipe.core.run import Run


@pytest.fixture
def run(tmp_path):
    return Run("demo", settings.load("demo")[1], tmp_path, tmp_path / "output")


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
    run.settings = settings.load("demo", ["base=other"])[1]
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


def test_a_broken_manifest_makes_everything_run_again(run, counter):
    stages.perform(run, counter.stage)
    (run.folder / "run.json").write_text("{")
    again = Run("demo", run.settings, run.root, run.output)
    again.folder.joinpath(".lock").unlink()
    with again.open():
        assert stages.perform(again, counter.stage)[1]


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '{"stages": []}', '{"stages": {"copy": 5}}', '{"stages": {"copy": {}}}']
)
def test_a_manifest_of_another_shape_proves_nothing(run, text):
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(text)
    with run.open():
        assert run.manifest == {}


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


def test_a_second_run_on_the_same_folder_is_refused(run):
    with run.open(), pytest.raises(HostLacks, match="Another run"):
        Run("demo", run.settings, run.root, run.output).open()


def test_an_output_folder_that_cannot_be_made(run):
    run.output.write_text("a file is in the way")
    with pytest.raises(HostLacks, match="--output"):
        run.open()


def test_digest_of_a_folder_sees_names_and_contents(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x").write_text("1")
    first = hashing.digest(folder)
    (folder / "x").rename(folder / "y")
    assert hashing.digest(folder) != first
    (folder / "y").rename(folder / "x")
    assert hashing.digest(folder) == first
    assert hashing.digest(tmp_path / "none") == "absent"


def test_details_of_an_unexpected_error_lie_below_output(tmp_path, monkeypatch):
    """In a container nothing else outlives the command. Where output cannot be written, in the system's own folder."""
    from recipe.cli import main as front

    def fails(*_):
        raise KeyError("what nobody thought of")

    monkeypatch.setattr("recipe.cli.stages.load", fails)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "file").touch()
    for output, place in (("output", "output"), ("mine/runs", "mine/runs"), ("file", "tmp")):
        done = runner().invoke(front.cli, ["plan", "demo", "--output", output])
        assert done.exit_code == 1
        [report] = (tmp_path / place).glob("error-*.log")
        assert "KeyError: 'what nobody thought of'" in report.read_text(encoding="utf-8")
        assert f"Details for a report: {report if place == 'tmp' else report.relative_to(tmp_path)}" in done.stderr
        assert "Traceback" not in done.stderr


def test_gpus_as_nvidia_smi_tells_them(tmp_path, monkeypatch):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(
        "#!/bin/sh\necho '0, GPU-0, NVIDIA GeForce RTX 3090, 24576, 24000, 535.129.03, Default, [N/A], 8.6'\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert host.gpus() == [
        {"name": "NVIDIA GeForce RTX 3090", "memory_mib": 24576, "driver": "535.129.03", "capability": "8.6"}
    ]
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert host.gpus() == []
