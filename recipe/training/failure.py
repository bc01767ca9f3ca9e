"""Why the trainer ended, told from its last words: what happened, what to do."""

import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from recipe.core import hardware, measurements
from recipe.core.host import gpus
from recipe.core.run import Run
from recipe.xtuner import step_choice


class TrainingError(RuntimeError):
    """Training must not go on. The text is one line for the user: what, where, what to do."""


# The exception lines of a traceback, and our hooks' own.
ERROR = re.compile(r"(?m)^(?:\[rank\d+\]: ?)?((?:[\w.]*(?:Error|Exception|Interrupt)\b).*)$")

# What a rank says that another has left.
PEER_LOST = (
    r"Connection closed by peer[^\n]*|Connection reset by peer[^\n]*|remote process exited or there was a network|"
    r"\bBroken pipe\b|Socket Timeout|Connect timeout|failed to connect to|No route to host"
)
RANK_ENDED = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")  # torchrun's word


def explain(code: int, said: str, run: Run, planned: Dict[str, Any], oom_killed: bool) -> str:
    """One paragraph on a trainer that ended with exit code `code` (below 0: by a signal) and wrote `said`.

    `oom_killed`: the kernel ended a process of this machine or container for memory meanwhile.
    """
    # torchrun ends with 1 whatever ended a rank; it names the first, and the others then miss it.
    ended = RANK_ENDED.search(said)
    if ended:
        code = int(ended[1])
    for pattern, tell in KNOWN if code != -signal.SIGKILL else ():
        found = re.search(pattern, said)
        if found:
            return tell(found, run, planned)
    if code < 0:
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            why = (
                "by the kernel: the machine (or this container's limit) is out of memory"
                if oom_killed
                else "from outside"
            )
            who = f"Rank {ended[2]} of this machine" if ended else "The trainer"
            rest = ". Loading the 7B model takes 16 GB of RAM for a moment"
            rest += " on each rank" if ended else ""
            rest += ": end what else runs, or raise the limit"
            return f"{who} was killed {why}{rest if oom_killed else ' (SIGKILL)'}."
        return f"The trainer failed: it was ended by {name}."
    errors = [line for line in ERROR.findall(said) if "ChildFailedError" not in line]
    reason = errors[-1].strip() if errors else f"it ended with exit code {code}"
    return f"The trainer failed: {reason[:600].rstrip('.')}."


def _own(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    """hooks.TrainingError: already a text for the user."""
    return str(found[1]).strip()


def _memory(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    """The GPU is out of memory: what fits by measurement, as overrides; what else holds the card."""
    said = "CUDA out of memory" if "OutOfMemoryError" in found[0] else found[0]
    if not planned:  # on machines other than the first
        return f"This machine's GPU does not hold an iteration ({said}): a smaller train.batch_size takes less."
    batch, length = planned["batch_size"], planned["max_length"]
    what = f"The GPU's memory does not hold {batch} × {length} tokens an iteration ({said})."
    cards = gpus()
    if not cards:
        return f"{what} Smaller: {_smaller(batch, length, planned)[0][1]}."
    card = cards[0]
    others = _memory_of_others()
    held = f" {others} MiB of it are held by other processes (nvidia-smi names them): end them." if others > 500 else ""
    if run.settings.model.source == "tiny":
        return f"{what}{held}"
    way = planned.get("way", "stock")
    smaller = [(way, *one) for one in _smaller(batch, length, planned)]
    if way == "kept":
        smaller.insert(0, ("fast", batch * length, "train.checkpointing=true"))
    if way != "small" and step_choice.has_fast(run.settings):
        smaller.append(("small", batch * length, "train.speed=small"))
        smaller += [("small", tokens, f"train.speed=small {words}") for _, tokens, words in smaller[:-1]]
    for one, tokens, words in smaller:
        needed = measurements.memory_mib(tokens, card["name"], one)
        if needed + others < 0.95 * card["memory_mib"]:
            return (
                f"{what}{held} By measurement this takes {needed} MiB and fits the {card['memory_mib']} MiB of this "
                f"{card['name']}: {words}"
            )
    return (
        f"{what}{held} By measurement no setting of the 7B model fits this {card['name']}'s {card['memory_mib']} MiB."
    )


def _smaller(batch: int, length: int, planned: Dict[str, Any]) -> List[Tuple[int, str]]:
    """Smaller iterations, each (tokens, the overrides that make it): first fewer sequences, the effective batch kept
    by accumulation, then shorter ones.
    """
    ways = []
    accumulation = planned["accumulative_counts"] * planned.get("ranks", 1)  # the recipe counts all ranks'
    while batch > 1:
        divisor = next(d for d in range(2, batch + 1) if batch % d == 0)
        batch, accumulation = batch // divisor, accumulation * divisor
        ways.append((batch * length, f"train.batch_size={batch} train.accumulative_counts={accumulation}"))
    words = ways[-1][1] + " " if ways else ""
    while length > 128:
        length //= 2
        ways.append((batch * length, f"{words}train.max_length={length}"))
    return ways or [(batch * length, "lora.r=8")]


def _memory_of_others() -> int:
    """MiB of the first card that are held now: the trainer has ended, so they are others'."""
    cards = hardware.visible(hardware.query()[0])
    return hardware.memory_used(cards[0]) if cards else 0


def _no_kernel(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    card = next((f"{card['name']}, capability {card['capability']}" for card in gpus()), "the card")
    return (
        f"This environment's binaries have no code for {card} ({found[0]}). just doctor names the variant that serves "
        f"it: VARIANT=cu13 for RTX 50 and B200, VARIANT=cu118 for cards before the T4."
    )


def _not_recorded(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return (
        f"The fast step could not be recorded as a CUDA graph ({found[0]}). train.speed=stock trains without a "
        f"recording; please report it with the log."
    )


def _lost(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return (
        f"The GPU is lost to this process ({found[0]}): the driver or the card restarted, or a container lost its "
        f"device. Look at nvidia-smi: if it fails too, restart the container or the instance."
    )


def _xid(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    code = int(found[1])
    return (
        f"The driver reported Xid {code}: {XIDS.get(code, 'a fault of the GPU')}. On a rented machine take another "
        f"instance and take the output folder along."
    )


def _hung(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return (
        "The GPUs waited for each other in vain (a collective operation timed out): one rank is slower, hung or gone. "
        "The log's first error names it; NCCL_DEBUG=INFO tells more."
    )


def _gone(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    """`planned` is empty on machines other than the first."""
    several = run.settings.nodes > 1
    where = "another machine" if several else "another rank"
    again = "type the same command again on all machines" if several else "see the log's first error"
    return f"The connection to {where} ended ({found[0].strip()}): it was stopped, failed or lost its network; {again}."


def _absent(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return (
        f"Not all {run.settings.nodes} machines came: torchrun waits 5 minutes. Type the same command on each of them, "
        f"and look whether they reach MASTER_ADDR at MASTER_PORT."
    )


def _disk(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return "The disk is full (No space left on device). Free some, or name another folder with --output."


def _shared_memory(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return "The shared memory (/dev/shm) is too small: SHM_SIZE=16g, or more with your engine."


# NVIDIA's Xid catalogue: what means that the card, not the program, is at fault.
XIDS = {
    13: "a graphics engine exception, mostly a program's fault",
    31: "a memory page fault, mostly a program's fault",
    43: "the GPU stopped processing",
    48: "a double-bit ECC error: the card's memory is faulty",
    62: "the card's own controller halted",
    63: "a memory row was remapped",
    64: "a memory row could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus",
    94: "a contained ECC error",
    95: "an uncontained ECC error",
    119: "the GPU's system processor (GSP) does not answer",
}


def _undetermined(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return (
        f"PyTorch has no way to repeat {found[1]} byte for byte on this GPU. train.deterministic=false goes on "
        f"without: the same seed then gives nearly, not exactly, the same adapter."
    )


def _lacking(found: Any, run: Run, planned: Dict[str, Any]) -> str:
    return (
        f"The environment lacks something that training on a GPU takes ({found[0].rstrip('.')}). `just doctor` says "
        f"what it is and how to get it."
    )


KNOWN: List[Tuple[str, Callable[[Any, Run, Dict[str, Any]], str]]] = [
    (r"(?m)^(?:\[rank\d+\]: ?)?recipe\.training\.failure\.TrainingError: (.*)$", _own),
    # PyTorch's own words, the CUDA runtime's, bitsandbytes' and NCCL's; cuBLAS cannot start where no memory is left.
    (
        r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|Error out of memory at line|"
        r"Cuda failure (?:\d+ )?'out of memory'|CU(?:BLAS|DNN)_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)",
        _memory,
    ),
    (r"no kernel image is available for execution on the device", _no_kernel),
    (
        r"cudaErrorStreamCapture\w+|operation not permitted when stream is capturing|"
        r"operation failed due to a previous error during capture|depend on a capturing blocking stream",
        _not_recorded,
    ),
    (r"NVRM: Xid.*?: (\d+)", _xid),
    (
        r"Failed to initialize NVML[^\n]*|GPU is lost|has fallen off the bus|CUDA error: (?:unspecified launch failure|"
        r"unknown error|all CUDA-capable devices are busy or unavailable|"
        r"uncorrectable ECC error encountered)|No CUDA GPUs are available",
        _lost,
    ),
    (r"Watchdog caught collective operation timeout|Timed out waiting \d+ms for (?:recv|send)|NCCL timeout", _hung),
    (r"RuntimeError: (\w+) does not have a deterministic implementation", _undetermined),
    # PyTorch 2.0's torchrun and newer ones'
    (r"(?s)_share_and_gather.{,2000}Socket Timeout|waiting for clients\. \d+/\d+ clients joined", _absent),
    (PEER_LOST, _gone),
    (r"insufficient shared memory|bus error.*shared memory", _shared_memory),
    (r"MissingCUDAException[^\n]*|Failed to find C compiler|CUDA Setup failed despite GPU being available", _lacking),
    (r"No space left on device|\[enforce fail at inline_container", _disk),
]


def xids() -> List[str]:
    """The kernel's lines on faults of a GPU, where this user may read them (in a container nobody may)."""
    try:
        told = subprocess.run(["dmesg"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line for line in told.decode("utf-8", "replace").splitlines() if "NVRM: Xid" in line]


def oom_kills() -> int:
    """How many processes the kernel has ended for memory, in this container's group or on the machine."""
    for path, name in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        try:
            found = re.search(rf"(?m)^{name} (\d+)$", Path(path).read_text(encoding="ascii"))
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
