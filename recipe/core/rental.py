"""How a machine of a rental platform is recognized, for docker/doctor and the page. Python's standard library alone."""

import os
from pathlib import Path
from typing import Dict, Mapping

# A platform's marks: environment variables or files.
MARKS = {
    "AutoDL": ("AutoDLContainerUUID", "AutoDLRegion", "/etc/network_turbo"),
    "Vast.ai": ("VAST_CONTAINERLABEL", "VAST_TCP_PORT_22", "/root/.vast_containerlabel"),
    "RunPod": ("RUNPOD_POD_ID",),
}


def variables(first: Path = Path("/proc/1/environ")) -> Dict[str, str]:
    """The environment, and below it that of the container's first process: a login does not always inherit what the
    platform tells there.
    """
    try:
        pairs = first.read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:  # another user's
        pairs = []
    return {**dict(pair.split("=", 1) for pair in pairs if "=" in pair), **os.environ}


def platform(known: Mapping[str, str], root: Path = Path("/")) -> str:
    """The platform's name by these variables and the files below `root`; "" for any other machine."""
    for name, marks in MARKS.items():
        if any((root / mark[1:]).exists() if mark.startswith("/") else mark in known for mark in marks):
            return name
    return ""
