"""The demo's merge."""

import json
import re

from recipe.base_model import licence
from recipe.core import hashing
from support.command import recipe, refused
from support.lora_merge import LINEAR


def test_dry_run_tells_and_writes_nothing(demo, tmp_path):
    before = sorted(demo[1].rglob("*"))
    done = recipe("merge", "tiny", "--dry-run", "--output", demo[1].parent)
    assert done.returncode == 0, done.stderr
    for word in ("base", "adapter", "changes   11 tensors", "wqkv", "shards", "GB free", "Nothing was written"):
        assert word in done.stdout, done.stdout
    assert sorted(demo[1].rglob("*")) == before
    refused(recipe("merge", "tiny", "--dry-run", "--output", tmp_path), 2, "no adapter", "just adapter")
    refused(recipe("train", "tiny", "--dry-run", "--output", tmp_path), 2, "train has no option --dry-run")


def test_the_demos_merge(demo):
    """Figures in run.json, one line a module kind on the screen, and the cards."""
    manifest = json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))
    entry = manifest["stages"]["merge"]
    assert entry["outputs"]["merged"]["sha256"] == hashing.digest(demo[1] / "merged")
    assert set(entry["figures"]["kinds"]) == set(LINEAR)
    assert re.search(r"wqkv +\d+\.\d% of the weights", demo[0].stdout)
    card = (demo[1] / "merged" / "README.md").read_text(encoding="utf-8")
    assert manifest["stages"]["adapter"]["figures"]["base_sha256"] in card
    assert not list(demo[1].glob(".*part"))


def test_the_bases_licence_stands_on_every_card(demo):
    manifest = json.loads((demo[1] / "run.json").read_text(encoding="utf-8"))
    terms = licence.Licence(**manifest["stages"]["model"]["figures"]["base_licence"])
    assert terms.license == "apache-2.0"
    for place in ("adapter", "merged", "report"):
        assert licence.read_card(demo[1] / place) == terms, place
    assert f"licence {terms.title}" in demo[0].stdout
