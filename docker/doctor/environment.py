"""The environment that trains: whether its libraries load, DeepSpeed can be imported, Triton can compile.

Where it is made, on this machine or in our image, selftest.py tries it there. Before that, and before training, what
can be seen: a C compiler.
"""

import os
import shutil
from pathlib import Path

from engines import FLAGS
from lines import CACHE, JUST, ROOT, STATUSES, Line, ask, ok, warning

LOST = "train.speed=fast and small use PyTorch's own operations, which are slower"


def check_environment(host, need, runtime, image, cards):
    """Lines; only where there is a card and a recipe that needs one."""
    if not need.gpu or not cards:
        return []
    if need.stage:  # it meets the rest soon enough by itself
        return _look_for_compiler(host, need) if (need.stage, runtime) == ("train", "host") else []
    if runtime in FLAGS:
        if not image:
            return []  # it gets what it takes when it is built
        words = [runtime, "run", "--rm", "--network", "none", *FLAGS[runtime], image, "docker/runtime/host", "selftest"]
    elif runtime != "host":
        return []
    elif ask(ROOT / "docker" / "runtime" / "host", "made").code != 0:
        return _look_for_compiler(host, need)
    else:
        words = [ROOT / "docker" / "runtime" / "host", "selftest"]
    answer = ask(*words, seconds=300)
    rows = [line.split("\t") for line in answer.text.splitlines()]
    lines = [Line(row[1], row[0], row[2], "".join(row[3:])) for row in rows if len(row) > 2 and row[0] in STATUSES]
    if not lines:
        said = answer.text.splitlines()[-1:] or ["it says nothing"]
        again = f"{JUST} image" if image else "remove the environment's folder, which makes it again"
        return [warning("selftest", f"the environment could not be tried: {said[0][:300]}", again)]
    fast = need.has_fast and need.speed != "stock"
    return [line for line in lines if fast or line.name != "compiler"]


def _look_for_compiler(host, need):
    """For cu13's Triton: without starting it, as the environment may not be made yet."""
    if os.environ.get("VARIANT") != "cu13" or not need.has_fast or need.speed == "stock":
        return []
    debian = "apt-get" in host.install
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        packages = "gcc libc6-dev" if debian else "gcc"
        return [warning("compiler", f"there is no C compiler: {LOST}", f"{host.install} {packages}")]
    made = [str(python) for python in CACHE.glob("env-cu13-*/bin/python")]
    # Without any docker/runtime/host takes a Python that has its headers: pyenv's, or one of uv's.
    python = (made or [os.environ.get("PYTHON312") or shutil.which("python3.12")])[0]
    if python:
        asked = ask(python, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])")
        if asked.code == 0 and not os.path.isfile(Path(asked.text, "Python.h")):
            packages = "python3.12-dev" if debian else "python3.12-devel"
            found = f"{python} has no headers in {asked.text}: {LOST}"
            return [warning("compiler", found, f"{host.install} {packages}")]
    return [ok("compiler", "there is a C compiler")]
