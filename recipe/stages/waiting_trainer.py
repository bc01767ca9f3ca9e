"""A trainer that imports its libraries while the plan is made, then waits for its arguments.

`python -m recipe.stages.waiting_trainer` reads two lines of JSON from stdin: what to prepare for (`expected`), and then
{"arguments": XTuner's, "sent": seconds of CLOCK_BOOTTIME}. It ends if stdin does. Another process compiles the kernels.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Iterator

from recipe.base_model import folder
from recipe.core import distributed
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.inference import warm_up
from recipe.training import entry, process

WORDS = [sys.executable, "-m", "recipe.stages.waiting_trainer"]
COMPILING = [sys.executable, "-m", "recipe.inference.warm_up"]


@contextlib.contextmanager
def started(run: Run) -> Iterator[None]:
    """Within the block, a trainer waits for this run's training, unless it has been trained or needs several ranks."""
    if "train" in run.manifest.get("stages", {}) or distributed.count(run.settings) > 1:
        yield
        return
    compiling = []
    with contextlib.suppress(InputWrong):  # a later stage reports it
        compiling = COMPILING if warm_up.has_kernels(run.settings) else []
    with process.started_early(run, WORDS, expected(run), compiling):
        yield


def expected(run: Run) -> Dict[str, Any]:
    """What to prepare for: the settings, and the base model's folder."""
    return {"settings": run.settings.model_dump(mode="json"), "model": str(folder.folder(run))}


def main() -> None:
    expected = json.loads(sys.stdin.readline() or "{}")
    if not expected:
        return
    warm_up.read_ahead(Path(expected["model"]))
    entry.load()
    line = sys.stdin.readline()
    if not line:
        return
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    given = json.loads(line)
    os.environ[process.STARTED] = str(given["sent"])
    entry.main(given["arguments"])


if __name__ == "__main__":
    main()
