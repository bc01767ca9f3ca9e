"""Explains from its log why the trainer ended: what happened and what to do."""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Match, Optional, Tuple, Union

from recipe.core import hardware, measurements
from recipe.core.commands import command_line
from recipe.core.host import gpus
from recipe.core.run import Run
from recipe.core.translation import _, mark, sentences, stored
from recipe.xtuner import step_choice


class TrainingError(RuntimeError):
    """Raised by a hook to end training. Its text is for the user: what is wrong, where, what to do.

    It goes through the trainer's log, so the hook writes it in English (`english`), from messages.
    """


Plan = Dict[str, Any]  # plan.json; {} on machines other than the first
Explain = Callable[[Match[str], Run, Plan], str]

ERROR = re.compile(r"(?m)^(?:\[rank\d+\]: ?)?((?:[\w.]*(?:Error|Exception|Interrupt)\b).*)$")  # ends a traceback

# What a rank logs when another one has left.
PEER_LOST = (
    r"Connection closed by peer[^\n]*|Connection reset by peer[^\n]*|remote process exited or there was a network|"
    r"\bBroken pipe\b|Socket Timeout|Connect timeout|failed to connect to|No route to host"
)
RANK_ENDED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")  # in torchrun's log

# From NVIDIA's catalogue: those that point at the card rather than the program.
XIDS = {
    13: mark("a graphics engine exception, usually a fault of the program"),
    31: mark("a memory page fault, usually a fault of the program"),
    43: mark("the GPU stopped processing"),
    48: mark("a double-bit ECC error: the card's memory is faulty"),
    62: mark("the card's internal controller halted"),
    63: mark("a memory row was remapped"),
    64: mark("a memory row could not be remapped"),
    74: mark("an NVLink error"),
    79: mark("the GPU has fallen off the bus"),
    94: mark("a contained ECC error"),
    95: mark("an uncontained ECC error"),
    119: mark("the GPU's system processor (GSP) does not answer"),
}

UNKNOWN_XID = mark("a fault of the GPU")


def explain(code: int, said: str, run: Run, planned: Plan, oom_killed: bool) -> str:
    """One paragraph on a trainer that wrote `said` and ended with exit code `code` (negative: killed by a signal).

    `oom_killed`: meanwhile the kernel killed a process of this machine or container for memory.
    """
    # torchrun always exits with 1. It names the rank that ended first; the others then fail because of that one.
    rank = RANK_ENDED.search(said)
    if rank:
        code = int(rank[1])
    if code == -signal.SIGKILL:
        return _killed(rank, oom_killed)
    for pattern, explanation in KNOWN:
        found = re.search(pattern, said)
        if found:
            return _(explanation) if isinstance(explanation, str) else explanation(found, run, planned)
    if code < 0:
        return _("The trainer failed: it was killed by {signal}.", signal=signal.Signals(-code).name)
    errors = [line for line in ERROR.findall(said) if "ChildFailedError" not in line]
    if not errors:
        return _("The trainer failed: it ended with exit code {code}.", code=code)
    return _("The trainer failed: {reason}.", reason=errors[-1].strip()[:600].rstrip("."))


def _killed(rank: Optional[Match[str]], oom_killed: bool) -> str:
    if rank and oom_killed:
        return _(
            "Rank {rank} of this machine was killed by the kernel: the machine (or this container's limit) is out of "
            "memory. Loading the 7B model briefly takes 16 GB of RAM on each rank: end other programs, or raise the "
            "limit.",
            rank=rank[2],
        )
    if rank:
        return _("Rank {rank} of this machine was killed from outside (SIGKILL).", rank=rank[2])
    if oom_killed:
        return _(
            "The trainer was killed by the kernel: the machine (or this container's limit) is out of memory. Loading "
            "the 7B model briefly takes 16 GB of RAM: end other programs, or raise the limit."
        )
    return _("The trainer was killed from outside (SIGKILL).")


def _out_of_memory(found: Match[str], run: Run, planned: Plan) -> str:
    """Names other processes on the card, and overrides that fit it by measurement."""
    said = "CUDA out of memory" if "OutOfMemoryError" in found[0] else found[0]
    if not planned:
        return _(
            "An iteration does not fit into this machine's GPU ({error}): lower train.batch_size.",
            error=said,
        )
    problem = _(
        "{batch} × {length} tokens per iteration do not fit into the GPU's memory ({error}).",
        batch=planned["batch_size"],
        length=planned["max_length"],
        error=said,
    )
    cards = gpus()
    if not cards:
        return sentences(problem, _("Try {overrides}.", overrides=smaller_iterations(planned)[0][1]))
    name, memory = cards[0]["name"], cards[0]["memory_mib"]
    others = _memory_of_others()
    if others > 500:
        problem = sentences(
            problem,
            _("Other processes use {mib} MiB of it (nvidia-smi lists them): stop them.", mib=others),
        )
    if run.settings.model.is_made:
        return problem
    for way, tokens, overrides in _smaller_ways(run, planned):
        needed = measurements.memory_mib(tokens, name, way)
        if needed + others < 0.95 * memory:
            fitting = _(
                "These overrides take {needed} MiB by measurement, which fits this {card} ({memory} MiB): {overrides}",
                needed=needed,
                card=name,
                memory=memory,
                overrides=overrides,
            )
            return sentences(problem, fitting)
    none = _("By measurement no setting of the 7B model fits this {card} ({memory} MiB).", card=name, memory=memory)
    return sentences(problem, none)


def _smaller_ways(run: Run, planned: Plan) -> List[Tuple[str, int, str]]:
    """(way, tokens per iteration, overrides), the least change first."""
    way, tokens = planned.get("way", "stock"), planned["batch_size"] * planned["max_length"]
    smaller = smaller_iterations(planned)
    ways = [(way, *one) for one in smaller]
    if way == "kept":
        ways.insert(0, ("fast", tokens, "train.checkpointing=true"))
    if way != "small" and step_choice.has_fast(run.settings):
        least = [("small", fewer, f"train.speed=small {overrides}") for _way, fewer, overrides in ways]
        ways += [("small", tokens, "train.speed=small"), *least]
    return ways


def smaller_iterations(planned: Plan) -> List[Tuple[int, str]]:
    """(tokens per iteration, overrides): first fewer sequences with the effective batch kept by accumulation, then
    shorter ones.
    """
    batch, length = planned["batch_size"], planned["max_length"]
    accumulation = planned["accumulative_counts"] * planned.get("ranks", 1)  # the setting counts all ranks
    found = []
    overrides = ""
    while batch > 1:
        divisor = next(d for d in range(2, batch + 1) if batch % d == 0)
        batch, accumulation = batch // divisor, accumulation * divisor
        overrides = f"train.batch_size={batch} train.accumulative_counts={accumulation}"
        found.append((batch * length, overrides))
    while length > 128:
        length //= 2
        found.append((batch * length, f"{overrides} train.max_length={length}".strip()))
    return found or [(batch * length, "lora.r=8")]


def _memory_of_others() -> int:
    """MiB in use on the first card. The trainer has ended, so they belong to other processes."""
    cards = hardware.visible(hardware.query()[0])
    return hardware.memory_used(cards[0]) if cards else 0


def _no_kernel(found: Match[str], run: Run, planned: Plan) -> str:
    cards = gpus()
    card = (
        _("{card}, capability {capability}", card=cards[0]["name"], capability=cards[0]["capability"])
        if cards
        else _("the card")
    )
    return _(
        "This environment's binaries have no code for {card} ({error}). {doctor} names the variant that serves it: "
        "VARIANT=cu13 for RTX 50 and B200, VARIANT=cu118 for cards before the T4.",
        card=card,
        error=found[0],
        doctor=command_line("doctor"),
    )


def _xid(found: Match[str], run: Run, planned: Plan) -> str:
    code = int(found[1])
    return _(
        "The driver reported Xid {code}: {meaning}. On a rented machine take another instance and copy the output "
        "folder to it.",
        code=code,
        meaning=_(XIDS.get(code, UNKNOWN_XID)),
    )


def _peer_lost(found: Match[str], run: Run, planned: Plan) -> str:
    if run.settings.nodes > 1:
        return _(
            "The connection to another machine ended ({error}): it stopped, failed or lost its network; type the same "
            "command again on all machines.",
            error=found[0].strip(),
        )
    return _(
        "The connection to another rank ended ({error}): it stopped, failed or lost its network; see the first error "
        "in the log.",
        error=found[0].strip(),
    )


def _missing(found: Match[str], run: Run, planned: Plan) -> str:
    return _(
        "The environment lacks something that training on a GPU needs ({error}). `{doctor}` says what it is and how to "
        "get it.",
        error=found[0].rstrip("."),
        doctor=command_line("doctor"),
    )


# The first pattern that the log contains → its explanation. Causes come before what they cause.
KNOWN: List[Tuple[str, Union[str, Explain]]] = [
    (
        rf"(?m)^(?:\[rank\d+\]: ?)?{re.escape(TrainingError.__module__)}\.TrainingError: (.*)$",
        lambda found, *_rest: stored(str(found[1]).strip()),
    ),
    # From PyTorch, the CUDA runtime, bitsandbytes and NCCL; cuBLAS does not start when no memory is left.
    (
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|Error out of memory at line|"
        r"Cuda failure (?:\d+ )?'out of memory'|CU(?:BLAS|DNN)_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)",
        _out_of_memory,
    ),
    (r"no kernel image is available for execution on the device", _no_kernel),
    (
        r"cudaErrorStreamCapture\w+|operation not permitted when stream is capturing|"
        r"operation failed due to a previous error during capture|depend on a capturing blocking stream",
        lambda found, *_rest: _(
            "The fast step could not be recorded as a CUDA graph ({error}). train.speed=stock trains without a "
            "recording; please report it with the log.",
            error=found[0],
        ),
    ),
    (r"NVRM: Xid.*?: (\d+)", _xid),
    (
        r"Failed to initialize NVML[^\n]*|GPU is lost|has fallen off the bus|CUDA error: (?:unspecified launch failure|"
        r"unknown error|all CUDA-capable devices are busy or unavailable|"
        r"uncorrectable ECC error encountered)|No CUDA GPUs are available",
        lambda found, *_rest: _(
            "This process lost its GPU ({error}): the driver or the card restarted, or the container lost its device. "
            "Run nvidia-smi: if it fails too, restart the container or the instance.",
            error=found[0],
        ),
    ),
    (
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms for (?:recv|send)|NCCL timeout",
        mark(
            "The GPUs waited for each other in vain (a collective operation timed out): one rank is slower, hung or "
            "gone. The first error in the log names it; NCCL_DEBUG=INFO logs more."
        ),
    ),
    (
        r"RuntimeError: (\w+) does not have a deterministic implementation",
        lambda found, *_rest: _(
            "PyTorch has no deterministic implementation of {operation} on this GPU. train.deterministic=false trains "
            "without: the same seed then gives nearly, not exactly, the same adapter.",
            operation=found[1],
        ),
    ),
    # PyTorch 2.0's torchrun and newer ones
    (
        r"(?s)_share_and_gather.{,2000}Socket Timeout|waiting for clients\. \d+/\d+ clients joined",
        lambda found, run, _planned: _(
            "Not all {nodes} machines joined within torchrun's 5 minutes. Type the same command on each of them, and "
            "check that they reach MASTER_ADDR at MASTER_PORT.",
            nodes=run.settings.nodes,
        ),
    ),
    (PEER_LOST, _peer_lost),
    (
        r"insufficient shared memory|bus error.*shared memory",
        mark("The shared memory (/dev/shm) is too small: set SHM_SIZE=16g or more."),
    ),
    (r"MissingCUDAException[^\n]*|Failed to find C compiler|CUDA Setup failed despite GPU being available", _missing),
    (
        r"No space left on device|\[enforce fail at inline_container",
        mark("The disk is full (No space left on device). Free some space, or name another folder with --output."),
    ),
]


def xids() -> List[str]:
    """The kernel's messages about GPU faults, where this user may read them (never in a container)."""
    try:
        output = subprocess.run(["dmesg"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in output.decode("utf-8", "replace").splitlines() if "NVRM: Xid" in line]


def oom_kills() -> int:
    """How many processes the kernel has killed for memory, in this container's group or else on the machine."""
    for path in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            found = re.search(r"(?m)^oom_kill (\d+)$", Path(path).read_text(encoding="ascii"))
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
