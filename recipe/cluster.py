"""Renders a recipe's job files for several machines: Slurm, Kubernetes (JobSet), SkyPilot.

A job runs the same `train` command on every machine. It sets NODES, NODE_RANK, MASTER_ADDR and MASTER_PORT. All
machines share output/ and models/: the first machine writes them, all read them.
"""

import re
import shlex
from pathlib import Path
from typing import Any, Dict, List, Sequence

from recipe.core import distributed
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.names import label
from recipe.core.recipe_files import find_recipe, recipes
from recipe.core.run import Run
from recipe.core.text_width import ljust
from recipe.core.translation import _
from recipe.xtuner import config

TARGETS = {"slurm": "slurm.sh", "k8s": "jobset.yaml", "sky": "task.yaml"}
CONTAINER_ROOT = "/opt/internlm2-recipe"  # the clone in our image (Dockerfile)
DATA_MOUNT = "/tmp/recipe-data"
SHARED_MOUNT = "/recipe-shared"  # SkyPilot: where the volume is mounted


def write(run: Run, target: str, recipe: str, overrides: Sequence[str]) -> List[str]:
    """Write output/<recipe>/cluster/<file>; return the lines to print. Raises InputWrong for settings that cannot run.

    `recipe`: the recipe as it was typed; `overrides`: for the training.
    """
    config.render(run.settings, "model", "dataset", {})  # refuses settings that several GPUs do not support
    arguments = [recipe, *(word for word in overrides if not word.startswith("cluster."))]
    path = run.folder / "cluster" / TARGETS[target]
    path.parent.mkdir(parents=True, exist_ok=True)
    text, next_steps = {"slurm": render_slurm, "k8s": render_kubernetes, "sky": render_skypilot}[target](
        run, arguments, run.relative(path)
    )
    write_text(path, text)
    values = {"file": run.relative(path), "name": run.name, "nodes": run.settings.nodes, "gpus": run.settings.gpus}
    said = (
        _("{file}: recipe {name} on {nodes} machine(s), {gpus} GPU(s) each", **values)
        if run.settings.nodes > 1
        else _("{file}: recipe {name} on {nodes} machine(s), {gpus} GPU(s)", **values)
    )
    return [said, *next_steps]


def _step(what: str, command: str, remark: str = "") -> str:
    """A line that says what to type next."""
    return ljust(what, 8) + " " + command + (f"   {remark}" if remark else "")


def render_slurm(run: Run, arguments: Sequence[str], shown_path: str) -> Any:
    """(batch script, lines to print). Runs in apptainer with cluster.image, else on the host."""
    cluster = run.settings.cluster
    options = {
        "job-name": run.name,
        "nodes": run.settings.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": f"{cluster.gpu}:{run.settings.gpus}" if cluster.gpu else run.settings.gpus,
        "cpus-per-task": cluster.cpus,
        "mem": f"{cluster.memory_gb}G",
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "output": f"{Path(shown_path).parent}/slurm-%j.log",
        "open-mode": "append",
        "signal": "TERM@120",  # before the time limit: training saves and ends
    }
    lines = "".join(f"#SBATCH --{name}={shlex.quote(str(value))}\n" for name, value in options.items() if value)
    image = cluster.image if "://" in cluster.image or cluster.image.endswith(".sif") else f"docker://{cluster.image}"
    runtime = f"RUNTIME=apptainer RECIPE_IMAGE={shlex.quote(image)}" if cluster.image else "RUNTIME=host"
    text = SLURM.format(
        name=run.name, lines=lines, root=shlex.quote(str(run.root)), runtime=runtime, port=distributed.PORT,
        arguments=" ".join(map(shlex.quote, arguments)),
    )  # fmt: skip
    return text, [
        _step(
            _("first:"),
            f"./justw model {shlex.quote(arguments[0])}",
            _("(with a network: downloads environment and model)"),
        ),
        _step(_("submit:"), f"sbatch {shlex.quote(shown_path)}", _("(submit again to resume)")),
    ]


SLURM = """#!/usr/bin/env bash
# Recipe {name}, rendered by `just cluster slurm`. The clone must be on a disk that all nodes share.
{lines}#SBATCH --requeue
set -euo pipefail

cd {root}
export {runtime}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$(({port} + SLURM_JOB_ID % 1000)) # jobs may share a node
export MASTER_ADDR MASTER_PORT NODES="$SLURM_JOB_NUM_NODES" RECIPE_COMMAND=./justw
# One task per node, numbered by SLURM_NODEID. If one fails, all end.
srun --kill-on-bad-exit=1 docker/runtime/run train {arguments}
"""


def render_kubernetes(run: Run, arguments: Sequence[str], shown_path: str) -> Any:
    """(manifest, lines to print): a JobSet with one pod per machine; the user's recipe file becomes a ConfigMap."""
    cluster, name = run.settings.cluster, label(run.name)
    if not cluster.image:
        raise InputWrong(
            _(
                "cluster.image is missing: set cluster.image=registry/name:tag, from `{command}` or a fork's workflow.",
                command=command_line("image push"),
            )
        )
    mounts = [
        {"name": "shared", "mountPath": f"{CONTAINER_ROOT}/{folder}", "subPath": folder}
        for folder in ("output", "models", "data")
    ]
    mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    volumes: List[Dict[str, Any]] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": cluster.volume}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},  # for NCCL
    ]
    documents: List[Dict[str, Any]] = []
    if run.name not in recipes() and not run.source:
        file = f"{run.name if re.fullmatch(r'[-._a-zA-Z0-9]+', run.name) else name}.toml"  # a ConfigMap takes no others
        text = find_recipe(arguments[0]).path.read_text(encoding="utf-8-sig")
        documents.append(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-recipe"}, "data": {file: text}}
        )
        volumes.append({"name": "recipe", "configMap": {"name": f"{name}-recipe"}})
        mounts.append({"name": "recipe", "mountPath": f"{CONTAINER_ROOT}/{file}", "subPath": file})
        arguments = [file, *arguments[1:]]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    environment: List[Dict[str, Any]] = [
        {"name": "NODES", "value": str(run.settings.nodes)},
        {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},  # the first pod, through JobSet's service
        {"name": "MASTER_PORT", "value": str(distributed.PORT)},
    ]
    limits = {"nvidia.com/gpu": run.settings.gpus, "cpu": cluster.cpus, "memory": f"{cluster.memory_gb}Gi"}
    pod: Dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,  # training saves within 30 s
        "containers": [
            {
                "name": "train",
                "image": cluster.image,
                "workingDir": CONTAINER_ROOT,
                "command": ["docker/runtime/run", "train", *arguments],
                "env": environment,
                "resources": {"limits": limits, "requests": dict(limits)},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if cluster.gpu:
        pod["nodeSelector"] = {"nvidia.com/gpu.product": cluster.gpu}
    job = {
        "parallelism": run.settings.nodes,
        "completions": run.settings.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod cannot rejoin: restart all
        "template": {"spec": pod},
    }
    documents.append(
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": {"maxRestarts": 3},
                "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
            },
        }
    )
    head = (
        f"# Recipe {run.name}, rendered by `just cluster k8s`. Needs the JobSet controller, NVIDIA's device plugin,\n"
        f"# and a ReadWriteMany claim {cluster.volume} with the workbook in its folder data.\n"
    )
    return head + _yaml(documents), [
        _step(_("submit:"), f"kubectl apply -f {shlex.quote(shown_path)}"),
        _step(
            _("log:"),
            f"kubectl logs -f job/{name}-node-0",
            _("(after a failure, all pods restart and training resumes)"),
        ),
    ]


def render_skypilot(run: Run, arguments: Sequence[str], shown_path: str) -> Any:
    """(task, lines to print). Several machines share output and models through a volume."""
    cluster, nodes = run.settings.cluster, run.settings.nodes
    task: Dict[str, Any] = {
        "name": label(run.name),
        "workdir": ".",
        "num_nodes": nodes,
        "resources": {
            "accelerators": f"{cluster.gpu or 'H100'}:{run.settings.gpus}",
            "cpus": f"{cluster.cpus}+",
            "memory": f"{cluster.memory_gb}+",
            "disk_size": 256,
        },
    }
    if cluster.image:
        task["resources"]["image_id"] = f"docker:{cluster.image}"
    setup = "RUNTIME=host docker/runtime/host env"
    # Git ignores the user's workbooks, so SkyPilot does not copy them with the clone.
    user_files = [
        file for file in run.settings.data.files if (run.root / file).exists() and not Path(file).is_absolute()
    ]
    if user_files:
        task["file_mounts"] = {f"{DATA_MOUNT}/{file}": f"./{file}" for file in user_files}
        setup = f"cp -r {DATA_MOUNT}/. .\n{setup}"
    if nodes > 1:
        task["volumes"] = {SHARED_MOUNT: cluster.volume}
        folders = (
            "for folder in output models; do mkdir -p {0}/$folder; rm -rf $folder; ln -s {0}/$folder $folder; done"
        )
        setup = folders.format(SHARED_MOUNT) + f"\n{setup}"
    task["setup"] = f"set -e\n{setup}\n"
    # SKYPILOT_NODE_RANK and SKYPILOT_NODE_IPS identify each machine
    task["run"] = (
        f"RUNTIME=host RECIPE_COMMAND=./justw docker/runtime/run train {' '.join(map(shlex.quote, arguments))}\n"
    )
    shared = f" The volume {cluster.volume} is shared by all machines (sky volumes apply)." if nodes > 1 else ""
    head = f"# Recipe {run.name}, rendered by `just cluster sky`; launched from the clone.{shared}\n"
    return head + _yaml([task]), [
        _step(_("launch:"), f"sky launch -c {label(run.name)} {shlex.quote(shown_path)}", _("(sky exec resumes)"))
    ]


def _yaml(documents: Sequence[Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    class Dumper(yaml.SafeDumper):
        """Writes multi-line texts as blocks, without aliases."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))
