#!/usr/bin/env python3
"""Makes the locks of both variants again, byte for byte (`just lock`).

    requirements.in + overrides.txt  --uv, as of the tutorial's day-->  cu118-pypi.lock
    cu118-pypi.lock + torch-cu118.txt  --------------------------->  cu118.lock
    cu13.in + overrides.txt  --uv, as of TOOLS_DAY-->  cu13.lock
    test.in, reference.in, smollm2.in, more.in, loggers.in, engines.in, axe.in, sbom.in, tools.in
                                       --uv, as of TOOLS_DAY-->  *.lock
    those of them that are compiled or share packages with the environment, for cu13's Python  -->  *-cu13.lock

cu118-pypi.lock has torch from PyPI (a CUDA 11.7 build), for machines that have no NVIDIA GPU or cannot reach PyTorch's
index. cu118.lock differs in torch, torchvision and the nvidia-* packages, most of which PyTorch's +cu118 wheels bundle.
Its pins of these come from torch-cu118.txt, so making it does not need PyTorch's index.

Locks have hashes and no addresses: they work with any index or mirror, and none can change a byte.
The environment variable UV names the uv to use (default: the PATH's).
"""

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List, Tuple

HERE = Path(__file__).resolve().parent
TUTORIAL_DAY = "2024-03-18T00:00:00Z"  # the published run is of 2024-03-17; the bound is exclusive
TOOLS_DAY = "2026-11-20T00:00:00Z"
PYTHON, PYTHON_CU13 = "3.8", "3.12"
PLATFORM = ("--python-platform", "x86_64-manylinux_2_28")
BESIDE = {
    "reference": "3.9",
    "smollm2": "3.9",
    "more": "3.8",
    "loggers": "3.8",
    "engines": "3.10",
    "axe": "3.9",
}  # lock: for which Python
COMPILED = ("more", "loggers")  # of these: for each variant


def compile_lock(uv: str, source: str, target: str, day: str, *more: str) -> None:
    """Resolve `source` into `target` (both names in this folder) as of `day`."""
    command = [uv, "pip", "compile", source, "--output-file", target, "--exclude-newer", day]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-config", "--quiet", "--upgrade"]
    command += ["--custom-compile-command", "just lock", *more]
    subprocess.run(command, cwd=str(HERE), check=True)


def packages(text: str) -> List[Tuple[str, str]]:
    """Split a lock into (name, block) pairs; a block is the pin with its hashes and comments."""
    blocks = re.split(r"(?m)^(?=[a-z0-9])", text)
    return [(re.split(r"[=<>\[ ]", block, maxsplit=1)[0], block) for block in blocks[1:]]


def cu118(pypi: str, torch: str) -> str:
    """The text of cu118.lock, from cu118-pypi.lock's and torch-cu118.txt's."""
    wheels = {name: re.sub(r"(?m)^#.*\n", "", block).rstrip() for name, block in packages(torch)}
    kept = []
    for name, block in packages(pypi):
        if name in wheels:
            comments = [
                line for line in block.splitlines() if line.lstrip().startswith("#") and "#" not in wheels[name]
            ]
            kept.append("\n".join([wheels[name], *comments]) + "\n")
        elif not name.startswith("nvidia-"):
            # Only torch needs the nvidia packages, but they are also named as needs of each other.
            kept.append(re.sub(r"(?m)^    #   nvidia-.*\n", "", block))
    head = re.split(r"(?m)^(?=[a-z0-9])", pypi, maxsplit=1)[0]
    return head + "".join(kept)


def variant_cu118(uv: str) -> None:
    """Make the cu118 variant's locks and its test tools' lock."""
    linux = ("--python-version", PYTHON, *PLATFORM)
    compile_lock(uv, "requirements.in", "cu118-pypi.lock", TUTORIAL_DAY, "--override", "overrides.txt", *linux)
    pypi = (HERE / "cu118-pypi.lock").read_text(encoding="utf-8")
    torch = (HERE / "torch-cu118.txt").read_text(encoding="utf-8")
    (HERE / "cu118.lock").write_text(cu118(pypi, torch), encoding="utf-8")
    compile_lock(uv, "test.in", "test.lock", TOOLS_DAY, "--constraint", "cu118-pypi.lock", *linux)


def variant_cu13(uv: str) -> None:
    """Make the cu13 variant's lock and its test tools' lock."""
    linux = ("--python-version", PYTHON_CU13, *PLATFORM)
    compile_lock(uv, "cu13.in", "cu13.lock", TOOLS_DAY, "--override", "overrides.txt", *linux)
    compile_lock(uv, "test.in", "test-cu13.lock", TOOLS_DAY, "--constraint", "cu13.lock", *linux)


def main(uv: str) -> None:
    with ThreadPoolExecutor(4) as pool:  # uv mostly waits for the index
        made = [pool.submit(variant_cu118, uv), pool.submit(variant_cu13, uv)]
        # Installed outside the environment: only read, or run by a plain Python, so they may need a newer one.
        wanted: List[Tuple[str, ...]] = [(name, "", version, "--no-deps") for name, version in BESIDE.items()]
        wanted += [(name, "-cu13", PYTHON_CU13, "--no-deps") for name in COMPILED]
        wanted += [("sbom", "", PYTHON), ("sbom", "-cu13", PYTHON_CU13)]
        for name, suffix, version, *more in wanted:
            linux = ("--python-version", version, *PLATFORM)
            made.append(pool.submit(compile_lock, uv, f"{name}.in", f"{name}{suffix}.lock", TOOLS_DAY, *more, *linux))
        universal = ("--universal", "--python-version", PYTHON)
        made.append(pool.submit(compile_lock, uv, "tools.in", "tools.lock", TOOLS_DAY, *universal))
    for job in made:
        job.result()


if __name__ == "__main__":
    main(os.environ.get("UV", "uv"))
