"""Job files for several machines: parsed, checked against what the schedulers ask for, and their command run."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from recipe import cluster
from recipe.core import settings
from recipe.core.errors import InputWrong
from recipe.core.names import label
from recipe.core.run import Run
from support.command import ROOT, recipe, refused

WORDS = ("nodes=2", "gpus=8", "train.accumulative_counts=16")


def made(target, folder, *words, given="coach"):
    name, found = settings.load(given, [*WORDS, *words])
    run = Run(name, found, ROOT, folder)
    lines = cluster.write(run, target, given, [*WORDS, *words])
    return (run.folder / "cluster" / cluster.TARGETS[target]).read_text(encoding="utf-8"), lines


def checked(kind, text, folder):
    """Against a JSON schema of the fields that the scheduler's own documentation names (tests/support/schemas)."""
    for document in yaml.safe_load_all(text):
        if document.get("kind") == "ConfigMap":
            continue
        path = folder / "document.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        schema = ROOT / "tests" / "support" / "schemas" / f"{kind}.json"
        done = subprocess.run(
            [sys.executable, "-m", "check_jsonschema", "--schemafile", str(schema), str(path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return document


def test_slurm(tmp_path):
    """bash reads it, shellcheck finds nothing, and with stand-ins for Slurm's two programs each node gets its place."""
    text, lines = made("slurm", tmp_path, "cluster.partition=gpu", "cluster.gpu=h100", "data.system=你是 'a' $b")
    path = tmp_path / "coach" / "cluster" / "slurm.sh"
    # SC2016: that nothing is expanded in single quotes is meant
    command = ["shellcheck", "--shell=bash", "--exclude=SC2016", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    asked = dict(line[len("#SBATCH --") :].partition("=")[::2] for line in text.splitlines() if "#SBATCH" in line)
    assert asked["nodes"] == "2"
    assert asked["ntasks-per-node"] == "1"
    assert asked["gpus-per-node"] == "h100:8"
    assert asked["partition"] == "gpu"
    assert "account" not in asked
    assert "export RUNTIME=host\n" in text
    apart, _ = made("slurm", tmp_path / "apart", "cluster.image=ghcr.io/me/recipe:1")
    assert "export RUNTIME=apptainer RECIPE_IMAGE=docker://ghcr.io/me/recipe:1\n" in apart
    assert any(f"sbatch {path}" in line for line in lines)
    programs = {
        "scontrol": "echo gpu07; sleep 0.2; echo gpu08",  # it must not meet a closed pipe
        # one task a node, as srun starts them; instead of training it says what it was told
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; python "$TOLD" "$@"; done',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "told.py").write_text(
        "import sys\nfrom recipe.core import distributed as ranks, settings\nprint(sys.argv[1:3])\n"
        "found = settings.load(sys.argv[3], sys.argv[4:])[1]\nprint(tuple(ranks.node(found)), found.data.system)\n"
    )
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told.py"), "PYTHONPATH": str(ROOT)}
    more = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "4012"}
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, env={**os.environ, **told, **more})
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "['docker/runtime/run', 'train']"
    assert said[1] == "(0, 'gpu07', 29512) 你是 'a' $b"
    assert said[3] == "(1, 'gpu07', 29512) 你是 'a' $b"


def test_kubernetes(tmp_path):
    document = checked("jobset", made("k8s", tmp_path, "cluster.image=ghcr.io/me/recipe:1")[0], tmp_path)
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    assert job["parallelism"] == job["completions"] == 2
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert container["command"][:3] == ["docker/runtime/run", "train", "coach"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert variables["MASTER_ADDR"] == "coach-node-0-0.coach"
    assert cluster.CONTAINER_ROOT in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    with pytest.raises(InputWrong, match=r"cluster\.image"):
        made("k8s", tmp_path)


def test_a_recipe_of_ones_own_goes_along(tmp_path, monkeypatch):
    text = (ROOT / "recipe" / "tiny.toml").read_text(encoding="utf-8")
    own = tmp_path / "My_Recipe.toml"
    own.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found, _ = made("k8s", tmp_path, "cluster.image=ghcr.io/me/recipe:1", given="My_Recipe.toml")
    checked("jobset", found, tmp_path)
    first, second = yaml.safe_load_all(found)
    assert first["data"] == {"My_Recipe.toml": text}
    assert second["metadata"]["name"] == label("My_Recipe") != label("my-recipe")
    assert second["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][
        2
    ].endswith("My_Recipe.toml")


def test_skypilot(tmp_path):
    task = checked("sky", made("sky", tmp_path, given="tiny")[0], tmp_path)
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["volumes"] == {cluster.SHARED_MOUNT: "recipe"}
    assert task["file_mounts"] == {"/tmp/recipe-data/data/workplace.xlsx": "./data/workplace.xlsx"}
    for part in ("setup", "run"):
        done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=task[part], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert task["run"].split()[-4:] == ["tiny", *WORDS]
    alone = checked("sky", made("sky", tmp_path, "nodes=1", given="tiny")[0], tmp_path)
    assert "volumes" not in alone


def test_the_command(tmp_path):
    done = recipe("cluster", "slurm", "coach", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recipe coach on 2 machine(s), 8 GPU(s) each" in done.stdout
    assert (tmp_path / "coach/cluster/slurm.sh").is_file()
    refused(recipe("cluster", "lsf", "coach", "--output", tmp_path), 2, "no such target", "k8s, sky, slurm")
    refused(recipe("cluster", "sky", "coach", "gpus=3", "--output", tmp_path), 2, "cannot share an update", "counts=3")


def test_a_data_file_that_is_named(tmp_path):
    """Its path is quoted once, and the prompt goes along: no folder of that machine remembers it."""
    book = tmp_path / "我的 数据.xlsx"
    book.touch()
    words = [book, *WORDS, "system=你好。", "cluster.image=me/recipe:1", "--output", tmp_path / "out"]
    for target in ("slurm", "k8s"):
        done = recipe("cluster", target, *words)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "out/我的 数据/cluster"
    [document] = yaml.safe_load_all((folder / "jobset.yaml").read_text(encoding="utf-8"))
    pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    wanted = ["docker/runtime/run", "train", str(book), *WORDS, "data.system=你好。"]
    assert pod["containers"][0]["command"] == wanted
    line = (folder / "slurm.sh").read_text(encoding="utf-8").splitlines()[-1]
    assert shlex.split(line)[2:] == wanted


@pytest.mark.parametrize("name", ["客服.toml", "my recipe.toml", "it's.toml"])
@pytest.mark.parametrize("target", ["slurm", "sky", "k8s"])
def test_a_path_is_quoted_once(tmp_path, name, target):
    folder = tmp_path / "路 径"
    folder.mkdir()
    own = folder / name
    own.write_text((ROOT / "recipe" / "tiny.toml").read_text(encoding="utf-8"), encoding="utf-8")
    done = recipe("cluster", target, own, "cluster.image=ghcr.io/me/recipe:1", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    text = next((tmp_path / "out").rglob(cluster.TARGETS[target])).read_text(encoding="utf-8")
    if target == "k8s":
        first, second = yaml.safe_load_all(text)
        command = second["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0][
            "command"
        ]
        assert command[2] in first["data"]
        assert re.fullmatch(r"[-._a-zA-Z0-9]+", command[2])
        return
    line = text if target == "slurm" else yaml.safe_load(text)["run"]
    words = shlex.split(next(one for one in line.splitlines() if "docker/runtime/run train" in one))
    assert words[words.index("train") + 1] == str(own)
