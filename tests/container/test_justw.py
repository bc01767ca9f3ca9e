"""The front door: justw, the justfile, the host runtime, and the versions that the README names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, recipe, refused

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong

JUST = shutil.which("just")


# As a user's shell has it: without the environment's own python, which has no pip.
PATH = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != Path(sys.executable).parent)


def run(words, cwd=ROOT, **environment):
    return subprocess.run(
        [str(word) for word in words],
        cwd=str(cwd),
        env={**os.environ, "PATH": PATH, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The tracked files, somewhere else, under a name with a space and Chinese characters."""
    place = tmp_path_factory.mktemp("clone") / "我的 recipe"
    files = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout.split("\0")
    for name in filter(None, files):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(ROOT / name), str(place / name))
    return place


@pytest.fixture(scope="module")
def dump():
    return json.loads(run([JUST, "--dump", "--dump-format", "json"]).stdout)


def test_justw_fetches_just_and_prints_the_manual(clone, tmp_path):
    done = run(["./justw"], clone, RECIPE_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    for word in ("[start]", "[one stage]", "[develop]", "demo", "train", "test"):
        assert word in done.stdout
    assert "fetching just and uv" in done.stderr
    again = run(["./justw", "--version"], clone, RECIPE_CACHE=str(tmp_path))
    assert (
        again.stdout.strip()
        == "just " + re.search(r"rust-just==(\S+)", (ROOT / "docker/locks/tools.in").read_text())[1]
    )
    assert "fetching" not in again.stderr


def test_just_alone_prints_the_same_manual(clone, tmp_path):
    tools = run(["./justw"], clone, RECIPE_CACHE=str(tmp_path)).stdout
    assert run([JUST], clone).stdout == tools


def test_justw_without_python_says_what_to_install(clone, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "cksum", "cut", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    done = run(["sh", "./justw"], clone, PATH=str(tools), RECIPE_CACHE=str(tmp_path / "c"))
    assert done.returncode == 3
    assert "python3-pip" in done.stderr


def test_justw_with_an_unwritable_cache(clone, tmp_path):
    (tmp_path / "file").write_text("x")
    done = run(["./justw"], clone, RECIPE_CACHE=str(tmp_path / "file" / "cache"))
    assert done.returncode == 3
    assert "RECIPE_CACHE" in done.stderr


def test_justw_behind_a_closed_link_names_the_mirror_setting(clone, tmp_path):
    done = run(
        ["./justw"], clone, RECIPE_CACHE=str(tmp_path), PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="0",
        PIP_NO_CACHE_DIR="1", PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="",
    )  # fmt: skip
    assert done.returncode == 3
    assert "PIP_INDEX_URL" in done.stderr
    assert not list(tmp_path.glob("tools-*"))


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TORCH": "cuda12"}, ["TORCH=cuda12", "cu118", "pypi"]),
        ({"TORCH": "pypi", "PYTHON38": "/usr/bin/false"}, ["PYTHON38=/usr/bin/false", "not a Python 3.8"]),
        ({"VARIANT": "cu12"}, ["VARIANT=cu12", "cu118", "cu13"]),
        ({"VARIANT": "cu13", "PYTHON312": "/usr/bin/false"}, ["PYTHON312=/usr/bin/false", "not a Python 3.12"]),
    ],
)
def test_host_runtime_refuses_clearly(clone, tmp_path, environment, words):
    done = run(["docker/runtime/host", "env"], clone, RECIPE_CACHE=str(tmp_path), **{"VARIANT": "cu118", **environment})
    assert done.returncode == 3
    for word in words:
        assert word in done.stderr


def test_what_python_compiles_is_kept():
    """Also where the machine's own setting forbids it, as many images' does: each start would compile anew."""
    done = run(
        ["docker/runtime/host", "exec", "python", "-c", "import sys; print(sys.dont_write_bytecode)"],
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.stdout == "False\n", done.stderr


def test_host_runtime_chooses_variant_and_torch_by_the_gpu(clone, tmp_path):
    """With an NVIDIA driver the CUDA 11.8 build, else PyPI's, with a card newer than that the variant cu13: seen in the
    names of environment and image.
    """
    cache = tmp_path / "cache"
    driver, wsl, other = tmp_path / "driver", tmp_path / "wsl", tmp_path / "other"
    for file in (driver / "dev/nvidiactl", wsl / "dev/dxg", wsl / "usr/lib/wsl/lib/libcuda.so.1", other / "dev/dxg"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    older, newer = tmp_path / "older", tmp_path / "newer"
    for folder, card in ((older, "H100, 81559, 81000, 580.126.09"), (newer, "B200, 183359, 182640, 580.126.09")):
        folder.mkdir()
        capability = {"older": "9.0", "newer": "10.0"}[folder.name]
        stub = f"#!/bin/sh\necho 0, GPU-0, NVIDIA {card}, Default, Disabled, {capability}\n"
        (folder / "nvidia-smi").write_text(stub, encoding="utf-8")
        (folder / "nvidia-smi").chmod(0o755)
    for flavour, system, path in (
        ("cu118-cu118", driver, older), ("cu118-cu118", wsl, older), ("cu118-pypi", other, newer),
        ("cu13-pypi", driver, newer),
    ):  # fmt: skip
        lock = {"cu118-cu118": "cu118.lock", "cu118-pypi": "cu118-pypi.lock", "cu13-pypi": "cu13.lock"}[flavour]
        total = subprocess.run(["cksum"], input=(ROOT / "docker/locks" / lock).read_bytes(), stdout=subprocess.PIPE)
        made = cache / f"env-{flavour}-{total.stdout.split()[0].decode()}"
        (made / "bin").mkdir(parents=True, exist_ok=True)
        (made / ".ready").touch()
        (made / "bin/python").write_text(f"#!/bin/sh\necho {'3.12' if 'cu13' in flavour else '3.8'}\n")
        (made / "bin/python").chmod(0o755)
        chosen = {"VARIANT": "", "TORCH": "", "DOCTOR_ROOT": str(system), "PATH": f"{path}:{os.environ['PATH']}"}
        done = run(["docker/runtime/host", "env"], clone, RECIPE_CACHE=str(cache), **chosen)
        assert done.stdout.strip() == str(made)
        name = run(["docker/image", "name"], clone, **chosen).stdout
        assert name.startswith(f"internlm2-recipe:{flavour}-")


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


def test_arguments_with_spaces_and_chinese_arrive_whole(clone, tmp_path):
    env = run(["docker/runtime/host", "env"]).stdout.strip()
    cache = str(os.path.dirname(env))
    done = run([JUST, "data", "demo", 'data.files=["data/没有 这个.xlsx"]'], clone, RECIPE_CACHE=cache)
    assert done.returncode == 2
    assert "data/没有 这个.xlsx" in done.stderr


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


def test_a_clone_by_git_for_windows_runs_in_wsl(clone, tmp_path):
    """Line ends come out as they went in, of binary files too."""
    place, target = tmp_path / "source.git", tmp_path / "target"
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "core.autocrlf=true"]
    of_clone = [*git, f"--git-dir={place}", f"--work-tree={clone}"]
    for words in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "all"]):
        assert run([*of_clone, *words], clone).returncode == 0
    assert run([*git, "clone", "-q", "--config", "core.autocrlf=true", place, target]).returncode == 0
    files = run([*of_clone, "ls-files", "-z"], clone).stdout.split("\0")[:-1]
    assert len(files) > 200
    for name in files:
        assert (target / name).read_bytes() == (clone / name).read_bytes(), name


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


def test_what_names_no_folder_is_refused(tmp_path):
    path = tmp_path / "...toml"
    path.write_text((ROOT / "recipe/demo.toml").read_text(encoding="utf-8"), encoding="utf-8")
    refused(recipe("data", path, "--output", tmp_path / "out"), 2, "its name does not begin with a dot")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    refused(recipe("data", "demo", "--output", ""), 2, "--output= names no folder")
    refused(recipe("data", "demo", "data.files=", "--output", tmp_path), 2, "data.files names a file without a name")


def test_commands_in_errors_are_typed_as_this_users(tmp_path):
    words = ("chat", "demo", "--output", tmp_path)
    refused(recipe(*words, RECIPE_COMMAND="./justw"), 2, f": ./justw merge demo --output {tmp_path}")
    refused(recipe(*words), 2, f": just merge demo --output {tmp_path}")


def test_a_users_own_words_in_errors_stay(monkeypatch):
    monkeypatch.setenv("RECIPE_COMMAND", "./justw")
    assert str(InputWrong("data.system holds 'just answer me'")) == "data.system holds 'just answer me'"
    assert command_line("plan", "coach") == "./justw plan coach"


def test_the_next_command_has_the_folder(tmp_path):
    done = recipe("plan", "demo", "train.lr=3e-4", "--output", tmp_path)
    assert f"Next: just train demo --output {tmp_path} train.lr=3e-4\n" in done.stdout


def test_words_that_would_be_taken_for_others_are_refused(demo):
    refused(recipe("chat", "demo", "train.lr＝1e-4", "--output", demo[1].parent), 2, "Type = in its place")
    for stage in ("verify", "watch", "stop"):
        refused(recipe(stage, "demo", "train.lr=1", "--output", demo[1].parent), 2, f"{stage} takes no settings")
    refused(recipe("preview", "demo", "²", "--output", demo[1].parent), 2, "is not a conversation number")
