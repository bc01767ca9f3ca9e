"""Commands in Chinese, on the finished run of the tests: no English sentence is left, and what programs read stays."""

import json
import re
import shutil

import pytest

from recipe.cli.main import cli
from recipe.core.translation import use
from support.chinese import english
from support.command import ROOT, runner

COMMANDS = (
    "help", "train --help", "chat --help", "data tiny", "preview tiny 1", "plan tiny", "config tiny", "model tiny",
    "data-report tiny", "adapter tiny", "train tiny", "merge tiny --dry-run", "merge tiny", "eval tiny", "report tiny",
    "verify tiny", "watch tiny", "stop tiny", "diff tiny tiny", "compare tiny tiny", "chat tiny 最近压力很大，怎么办？",
    "export vllm tiny", "export ollama tiny", "export lmdeploy tiny", "export opencompass tiny", "export upload tiny",
    "cluster slurm tiny nodes=2", "cluster k8s tiny",
)  # fmt: skip
# The config's difference from the preset, and commands of other programs
CODE = re.compile(r"(?m)^(?:[-+@].*| .*[=(),\[\]#].*| (?:from|import) .*|  (?:ollama|lmdeploy|vllm) .*)$")


@pytest.fixture(scope="module")
def run(demo, tmp_path_factory):
    """A copy of the shared run: its folder."""
    folder = tmp_path_factory.mktemp("chinese") / "tiny"
    shutil.copytree(str(demo[1]), str(folder))
    return folder


@pytest.fixture(autouse=True)
def chinese(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RECIPE_FETCH", "")  # verify sets it for its process
    with use("zh"):
        yield


@pytest.mark.parametrize("line", COMMANDS)
def test_no_english_is_left(run, line):
    words = line.split(" ")
    more = [] if {"help", "--help", "presets"} & set(words) else ["--output", str(run.parent)]
    done = runner().invoke(cli, [*words, *more])
    said = done.stdout + done.stderr
    assert done.exit_code in (0, 2), (said, done.exception)
    assert re.search("[\u4e00-\u9fff]", said), said
    assert not english(CODE.sub("", said)), said


def test_what_programs_read_is_english(run):
    runner().invoke(cli, ["plan", "tiny", "--output", str(run.parent)])
    for name in ("plan.json", "eval.json", "run.json"):
        found = json.loads((run / name).read_text(encoding="utf-8"))
        assert not re.findall("[\u4e00-\u9fff]+", json.dumps(own(found), ensure_ascii=False)), name


DATA = {
    "samples",
    "settings",
    "trained",
    "questions",
    "columns",
    "unused",
    "sheet",
    "file",
    "answers",
    "stops",
    "load_check",
}


def own(found):
    """Without what holds the user's data, or the model's words."""
    if isinstance(found, dict):
        return {key: own(value) for key, value in found.items() if key not in DATA}
    return [own(one) for one in found] if isinstance(found, list) else found
