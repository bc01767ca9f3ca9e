"""Training on several GPUs and machines: how ranks divide an update, and this machine's place among the nodes.

A rank is one process with one GPU. torchrun starts `gpus` of them on each of `nodes` machines. The same command is
typed on every machine: node 0 runs the stages, the others join its training (stages/train.py).
"""

import math
import os
import re
import socket
from pathlib import Path
from typing import List, NamedTuple, Optional, Tuple

from recipe.core import hardware
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.host import gpus
from recipe.core.settings import Settings
from recipe.core.translation import _

PORT = 29500  # torchrun's default port of node 0
HEARTBEAT = "Iteration {} of {} on this machine"  # hooks.HeartbeatHook says it


class Node(NamedTuple):
    """This machine's rank among the nodes, from 0, and node 0's address."""

    rank: int
    address: str
    port: int


def count(settings: Settings) -> int:
    """How many ranks train together."""
    return settings.gpus * settings.nodes


def divide_update(batch: int, accumulation: int, ranks: int) -> Optional[Tuple[int, int]]:
    """(batch, accumulation) per rank, for updates of batch × accumulation sequences in all. Lowers the accumulation
    first. None if the ranks cannot divide it equally.
    """
    divisor = math.gcd(accumulation, ranks)
    return None if batch % (ranks // divisor) else (batch // (ranks // divisor), accumulation // divisor)


def update_per_rank(settings: Settings, batch: int, accumulation: int) -> Tuple[int, int]:
    """`divide_update` among the recipe's ranks. Raises InputWrong, with the nearest numbers that work."""
    ranks = count(settings)
    found = divide_update(batch, accumulation, ranks)
    if found is None:
        more = math.ceil(batch * accumulation / ranks) * ranks
        raise InputWrong(
            _(
                "{ranks} GPUs cannot share an update of train.batch_size={batch} × train.accumulative_counts="
                "{accumulation} sequences equally. The next size that works is {next_size}: train.batch_size="
                "{next_batch} train.accumulative_counts={ranks}.",
                ranks=ranks,
                batch=batch,
                accumulation=accumulation,
                next_size=more,
                next_batch=more // ranks,
            )
        )
    return found


def node(settings: Settings) -> Optional[Node]:
    """This machine's place, from NODE_RANK, MASTER_ADDR and MASTER_PORT or what Slurm, SkyPilot, an indexed Kubernetes
    job or Kubeflow sets. None for a recipe of one machine. Raises InputWrong if a variable is missing or contradicts
    the recipe.
    """
    if settings.nodes == 1:
        return None
    found = os.environ.get
    nodes = _first("NODES", "SLURM_JOB_NUM_NODES", "SKYPILOT_NUM_NODES", "PET_NNODES")
    if nodes and nodes != str(settings.nodes):
        raise InputWrong(
            _(
                "The recipe has nodes={nodes}, the environment says {found}: make them equal.",
                nodes=settings.nodes,
                found=nodes,
            )
        )
    rank = _first("NODE_RANK", "SLURM_NODEID", "SKYPILOT_NODE_RANK", "PET_NODE_RANK", "JOB_COMPLETION_INDEX")
    addresses = found("SKYPILOT_NODE_IPS", "").split()
    address = _first("MASTER_ADDR", "PET_MASTER_ADDR") or (addresses[0] if addresses else "")
    address = address or _first_of(found("SLURM_JOB_NODELIST", ""))
    port = _first("MASTER_PORT", "PET_MASTER_PORT") or str(PORT)
    if not rank or not address:
        raise InputWrong(
            _(
                "nodes={nodes}: type the command on every machine with NODES={nodes} NODE_RANK=0 (… {last}) "
                "MASTER_ADDR=the first one's address, or have a scheduler do it: {command}, k8s or sky.",
                nodes=settings.nodes,
                last=settings.nodes - 1,
                command=command_line("cluster slurm"),
            )
        )
    if not rank.isdigit() or int(rank) >= settings.nodes or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputWrong(
            _(
                "Node {rank} of {nodes} at port {port}: not a node number from 0, or not a port.",
                rank=rank,
                nodes=settings.nodes,
                port=port,
            )
        )
    return Node(int(rank), address, int(port))


def _first(*names: str) -> str:
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _first_of(nodes: str) -> str:
    """The first name of Slurm's list: "gpu[007-009,12],login" is gpu007."""
    found = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else ""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def launcher(settings: Settings) -> List[str]:
    """The arguments of `python -m` that start the trainer's ranks.

    The rendezvous is static: it needs no name service, and only one port must be known.
    """
    here = node(settings) or Node(0, "127.0.0.1", free_port())
    return [
        "torch.distributed.run", "--nnodes", str(settings.nodes), "--nproc-per-node", str(settings.gpus),
        "--node-rank", str(here.rank), "--master-addr", here.address, "--master-port", str(here.port),
        "-m", "recipe.training.torchrun_entry",
    ]  # fmt: skip


def check_gpu_count(settings: Settings) -> None:
    """Raise HostLacks if this machine has fewer GPUs than the recipe needs."""
    found = gpus()
    if len(found) < settings.gpus:
        rest = len(hardware.query()[0])
        values = dict(wanted=settings.gpus, usable=len(found), fewer=len(found) or 1)
        if rest > len(found):
            raise HostLacks(
                _(
                    "gpus={wanted}: {usable} can be used here (of {all}; CUDA_VISIBLE_DEVICES or MIG hides the rest). "
                    "gpus={fewer} learns the same, in more time.",
                    all=rest,
                    **values,
                )
            )
        raise HostLacks(
            _("gpus={wanted}: {usable} can be used here. gpus={fewer} learns the same, in more time.", **values)
        )


def is_complete(folder: Path) -> bool:
    """Whether DeepSpeed's folder holds the part of every rank that saved it."""
    from recipe.core import tensor_files

    states = sorted(folder.glob("*_model_states.pt"))
    parts = list(folder.glob("*_optim_states.pt"))
    try:
        saved_by = tensor_files.torch_file(states[0])["dp_world_size"]
    except (tensor_files.Damaged, LookupError, TypeError):
        return False
    # ZeRO-3 also writes model states for each rank
    return len(parts) == saved_by and len(states) in (1, saved_by)
