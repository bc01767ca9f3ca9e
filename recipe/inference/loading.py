"""Which model of a run is loaded, in which type, and whether it fits."""

import contextlib
import json
import re
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Tuple

from recipe.base_model import folder
from recipe.core import hardware
from recipe.core.errors import HostLacks, InputWrong, RecipeError
from recipe.core.run import Run
from recipe.xtuner import preset_facts

ROOM = 2e9  # bytes beside the weights: the cache of a batch of answers, one batch's logits, the libraries

FOUR_BITS = 0.35  # of the bytes in 16 bits: the embeddings, the norms and the scales are not quantized


class Found(NamedTuple):
    """A model to load: a folder, or with `adapter` the base's. `what`: base, adapter or merged. `eyes`: the visual
    encoder's folder and LLaVA's parts, where it sees.
    """

    what: str
    place: Path
    adapter: Optional[Path] = None
    eyes: Optional[Tuple[Path, Path]] = None


def find(run: Run, which: str = "") -> Found:
    """The run's base, adapter or merged model; by default the tuned one: merged, if it is of the adapter that is there,
    else the adapter on its base. Raises InputWrong for one that is not there.
    """
    stages = run.manifest.get("stages", {})
    merged, adapter = ((stages.get(name) or {}).get("finished", "") for name in ("merge", "adapter"))
    if which == "base":
        return Found("base", folder.folder(run))
    eyes = (folder.folder(folder.visual(run)), run.adapter) if preset_facts.pictures(run.settings) else None
    full = preset_facts.method(run.settings) == "full"
    if full and which == "adapter":
        raise InputWrong(f"{run.name} is fully fine-tuned: it has no adapter, but a merged model.")
    if which == "merged" or full or (not which and run.merged.is_dir() and merged >= adapter):
        found = Found("merged", run.merged, eyes=eyes)
    elif preset_facts.method(run.settings) == "projector":  # the language model is the base's
        found = Found("adapter", folder.folder(run), eyes=eyes)
    else:
        found = Found("adapter", folder.folder(run), run.peft, eyes)
    if not (found.adapter or (run.adapter if found.what == "adapter" else found.place)).is_dir():
        raise InputWrong(
            f"There is no {found.what} model in {run.shown(run.folder)} yet: just "
            f"{'merge' if found.what == 'merged' else 'train'} {run.called} makes it."
        )
    return found


@contextlib.contextmanager
def loading(run: Run, found: Found) -> Iterator[None]:
    """What a damaged folder makes the libraries raise, as one clear error. What the machine lacks goes through."""
    try:
        yield
    except (RecipeError, MemoryError, ImportError):
        raise
    except Exception as error:
        if re.search(r"memory|CUDA|kernel image|alloc", str(error)):
            raise
        where, again = run.shown(found.place), f"just merge {run.called} makes it anew"
        if found.what != "merged":
            again = f"just model {run.called} --verify says which"
        if found.what == "adapter":
            where = f"{run.shown(run.peft)}, or of its base {where},"
            again = f"just adapter {run.called} makes the adapter anew, {again} of the base"
        raise HostLacks(
            f"The {found.what} model cannot be loaded: a file of {where} is damaged or lacking "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}). {again}."
        )


def nbytes(place: Path) -> int:
    """Bytes of a model folder's weights."""
    for pattern in ("*.safetensors", "*.bin"):
        sizes = [path.stat().st_size for path in place.glob(pattern)]
        if sizes:
            return sum(sizes)
    return 0


def precision(place: Path) -> str:
    """How a model folder fits this machine now: fp32, bf16, fp16, or nf4. Raises HostLacks if it does not."""
    import torch

    stored = json.loads((place / "config.json").read_text(encoding="utf-8")).get("torch_dtype", "float32")
    needed = nbytes(place)
    if not torch.cuda.is_available():
        wide = needed if stored == "float32" else 2 * needed
        return "fp32" if wide + ROOM < _memory() or stored == "float32" else "bf16"
    free = torch.cuda.mem_get_info()[0]
    if needed + ROOM <= free:
        if stored == "float32":
            return "fp32"
        return "bf16" if hardware.has_bf16() else "fp16"
    if FOUR_BITS * needed + ROOM <= free:
        return "nf4"
    least = (FOUR_BITS * needed + ROOM) / 1e9
    raise HostLacks(
        f"The model takes {least:.1f} GB of GPU memory even in 4 bits, and {free / 1e9:.1f} GB are free. End what else "
        f"uses the card (nvidia-smi), or take the CPU: CUDA_VISIBLE_DEVICES="
    )


def _memory() -> float:
    """Bytes of RAM that can be had now."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    return 1024 * int(found.group(1)) if found else float("inf")
