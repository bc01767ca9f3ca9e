"""Commands of this clone, as a user's shell runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.command import ROOT

JUST = shutil.which("just")


# As a user's shell has it: without the environment's own python, which has no pip.
PATH = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != Path(sys.executable).parent)


def run(words, cwd=ROOT, **environment):
    return subprocess.run(
        [str(word) for word in words],
        cwd=str(cwd),
        env={**os.environ, "PATH": PATH, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
