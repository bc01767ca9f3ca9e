"""Job files for several machines: parsed, checked against what the schedulers ask for, and their command run."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, recipe, refused

from recipe import cluster
from recipe.core import distributed, hardware, settings
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.planning import schedule

WORDS = ("nodes=2", "gpus=8", "train.accumulative_counts=16")


def made(target, folder, *words, given="coach"):
    name, found = settings.load(given, [*WORDS, *words])
    run = Run(name, found, ROOT, folder)
    lines = cluster.write(run, target, given, [*WORDS, *words])
    return (run.folder / "cluster" / cluster.TARGETS[target]).read_text(encoding="utf-8"), lines


def checked(kind, text, folder):
    """Against a JSON schema of the fields that the scheduler's own documentation names (tests/schemas)."""
    for document in yaml.safe_load_all(text):
        if document.get("kind") == "ConfigMap":
            continue
        path = folder / "document.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        schema = ROOT / "tests" / "schemas" / f"{kind}.json"
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
    assert cluster.INSIDE in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    with pytest.raises(InputWrong, match=r"cluster\.image"):
        made("k8s", tmp_path)


def test_a_recipe_of_ones_own_goes_along(tmp_path, monkeypatch):
    text = (ROOT / "recipe" / "demo.toml").read_text(encoding="utf-8")
    own = tmp_path / "My_Recipe.toml"
    own.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found, _ = made("k8s", tmp_path, "cluster.image=ghcr.io/me/recipe:1", given="My_Recipe.toml")
    checked("jobset", found, tmp_path)
    first, second = yaml.safe_load_all(found)
    assert first["data"] == {"My_Recipe.toml": text}
    assert second["metadata"]["name"] == "my-recipe"
    assert second["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][
        2
    ].endswith("My_Recipe.toml")


def test_skypilot(tmp_path):
    task = checked("sky", made("sky", tmp_path, given="demo")[0], tmp_path)
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["volumes"] == {cluster.SHARED: "recipe"}
    assert task["file_mounts"] == {"/tmp/recipe-data/data/workplace.xlsx": "./data/workplace.xlsx"}
    for part in ("setup", "run"):
        done = subprocess.run(["shellcheck", "--shell=bash", "-"], input=task[part], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert task["run"].split()[-4:] == ["demo", *WORDS]
    alone = checked("sky", made("sky", tmp_path, "nodes=1", given="demo")[0], tmp_path)
    assert "volumes" not in alone


def test_the_command(tmp_path):
    done = recipe("cluster", "slurm", "coach", *WORDS, "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recipe coach on 2 machine(s), 8 GPU(s) each" in done.stdout
    assert (tmp_path / "coach/cluster/slurm.sh").is_file()
    refused(recipe("cluster", "lsf", "coach", "--output", tmp_path), 2, "no such target", "k8s, sky, slurm")
    refused(recipe("cluster", "sky", "coach", "gpus=3", "--output", tmp_path), 2, "cannot share an update", "counts=3")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"NODE_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1234"}, (1, "here", 1234)),
        ({"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[007-009,12],b"}, (0, "gpu007", 29500)),
        ({"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "a,b[1-2]"}, (1, "a", 29500)),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5"}, (1, "10.0.0.4", 29500)),
        ({"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "m", "PET_MASTER_PORT": "23456"}, (1, "m", 23456)),
        ({"NODES": "3", "NODE_RANK": "1", "MASTER_ADDR": "here"}, "nodes=2, the environment says 3"),
        ({"NODE_RANK": "1"}, "NODES=2 NODE_RANK=0"),
        ({"NODE_RANK": "2", "MASTER_ADDR": "here"}, "Node 2 of 2"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "0"}, "a port"),
    ],
)  # fmt: skip
def test_a_machine_finds_its_place(monkeypatch, told, expected):
    for name in [name for name in os.environ if name.startswith(("NODE", "MASTER", "SLURM", "SKYPILOT", "PET_"))]:
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    found = settings.load("coach", ["nodes=2"])[1]
    if isinstance(expected, str):
        with pytest.raises(InputWrong, match=expected):
            distributed.node(found)
    else:
        assert distributed.node(found) == expected
    assert distributed.node(settings.load("coach")[1]) is None


def test_an_update_is_shared_equally_or_not_at_all():
    for batch in range(1, 9):
        for accumulation in range(1, 17):
            for together in (1, 2, 3, 4, 6, 8):
                found = distributed.divide_update(batch, accumulation, together)
                if found:
                    assert found[0] * found[1] * together == batch * accumulation
                else:
                    assert (batch * accumulation) % together
    with pytest.raises(InputWrong, match=r"train\.batch_size=1 train\.accumulative_counts=8\."):
        distributed.update_per_rank(settings.load("coach", ["gpus=8"])[1], 2, 3)


def test_every_pack_is_seen_by_some_rank():
    """mmengine's sampler on each rank, against what the plan says of packs seen twice."""
    from mmengine.dataset import sampler

    for packs, together in ((33, 2), (33, 8), (8, 8), (5, 4)):
        seen = []
        for rank in range(together):
            made = sampler.DefaultSampler(list(range(packs)), seed=0)
            made.rank, made.world_size = rank, together
            made.num_samples = -(-packs // together)
            made.total_size = made.num_samples * together
            share = list(made)
            assert schedule.iterations_per_epoch(packs, 1, together) == len(share)
            seen += share
        assert set(seen) == set(range(packs))
        assert len(seen) - packs == -packs % together


UUIDS = ("GPU-12ab", "GPU-34cd", "GPU-5", "GPU-6")


@pytest.mark.parametrize(
    ("names", "usable"), [(None, 4), ("", 0), ("0,1", 2), ("2", 1), ("0,7,1", 1), ("GPU-12,GPU-34", 2), ("-1", 0)]
)
def test_cards_that_are_hidden_do_not_count(monkeypatch, names, usable):
    cards = [hardware.Card([str(n), uuid, "x", "1", "1", "1", "", "", "8.0"]) for n, uuid in enumerate(UUIDS)]
    monkeypatch.setattr(hardware, "query", lambda: (cards, None))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if names is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    wanted = settings.load("coach", [f"gpus={usable + 1}"])[1]
    with pytest.raises(HostLacks, match=f"gpus={usable + 1}: {usable} can be used here"):
        distributed.check_gpu_count(wanted)
    if usable:
        distributed.check_gpu_count(settings.load("coach", [f"gpus={usable}"])[1])


def test_four_bit_weights_are_not_cut():
    with pytest.raises(InputWrong, match=r"train\.method=lora with it"):
        settings.load("coach", ["train.deepspeed=deepspeed_zero3"])
    assert settings.load("coach", ["train.deepspeed=deepspeed_zero3", "train.method=lora"])
