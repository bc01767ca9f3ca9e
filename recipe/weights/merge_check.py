"""Whether a written folder is right: the base taken away again leaves the adapter, and a fresh process can use it."""

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
from recipe.weights import lora
from recipe.weights.merge_plan import Plan, Target, base_tensors

SAMPLED_ROWS = 8  # of every changed weight, computed again from the written file


def prove(plan: Plan, place: Path) -> Dict[str, Any]:
    """Take the base away again: written − base must be the adapter, in a sample of each weight, computed in fp64.

    Of every changed tensor SAMPLED_ROWS rows, each weight of them within one rounding to its type; of every other one
    64 KB, equal byte for byte. Figures: how many weights and bytes, and `arrived`, the share of the adapter that the
    merged weights carry, ⟨written − base, adapter⟩ / ⟨adapter, adapter⟩: 1 but for rounding. Raises RunFailed.
    """
    import torch

    written = base_tensors(place)
    if set(written) != {target.name for target in plan.targets}:
        raise RunFailed(f"{place} does not hold the weights of {plan.base}.")
    chance = random.Random(plan.key)
    before = torch.get_num_threads()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), initializer=torch.set_num_threads, initargs=(1,)) as workers:
        tasks = [workers.submit(_sample, target, written[target.name], chance.random()) for target in plan.targets]
        found = [task.result() for task in tasks]
    torch.set_num_threads(before)  # the workers had set their own
    checked, same, across, along = (sum(figures) for figures in zip(*found))
    return {"weights_checked": checked, "unchanged_checked": same, "arrived": across / along if along else 0.0}


def _sample(target: Target, new: Stored, where: float) -> Tuple[int, int, float, float]:
    """Check rows of one tensor, `where` (0 to 1) of the way down: (weights if changed, weights if not,
    ⟨written − base, adapter⟩, ⟨adapter, adapter⟩). Raises RunFailed.
    """
    import torch

    source, place = target.source, new.path.parent
    if (new.shape, new.dtype) != (source.shape, source.dtype):
        raise RunFailed(
            f"{place}: {target.name} is {new.shape} {new.dtype}, in the base {source.shape} {source.dtype}."
        )
    rows = source.shape[0] if source.shape else 1
    many = min(rows, SAMPLED_ROWS if target.parts else max(1, (1 << 16) // max(1, source.row_bytes)))
    first = int(where * (rows - many + 1))
    one, other = (tensor.read(first, first + many) for tensor in (source, new))
    if not target.parts:
        if not torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)):
            raise RunFailed(f"{place}: {target.name}, row {first} on, is not the base's, and no adapter changes it.")
        return 0, one.numel(), 0.0, 0.0
    applied = lora.Applied(target.parts, first, first + many, dtype="float64")
    old = one.double()
    exact = applied(old, first, torch.empty_like(old))
    slack = 2.0**-20 * applied.bound(old, first)  # what fp32 may lose of the terms it adds
    low, high = (exact - slack).to(other.dtype), (exact + slack).to(other.dtype)
    wrong = int(((other < low) | (other > high)).sum())
    if wrong:
        raise RunFailed(
            f"{place}: {wrong} of {other.numel():,} weights of {target.name}, row {first} on, are not base + "
            f"adapter to one rounding. This is a fault of ours or of the disk; please report it."
        )
    adapter = exact - old
    return other.numel(), 0, float(((other.double() - old) * adapter).sum()), float((adapter * adapter).sum())


@contextlib.contextmanager
def trial(base: Path) -> Iterator[Callable[[Path, Sequence[str]], Dict[str, Any]]]:
    """A fresh process without a network that will load a folder (trial.py), and the function that lets it.

    It starts at once and rehearses with the base, because importing transformers takes longer than merging 2 GB. The
    function takes the folder and the stop words, and raises RunFailed with what the process said.
    """
    with tempfile.TemporaryDirectory() as modules:  # the model's code must come from the folder, not from a cache
        link = Path(modules) / "merged"  # transformers makes a module's name of the folder's: no dots
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

        def try_out(place: Path, stop_words: Sequence[str]) -> Dict[str, Any]:
            link.symlink_to(place.resolve())
            told, wrong = process.communicate(json.dumps(list(stop_words)) + "\n")
            if process.returncode:
                said = (wrong.strip().splitlines() or ["nothing"])[-1]
                raise RunFailed(f"The merged model in {place} does not load: {said[:600]}. Its shards are kept.")
            return json.loads(told.splitlines()[-1])

        with process:
            try:
                yield try_out
            finally:
                process.kill()
