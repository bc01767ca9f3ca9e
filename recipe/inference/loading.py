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
from recipe.core.translation import _, mark, sentences
from recipe.xtuner import preset_facts

OVERHEAD = 2e9  # bytes besides the weights: key/value cache, logits of a batch, libraries

NF4_SHARE = 0.35  # of the bytes in 16 bits; embeddings, norms and scales are not quantized


KINDS = {"base": mark("base model"), "adapter": mark("adapter model"), "merged": mark("merged model")}


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
        raise InputWrong(_("{name} is fully fine-tuned: it has a merged model, but no adapter.", name=run.name))
    if which == "merged" or full or (not which and run.merged.is_dir() and merged >= adapter):
        found = ModelFiles("merged", run.merged, vision=vision)
    elif preset_facts.method(run.settings) == "projector":  # the language model is not trained
        found = ModelFiles("adapter", folder.folder(run), vision=vision)
    else:
        found = ModelFiles("adapter", folder.folder(run), run.peft, vision)
    if not (found.adapter or (run.adapter if found.kind == "adapter" else found.folder)).is_dir():
        makes = command_line("merge" if found.kind == "merged" else "train", run.arguments)
        raise InputWrong(
            _(
                "There is no {model} in {folder} yet: {command} makes it.",
                model=_(KINDS[found.kind]),
                folder=run.relative(run.folder),
                command=makes,
            )
        )
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
        values = {
            "model": _(KINDS[found.kind]),
            "folder": run.relative(found.folder),
            "error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}",
        }
        verify = f"{command_line('model', run.arguments)} --verify"
        if found.kind == "adapter":
            problem = _(
                "The {model} cannot be loaded: a file of {adapter}, or of its base {folder}, is damaged or missing "
                "({error}).",
                adapter=run.relative(run.peft),
                **values,
            )
            remedy = _(
                "{command} recreates the adapter; {verify} names the damaged files of the base.",
                command=command_line("adapter", run.arguments),
                verify=verify,
            )
        else:
            problem = _("The {model} cannot be loaded: a file of {folder} is damaged or missing ({error}).", **values)
            remedy = (
                _("{command} recreates it.", command=command_line("merge", run.arguments))
                if found.kind == "merged"
                else _("{command} names the damaged files.", command=verify)
            )
        raise HostLacks(sentences(problem, remedy))


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
        return "fp32" if fp32_bytes + OVERHEAD < available_memory() or stored == "float32" else "bf16"
    free = torch.cuda.mem_get_info()[0]
    if needed + OVERHEAD <= free:
        if stored == "float32":
            return "fp32"
        return "bf16" if hardware.has_bf16() else "fp16"
    if NF4_SHARE * needed + OVERHEAD <= free:
        return "nf4"
    least = (NF4_SHARE * needed + OVERHEAD) / 1e9
    raise HostLacks(
        _(
            "The model needs {needed:.1f} GB of GPU memory even in 4 bits, but {free:.1f} GB are free. Stop other "
            "programs on the card (nvidia-smi), or use the CPU: CUDA_VISIBLE_DEVICES=",
            needed=least,
            free=free / 1e9,
        )
    )


def free_memory() -> float:
    """Bytes that are free on the current card, else in RAM."""
    import torch

    if not torch.cuda.is_available():
        return available_memory()
    kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by PyTorch, from earlier answers
    return float(torch.cuda.mem_get_info()[0] + kept)


def available_memory() -> float:
    """Bytes of RAM available."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(encoding="ascii"))
    return 1024 * int(found.group(1)) if found else float("inf")
