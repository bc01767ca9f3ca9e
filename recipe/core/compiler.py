"""Whether Triton can compile on this machine. It builds a C library, its launcher, when a kernel first runs."""

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from recipe.core.translation import _, mark, stored


@functools.lru_cache(maxsize=None)
def fault() -> str:
    """Why it cannot; "" where it can, and where nothing asks it to: without liger-kernel (cu118) no step uses Triton.

    English: `stored` translates it. Triton takes the compiler that CC names, else gcc, else clang. It is tried: gcc
    without libc6-dev is no use.
    """
    if find_spec("liger_kernel") is None:
        return ""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return mark("there is no C compiler")
    headers = sysconfig.get_paths()["include"]
    if not os.path.isfile(os.path.join(headers, "Python.h")):
        return mark("Python's headers are not in {folder}").format(folder=headers)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text("#include <Python.h>\n#include <dlfcn.h>\n", encoding="utf-8")
        words = [compiler, str(source), "-shared", "-fPIC", f"-I{headers}", "-o", str(Path(folder, "try.so"))]
        try:
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except OSError as error:
            return mark("{compiler} does not start: {error}").format(compiler=compiler, error=error.strerror)
    if done.returncode:
        said = [line for line in done.stdout.decode("utf-8", "replace").splitlines() if "error" in line]
        reason = said[0] if said else mark("it does not say why")
        return mark("{compiler} fails to compile: {error}").format(compiler=compiler, error=reason)
    return ""


def remedy() -> str:
    """What brings what is missing, in Debian's words."""
    missing = f"python{sysconfig.get_python_version()}-dev" if "headers are not" in fault() else "gcc libc6-dev"
    return f"apt-get install {missing}"


def notice() -> str:
    """The same as a sentence for the user; "" where nothing is missing."""
    return fault() and _(
        "Triton cannot compile here ({fault}), so the fast step uses PyTorch's own operations, which are slower. "
        "To fix this: {command}.",
        fault=stored(fault()), command=remedy(),
    )  # fmt: skip
