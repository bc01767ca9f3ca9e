"""The repository's folder, and the recipe's commands as the tests start them."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]


# The lock of the environment in which the tests run, by PyPI's build: PyTorch's own differs in torch alone.
LOCK = ROOT / "docker" / "locks" / ("cu13.lock" if sys.version_info >= (3, 12) else "cu118-pypi.lock")


def recipe(*words, cwd=ROOT, timeout=600, **more):
    """`python -m recipe …` in its own process, as `just` starts it; returns the finished process."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # what docker/runtime/host puts beside, too
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}
    return subprocess.run(
        [sys.executable, "-m", "recipe", *map(str, words)],
        cwd=str(cwd),
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def runner():
    """Of commands in this process; standard error apart, which click does by itself since 8.2."""
    told = "mix_stderr" in inspect.signature(CliRunner).parameters
    return CliRunner(mix_stderr=False) if told else CliRunner()


def refused(done, code, *words):
    """Assert that a command ended with `code` and one clear paragraph that holds `words`."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
