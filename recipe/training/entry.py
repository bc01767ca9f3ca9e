"""Starts XTuner's trainer in this process, a third faster than `python -m xtuner.tools.train`."""

import importlib
import runpy
import sys
from typing import List

from recipe.core import imports

# Some of its modules search the source of every calling frame. That takes eight seconds below the nested imports of
# XTuner, mmengine and DeepSpeed, and nothing here.
SLOW_IMPORT = "torch.distributed.elastic.agent.server"
TRAINER = "xtuner.tools.train"


def main(arguments: List[str]) -> None:
    """Run `xtuner train` with these arguments."""
    load()
    sys.argv[1:] = arguments
    runpy.run_module(TRAINER, run_name="__main__", alter_sys=True)


def load() -> None:
    """Import XTuner's trainer and what it imports."""
    importlib.import_module(SLOW_IMPORT)
    with imports.without_compiler():
        importlib.import_module(TRAINER)
    del sys.modules[TRAINER]  # runpy makes it anew, as the main module


if __name__ == "__main__":
    main(sys.argv[1:])
