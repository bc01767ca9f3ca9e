"""Checks a merged folder: merged − base equals the adapter, and a new process can load the model."""

import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Sequence, Tuple

from recipe.core.errors import RunFailed
from recipe.core.tensor_files import Stored
from recipe.core.translation import _
from recipe.weights import lora
from recipe.weights.merge_plan import MergePlan, Target, base_tensors

SAMPLED_ROWS = 8  # recomputed for every changed weight


def check_weights(plan: MergePlan, place: Path) -> Dict[str, Any]:
    """Check a sample of every tensor: written − base must equal the adapter (computed in fp64).

    Checks SAMPLED_ROWS rows of changed tensors to within one rounding, and 64 KB of the others byte for byte. Figures:
    numbers of checked weights, and `arrived`, the share of the adapter found in the merged weights,
    ⟨written − base, adapter⟩ / ⟨adapter, adapter⟩: 1 except for rounding. Raises RunFailed.
    """
    import torch

    written = base_tensors(place)
    if set(written) != {target.name for target in plan.targets}:
        raise RunFailed(_("{folder} does not hold the weights of {base}.", folder=place, base=plan.base))
    generator = random.Random(plan.key)
    before = torch.get_num_threads()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as workers:
        tasks = [
            workers.submit(_check_sample, target, written[target.name], generator.random()) for target in plan.targets
        ]
        found = [task.result() for task in tasks]
    torch.set_num_threads(before)  # the workers had set their own
    checked, unchanged, across, along = (sum(figures) for figures in zip(*found))
    return {"weights_checked": checked, "unchanged_checked": unchanged, "arrived": across / along if along else 0.0}


def _check_sample(target: Target, new: Stored, where: float) -> Tuple[int, int, float, float]:
    """Check rows of one tensor at the relative position `where` (0 to 1). Returns (changed weights checked, unchanged
    weights checked, ⟨written − base, adapter⟩, ⟨adapter, adapter⟩). Raises RunFailed.
    """
    import torch

    source, place = target.source, new.path.parent
    if (new.shape, new.dtype) != (source.shape, source.dtype):
        raise RunFailed(
            _(
                "{folder}: {weight} is {shape} {dtype}, in the base {base_shape} {base_dtype}.",
                folder=place,
                weight=target.name,
                shape=new.shape,
                dtype=new.dtype,
                base_shape=source.shape,
                base_dtype=source.dtype,
            )
        )
    rows = source.shape[0] if source.shape else 1
    many = min(rows, SAMPLED_ROWS if target.parts else max(1, (1 << 16) // max(1, source.row_bytes)))
    first = int(where * (rows - many + 1))
    one, other = (tensor.read(first, first + many) for tensor in (source, new))
    if not target.parts:
        if not torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)):
            raise RunFailed(
                _(
                    "{folder}: {weight}, from row {row}, differs from the base although no adapter changes it.",
                    folder=place,
                    weight=target.name,
                    row=first,
                )
            )
        return 0, one.numel(), 0.0, 0.0
    change = lora.LoadedChange(target.parts, first, first + many, dtype="float64")
    old = one.double()
    exact = change(old, first, torch.empty_like(old))
    slack = 2.0**-20 * change.bound(old, first)  # rounding error of fp32
    low, high = (exact - slack).to(other.dtype), (exact + slack).to(other.dtype)
    wrong = int(((other < low) | (other > high)).sum())
    if wrong:
        raise RunFailed(
            _(
                "{folder}: {wrong} of {total:,} weights of {weight}, from row {row}, differ from base + "
                "adapter by more than one rounding. Check the disk; if it is sound, please report this "
                "bug.",
                folder=place,
                wrong=wrong,
                total=other.numel(),
                weight=target.name,
                row=first,
            )
        )
    adapter = exact - old
    return other.numel(), 0, float(((other.double() - old) * adapter).sum()), float((adapter * adapter).sum())


@contextlib.contextmanager
def check_loads(base: Path) -> Iterator[Callable[[Path, Sequence[str]], Dict[str, Any]]]:
    """Start a process that loads a merged folder offline (load_check.py); yield a function that hands it the folder.

    The process starts early and preloads with the base: importing transformers takes longer than merging 2 GB. The
    function takes the folder and the stop words and raises RunFailed with the process's last line.
    """
    with tempfile.TemporaryDirectory() as modules:  # the model's code must not come from a cache
        link = Path(modules) / "merged"  # transformers derives a module name from the folder's: no dots
        (Path(modules) / "base").symlink_to(base.resolve())
        process = subprocess.Popen(
            [sys.executable, "-m", "recipe.weights.load_check", str(link), str(link.with_name("base"))],
            env={
                **os.environ, "HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
                "PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
            },
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
        )  # fmt: skip

        def check(place: Path, stop_words: Sequence[str]) -> Dict[str, Any]:
            link.symlink_to(place.resolve())
            output, errors = process.communicate(json.dumps(list(stop_words)) + "\n")
            if process.returncode:
                reason = (errors.strip().splitlines() or [_("no output")])[-1]
                raise RunFailed(
                    _(
                        "The merged model in {folder} does not load: {reason}. The shards are kept.",
                        folder=place,
                        reason=reason[:600],
                    )
                )
            return json.loads(output.splitlines()[-1])

        with process:
            try:
                yield check
            finally:
                process.kill()
