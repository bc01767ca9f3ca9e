"""Checks the environment that trains: its libraries load, DeepSpeed can be imported, Triton can compile.

An environment that is made, on this machine or in our image, is tested by selftest.py. Otherwise, and before training,
only the C compiler is checked.
"""

import os
import shutil
from pathlib import Path
from typing import Any, List, Tuple

from engines import FLAGS
from lines import CACHE, JUST, REMOVE, ROOT, STATUSES, Line, ask, ok, warning
from machine import Host
from needs import Need

from recipe.core.hardware import Card
from recipe.core.translation import _, language


def check_environment(host: Host, need: Need, runtime: str, image: str, cards: List[Card]) -> List[Line]:
    """Checks it only where there is a card and the recipe needs one."""
    if not need.gpu or not cards:
        return []
    if need.stage:  # the stage finds the other faults by itself
        return _check_compiler(host, need) if (need.stage, runtime) == ("train", "host") else []
    words: List[Any]
    if runtime in FLAGS:
        if not image:
            return []
        words = [runtime, "run", "--rm", "--network", "none", "--env", f"RECIPE_LANG={language()}", *FLAGS[runtime]]
        words += [image, "docker/runtime/host", "selftest"]
    elif runtime != "host":
        return []
    elif ask(ROOT / "docker" / "runtime" / "host", "made").code != 0:
        return _check_compiler(host, need)
    else:
        words = [ROOT / "docker" / "runtime" / "host", "selftest"]
    answer = ask(*words, seconds=300)
    rows = [line.split("\t") for line in answer.text.splitlines()]
    lines = [Line(row[1], row[0], row[2], "".join(row[3:])) for row in rows if len(row) > 2 and row[0] in STATUSES]
    if not lines:
        error = (answer.text.splitlines()[-1:] or [_("no message")])[0][:300]
        found = _("the environment could not be tried: {error}", error=error)
        return [warning("selftest", found, f"{JUST} image" if image else _(REMOVE))]
    fast = need.has_fast and need.speed != "stock"
    return [line for line in lines if fast or line.name != "compiler"]


def compiler_fault(variant: str) -> Tuple[str, str]:
    """(what Triton needs to compile on this machine and does not find, its package on Debian); ("", "") if nothing.

    Only cu13 compiles. The compiler is not tried, as the environment may not be made yet.
    """
    if variant != "cu13":
        return "", ""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return _("there is no C compiler"), "gcc libc6-dev"
    made = next(CACHE.glob("env-cu13-*/bin/python"), None)
    # If there is none, runtime/host takes a Python that has its headers: pyenv's, or one of uv's.
    python = made or os.environ.get("PYTHON312") or shutil.which("python3.12")
    if python:
        answer = ask(python, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])")
        if answer.code == 0 and not os.path.isfile(Path(answer.text, "Python.h")):
            return _("{python} has no headers in {folder}", python=python, folder=answer.text), "python3.12-dev"
    return "", ""


def _check_compiler(host: Host, need: Need) -> List[Line]:
    variant = os.environ.get("VARIANT", "")
    if variant != "cu13" or not need.has_fast or need.speed == "stock":
        return []
    fault, package = compiler_fault(variant)
    if not fault:
        return [ok("compiler", _("there is a C compiler"))]
    if "apt-get" not in host.install:
        package = package.replace(" libc6-dev", "").replace("-dev", "-devel")
    slower = _("{fault}: train.speed=fast and small use PyTorch's own operations, which are slower", fault=fault)
    return [warning("compiler", slower, f"{host.install} {package}")]
