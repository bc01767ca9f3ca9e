"""Chooses which model of a run to load, and in which precision."""

import contextlib
import json
import re
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Tuple

from recipe.base_model import folder, visual_encoder
from recipe.core import hardware
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong, RecipeError
from recipe.core.run import Run
from recipe.xtuner import preset_facts

OVERHEAD = 2e9  # bytes besides the weights: key/value cache, logits of a batch, libraries

NF4_SHARE = 0.35  # of the bytes in 16 bits; embeddings, norms and scales are not quantized


class ModelFiles(NamedTuple):
    """A model to load. `kind`: base, adapter or merged. `folder`: the model's, or the base's under an adapter.
    `vision`: folders of the visual encoder and of LLaVA's other parts, for a model that reads images.
    """

    kind: str
    folder: Path
    adapter: Optional[Path] = None
    vision: Optional[Tuple[Path, Path]] = None


def find_model(run: Run, which: str = "") -> ModelFiles:
    """The run's base, adapter or merged model. The default is the merged model if it belongs to the current adapter,
    else the adapter. Raises InputWrong if it does not exist.
    """
    stages = run.manifest.get("stages", {})
    merged, adapter = ((stages.get(name) or {}).get("finished", "") for name in ("merge", "adapter"))
    if which == "base":
        return ModelFiles("base", folder.folder(run))
    vision = (visual_encoder.encoder_folder(run), run.adapter) if preset_facts.has_images(run.settings) else None
    full = preset_facts.method(run.settings) == "full"
    if full and which == "adapter":
        raise InputWrong(f"{run.name} is fully fine-tuned: it has a merged model, but no adapter.")
    if which == "merged" or full or (not which and run.merged.is_dir() and merged >= adapter):
        found = ModelFiles("merged", run.merged, vision=vision)
    elif preset_facts.method(run.settings) == "projector":  # the language model is not trained
        found = ModelFiles("adapter", folder.folder(run), vision=vision)
    else:
        found = ModelFiles("adapter", folder.folder(run), run.peft, vision)
    if not (found.adapter or (run.adapter if found.kind == "adapter" else found.folder)).is_dir():
        makes = command_line("merge" if found.kind == "merged" else "train", run.arguments)
        raise InputWrong(f"There is no {found.kind} model in {run.relative(run.folder)} yet: {makes} makes it.")
    return found


@contextlib.contextmanager
def explain_load_errors(run: Run, found: ModelFiles) -> Iterator[None]:
    """Turn what libraries raise for a damaged folder into one clear error; memory and GPU errors pass through."""
    try:
        yield
    except (RecipeError, MemoryError, ImportError):
        raise
    except Exception as error:
        if re.search(r"memory|CUDA|kernel image|alloc", str(error)):
            raise
        where, remedy = run.relative(found.folder), f"{command_line('merge', run.arguments)} recreates it"
        if found.kind != "merged":
            remedy = f"{command_line('model', run.arguments)} --verify names the damaged files"
        if found.kind == "adapter":
            where = f"{run.relative(run.peft)}, or of its base {where},"
            remedy = f"{command_line('adapter', run.arguments)} recreates the adapter; {remedy} of the base"
        raise HostLacks(
            f"The {found.kind} model cannot be loaded: a file of {where} is damaged or missing "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}). {remedy}."
        )


def weights_bytes(place: Path) -> int:
    """Bytes of a model folder's weights."""
    for pattern in ("*.safetensors", "*.bin"):
        sizes = [path.stat().st_size for path in place.glob(pattern)]
        if sizes:
            return sum(sizes)
    return 0


def choose_precision(place: Path) -> str:
    """Precision in which the model fits into free memory: fp32, bf16, fp16 or nf4. Raises HostLacks if none does."""
    import torch

    stored = json.loads((place / "config.json").read_text(encoding="utf-8")).get("torch_dtype", "float32")
    needed = weights_bytes(place)
    if not torch.cuda.is_available():
        fp32_bytes = needed if stored == "float32" else 2 * needed
        return "fp32" if fp32_bytes + OVERHEAD < _available_memory() or stored == "float32" else "bf16"
    free = torch.cuda.mem_get_info()[0]
    if needed + OVERHEAD <= free:
        if stored == "float32":
            return "fp32"
        return "bf16" if hardware.has_bf16() else "fp16"
    if NF4_SHARE * needed + OVERHEAD <= free:
        return "nf4"
    least = (NF4_SHARE * needed + OVERHEAD) / 1e9
    raise HostLacks(
        f"The model needs {least:.1f} GB of GPU memory even in 4 bits, but {free / 1e9:.1f} GB are free. Stop other "
        f"programs on the card (nvidia-smi), or use the CPU: CUDA_VISIBLE_DEVICES="
    )


def free_memory() -> float:
    """Bytes that are free on the current card, else in RAM."""
    import torch

    if not torch.cuda.is_available():
        return _available_memory()
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by PyTorch, from earlier answers
    return float(torch.cuda.mem_get_info()[0] + kept)


def _available_memory() -> float:
    """Bytes of RAM available."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    return 1024 * int(found.group(1)) if found else float("inf")
