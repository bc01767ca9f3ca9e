"""Imports the heavy libraries once, without their remarks about a machine that has no GPU."""

import contextlib
import functools
import gc
import io
import logging
import warnings
from typing import Any, Callable, Iterator
from unittest import mock


@functools.lru_cache(maxsize=None)
def load() -> None:
    """Import what plan and training data need: `load_models`, and XTuner's datasets, which take as long again."""
    load_models()
    with _silent():
        import xtuner.dataset  # noqa: F401
    gc.freeze()


@functools.lru_cache(maxsize=None)
def load_models() -> None:
    """Import transformers and PEFT, silent unless the import fails.

    bitsandbytes prints, warns and logs on every import where there is no GPU; loading bars tell nothing for models
    this small and garble logs.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers says it of every model class, whenever the class is first imported, where PyTorch is 2.2 or newer.
    warnings.filterwarnings("ignore", message=".*_register_pytree_node", category=FutureWarning)
    with _silent():
        import torch  # noqa: F401

        with without_compiler():
            import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
        import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    # transformers collects garbage after each shard that it loads, and looks through all that was imported: 0.3 s
    gc.freeze()


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """torch.compile compiles nothing in the block. On import bitsandbytes passes it four of its CPU functions, and
    DeepSpeed some of its mixture of experts, and that alone imports all of Dynamo and Inductor.
    """
    import torch

    with mock.patch.object(torch, "compile", _uncompiled):
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _uncompiled(function: Callable[..., Any], **_more: Any) -> Callable[..., Any]:
    """torch.compile that compiles nothing."""
    return function
