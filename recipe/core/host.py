"""This machine for the manifest: its GPUs, its memory, versions of the packages that decide a result."""

import functools
import os
import platform
import re
import resource
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional

from recipe.core import hardware

# The packages whose versions decide the result.
PACKAGES = "torch xtuner transformers mmengine peft bitsandbytes deepspeed accelerate datasets tokenizers sentencepiece"


def peak_memory_mb() -> int:
    """Peak resident memory so far of this process or its largest child, in MB (10^6 bytes).

    getrusage counts for this process what its parent held when it started it; the kernel's own mark does not.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        marks = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        marks = None
    own = int(marks.group(1)) if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(max(own, children) * 1024 / 1e6)


@functools.lru_cache(maxsize=None)  # they do not change, and every stage asks for them
def versions() -> Dict[str, Optional[str]]:
    """Versions of the packages that decide the result; None where one is not installed."""
    found: Dict[str, Optional[str]] = {"python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def gpus() -> List[Dict[str, Any]]:
    """The NVIDIA GPUs that CUDA shows to this process, in its order: name, memory in MiB, driver, compute capability
    ("8.6"). [] if none. What nvidia-smi does not report (older drivers, memory shared with the CPU) PyTorch does.
    """
    return [dict(card) for card in _gpus(os.environ.get("PATH"), os.environ.get("CUDA_VISIBLE_DEVICES"))]


@functools.lru_cache(maxsize=None)  # a plan asks 26 times, and nvidia-smi may take a second
def _gpus(*_environment: Optional[str]) -> List[Dict[str, Any]]:
    found = []
    for number, card in enumerate(hardware.visible(hardware.query()[0])):
        capability, total = card.capability, card.total
        if capability is None or total is None:
            import torch

            try:
                properties = torch.cuda.get_device_properties(number)
            except (RuntimeError, AssertionError):  # PyTorch cannot use the card
                if capability is None:
                    continue
                properties = None
            capability = capability or (properties.major, properties.minor)
            if total is None:  # the machine's own, where the card has none
                shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
                total = (properties.total_memory if properties else shared) >> 20
        version = "{}.{}".format(*capability)
        found.append(dict(name=card.name, memory_mib=total, driver=card.driver, capability=version))
    return found


def host() -> Dict[str, Any]:
    """The machine, for the manifest."""
    return {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus(),
        "image": os.environ.get("RECIPE_IMAGE"),
    }
