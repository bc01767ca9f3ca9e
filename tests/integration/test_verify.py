"""just verify: a finished run's checks once more. Every damaged byte is found, and what cannot be checked is not ok."""

import json
import shutil

import pytest

from recipe.core import hashing, host
from recipe.reporting import run_view, verify
from support.command import ROOT, recipe


@pytest.fixture
def folder(demo, tmp_path):
    """A copy of the demo's run. Other tests ask it more questions and measure again: such files count as they are."""
    place = tmp_path / "tiny"
    shutil.copytree(str(demo[1]), str(place))
    manifest = json.loads((place / "run.json").read_text(encoding="utf-8"))
    for stage, name in (("chat", "samples.json"), ("eval", "eval.json")):
        manifest["stages"][stage]["outputs"][name]["sha256"] = hashing.digest(place / name)
    save(place, manifest)
    return place


def save(place, manifest):
    (place / "run.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Function: {check: (verdict, detail)} of a run folder."""
    monkeypatch.setenv("RECIPE_FETCH", "no")
    times = iter(range(99))

    def checks(place):
        run = run_view.find_run(str(place), ROOT, place.parent)
        return {line.name: line[1:] for line in verify.check_run(run, tmp_path / f"beside{next(times)}")}

    return checks


def forge(place, stage, name):
    """As if the manifest had been written of what now lies there."""
    manifest = json.loads((place / "run.json").read_text(encoding="utf-8"))
    made = manifest["stages"][stage]["outputs"][name]
    made["sha256"] = hashing.digest(place / name)
    if "files" in made:
        made["files"] = hashing.sums(place / name)
    save(place, manifest)


def without_lock(place):
    return [one for one in hashing.stamp(place) if not one[0].endswith(".lock")]


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def test_an_untouched_run_is_ok_and_stays_as_it_was(folder):
    before = without_lock(folder)
    done = recipe("verify", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("dataset.jsonl", "merged", "plan, recreated", "base model", "merged model minus base", "versions"):
        assert what in done.stdout
    assert "20 of 20 checks ok, 0 differ, 0 cannot run here." in done.stdout
    assert without_lock(folder) == before
    (folder / "samples.json").write_text("{}")
    done = recipe("verify", folder)
    assert done.returncode == 1
    assert "samples.json" in done.stdout
    assert "Some results differ from what this run made." in done.stderr
    assert not list((ROOT / "output").glob(".verify-*"))


def test_a_damaged_byte_in_any_file_of_any_output_is_found(folder):
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    files = 0
    for entry in manifest["stages"].values():
        for name, made in entry["outputs"].items():
            place = folder / name
            for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
                whole = path.read_bytes()
                flip(path)
                line = verify._check_output(place, name, made)
                assert line.verdict == verify.DIFFERS, path
                if place.is_dir():
                    assert line.detail.endswith(f": {path.name}")
                path.write_bytes(whole)
                files += 1
            assert verify._check_output(place, name, made).verdict == verify.OK
    assert files > 25


def test_what_a_manifest_was_rewritten_for_is_found_by_making_it_again(folder, look):
    """Changed files whose sha256 the manifest was changed to as well."""
    text = (folder / "dataset.jsonl").read_text(encoding="utf-8")
    (folder / "dataset.jsonl").write_text(text.replace("我", "你", 1), encoding="utf-8")
    forge(folder, "data", "dataset.jsonl")
    weights = folder / "adapter" / "adapter_model.safetensors"
    flip(weights)
    forge(folder, "adapter", "adapter")
    shard = sorted((folder / "merged").glob("*.safetensors"))[0]
    raw = shard.read_bytes()
    shard.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))
    forge(folder, "merge", "merged")
    manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    manifest["versions"]["torch"] = "9.9"
    manifest["host"]["image"] = "sha256:abc"
    manifest["stages"]["train"]["figures"].update(updates=1, loss_last=0.5)
    manifest["stages"]["model"]["figures"]["fingerprint"]["config.json"] = "0" * 64
    save(folder, manifest)
    found = look(folder)
    assert found["data, recreated"][0] == verify.DIFFERS
    assert found["plan, recreated"] == (verify.NOT_HERE, "needs the recreated data")
    assert found["adapter, recreated"][1] == "adapter_model.safetensors: differs from the checkpoint"
    assert found["merged model minus base"][0] == verify.DIFFERS
    assert found["versions"] == (verify.DIFFERS, f"torch {host.versions()['torch']}, was 9.9")
    assert found["image"] == (verify.NOT_HERE, "the run used image sha256:abc, this command the host")
    assert found["checkpoint"][1].endswith("was 1")
    assert found["train.log"][0] == verify.DIFFERS
    assert found["base model"][1].endswith("config.json")
    assert found["dataset.jsonl"][0] == found["adapter"][0] == found["merged"][0] == verify.OK


def test_plan_and_config_made_again_are_compared(folder, look):
    def change(name, old, new):
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
        return look(folder)

    found = change("config.py", "max_length = 256", "max_length = 255")
    assert found["data, recreated"][0] == found["plan, recreated"][0] == verify.OK
    assert found["config, recreated"][1].startswith("config.py differs")
    found = change("plan.json", '"iterations": 792', '"iterations": 791')
    assert found["plan, recreated"][1].startswith("plan.json differs")
    assert found["config, recreated"] == (verify.NOT_HERE, "needs the recreated plan")


def test_other_settings_that_were_only_looked_at_are_no_damage(folder, look):
    """verify takes the settings of the training that is there."""
    words = ("data.eval_share=0.3", "lora.r=4", "--output", folder.parent)
    assert recipe("plan", folder.name, "train.max_epochs=1", "--output", folder.parent).returncode == 0
    found = look(folder)
    assert found.pop("plan.json") == (verify.NOT_HERE, verify.MADE_SINCE)
    assert {line[0] for line in found.values()} == {verify.OK}
    refused = recipe("plan", folder.name, "train.accumulative_counts=1000", "--output", folder.parent)
    assert refused.returncode == 2
    assert look(folder)["plan.json"][0] == verify.NOT_HERE
    assert recipe("config", folder.name, *words).returncode == 0
    found = look(folder)
    assert verify.DIFFERS not in {line[0] for line in found.values()}
    assert found["data, recreated"][0] == found["plan, recreated"][0] == verify.OK
    assert found["config.py"][1] == found["config, recreated"][1] == verify.MADE_SINCE
    flip(folder / "plan.json")
    assert look(folder)["plan.json"][0] == verify.DIFFERS


def test_what_is_not_here_is_not_called_ok(folder, look, monkeypatch):
    run = run_view.find_run(str(folder), ROOT, folder.parent)
    shutil.rmtree(str(folder / "checkpoints"))
    shutil.rmtree(str(folder / "merged"))
    for module in ("folder", "tokenizer", "download"):
        monkeypatch.setattr(f"recipe.base_model.{module}.folder", lambda run: folder / "none")
    found = look(folder)
    checkpoint = str(run.checkpoint.relative_to(folder))
    for what in (checkpoint, "checkpoint", "train.log", "merged", "adapter, recreated", "merged model minus base",
                 "base model", "plan, recreated", "config, recreated"):  # fmt: skip
        assert found[what][0] == verify.NOT_HERE, (what, found[what])
    assert found["adapter"][0] == verify.OK
    moved = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for recorded in (moved, moved["trained"]):
        recorded["settings"]["data"]["files"] = ["data/none.xlsx"]
    save(folder, moved)
    assert look(folder)["data, recreated"] == (verify.NOT_HERE, "data/none.xlsx: missing")


def test_a_run_at_work_is_not_verified(folder):
    from filelock import FileLock

    with FileLock(str(folder / ".lock")):
        done = recipe("verify", folder)
    assert done.returncode == 2
    assert "A command is running" in done.stderr
