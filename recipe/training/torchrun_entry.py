"""The program that torchrun starts for each GPU: XTuner's trainer, which ends when torchrun does.

On the other machines torchrun starts before the run's files are known there, so rank 0 sends the trainer's arguments
through torchrun's own store.
"""

import ctypes
import datetime
import json
import os
import signal
import sys
from typing import List

from recipe.training import entry
from recipe.training.process import PR_SET_PDEATHSIG

STORE_KEY = "recipe/arguments"
STORE_TIMEOUT = datetime.timedelta(minutes=10)  # for rank 0's process, which has already started


def share_arguments(arguments: List[str]) -> List[str]:
    """The trainer's arguments: rank 0's own, which it sends to the other machines."""
    if os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"]:
        return arguments
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=STORE_TIMEOUT)
    if os.environ["RANK"] == "0":
        store.set(STORE_KEY, json.dumps(arguments))
    return list(json.loads(store.get(STORE_KEY)))


def main(arguments: List[str]) -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # torchrun ended just before prctl
        sys.exit(1)
    entry.main(share_arguments(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
