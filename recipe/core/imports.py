"""Imports the heavy libraries once, without their remarks about a machine that has no GPU."""

import contextlib
import functools
import gc
import io
import logging
import warnings
from typing import Any, Callable
from unittest import mock


@functools.lru_cache(maxsize=None)
def load() -> None:
    """Import transformers, PEFT and XTuner (about 5 s the first time), silent unless the import fails.

    bitsandbytes prints, warns and logs on every import where there is no GPU; loading bars tell nothing for models
    this small and garble logs.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers says it of every model class, whenever the class is first imported, where PyTorch is 2.2 or newer.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node", category=FutureWarning)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch

        # bitsandbytes passes four of its CPU functions to torch.compile, which imports all of Dynamo and Inductor.
        with mock.patch.object(torch, "compile", _uncompiled):
            import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
        import transformers
        import xtuner.dataset  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # transformers collects garbage after each shard that it loads, and looks through all that was imported: 0.3 s
    gc.freeze()


def _uncompiled(function: Callable[..., Any], **_more: Any) -> Callable[..., Any]:
    """torch.compile that compiles nothing."""
    return function
