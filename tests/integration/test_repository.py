"""The justfile, the workflows, and the versions that the README names."""

import json
import re
import subprocess

import pytest

from support.command import ROOT
from support.justw import JUST, run


@pytest.fixture(scope="module")
def dump():
    return json.loads(run([JUST, "--dump", "--dump-format", "json"]).stdout)


def test_every_recipe_has_a_doc_line_a_group_and_a_short_body(dump):
    for name, entry in dump["recipes"].items():
        if name == "manual":
            continue
        assert entry["doc"], name
        assert any("group" in attribute for attribute in entry["attributes"]), name
        assert len(entry["body"]) <= 4, name


def test_justfile_calls_only_stages_that_exist(dump):
    from recipe.cli.main import COMMANDS

    text = (ROOT / "justfile").read_text(encoding="utf-8")
    called = set(re.findall(r"docker/runtime/run (?:--doctor )?([\w-]+)", text))
    assert called == {"help", *COMMANDS} - {"doctor", "image"}


def test_readme_names_recipes_and_versions_that_exist(dump):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:\./justw|`just) ([a-z]+)", text)):
        assert name in dump["recipes"], name
    names = {
        shown: shown.lower() for shown in ("XTuner", "transformers", "DeepSpeed", "bitsandbytes", "PEFT", "mmengine")
    }
    names.update(PyTorch="torch", ModelScope="modelscope")
    # A line that speaks of cu13 has cu13's versions.
    for lock, lines in (("cu118-pypi", r"(?m)^(?!.*`cu13`).*$"), ("cu13", r"(?m)^.*`cu13`.*$")):
        pins = dict(
            re.findall(r"(?m)^([a-z0-9-]+)==(\S+)", (ROOT / f"docker/locks/{lock}.lock").read_text(encoding="utf-8"))
        )
        part = "\n".join(re.findall(lines, text))
        found = 0
        for shown, package in names.items():
            for version in re.findall(rf"{shown} v?(\d+\.\d+\.\d+)", part):
                assert version == pins[package], (lock, shown)
                found += 1
        assert found >= len(names), lock


def test_workflows_take_actions_that_run_on_node_24():
    """Pinned by commit, of majors that do; none that another superseded, and a runner that lives on."""
    majors = {"actions/checkout": 5, "actions/upload-artifact": 6, "actions/attest": 4}
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        used = re.findall(r"uses: (\S+)@[0-9a-f]{40} # v(\d+)\.\d+\.\d+\n", text)
        assert used
        assert len(used) == text.count("uses: ")
        assert all(int(major) >= majors[name] for name, major in used), (path.name, used)
        assert set(re.findall(r"runs-on: (.*)", text)) <= {"ubuntu-24.04", "[self-hosted, gpu]"}, path.name


def test_ci_calls_the_readmes_test_command():
    assert "./justw test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert "./justw test" in (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        lines = re.findall(r"(?m)^(?:\s+(?:- )?run: |          )([^|\s].*)$", path.read_text(encoding="utf-8"))
        assert any(line.startswith("./justw ") for line in lines)
        for line in lines:  # what the recipes cannot do: make room, log in, hand on a digest
            words = r"\./justw [a-z]+|sudo rm |printf .* docker login |echo |[\w-]+: "
            assert re.match(words, line), (path.name, line)


def test_no_pipe_is_closed_before_its_writer_ends():
    """Under pipefail `… | head -n 1` fails now and then: with 141, and without a word."""
    listed = ["git", "grep", "-lI", "pipefail", "--", ":!tests/*.py"]
    files = subprocess.run(listed, cwd=str(ROOT), capture_output=True, text=True).stdout.split()
    assert {"docker/image", "recipe/cluster.py"} <= set(files)
    for name in files:
        script = (ROOT / name).read_text(encoding="utf-8")
        assert not re.findall(r"(?<!\|)\| *(?:head|grep +(?:-\w+ +)*-\w*[qm]).*", script), name


def test_python_sources_parse_on_every_supported_version():
    """Syntax of Python 3.8, which the environment runs: newer versions read it too."""
    for path in [*ROOT.glob("recipe/**/*.py"), *ROOT.glob("docker/**/*.py")]:
        compile(path.read_text(encoding="utf-8"), str(path), "exec")
