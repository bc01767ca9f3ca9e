"""LLaVA's parts beside the language model: the visual encoder, the projector, and the images they see.

`adapter/` holds what `xtuner convert pth_to_hf` would: projector/ (XTuner's ProjectorModel), and where they are trained
llm_adapter/ and visual_encoder_adapter/ (PEFT).
"""

import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

from recipe.base_model import folder as model
from recipe.core.errors import InputWrong, RunFailed
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.intake import files
from recipe.weights import adapter

NONE = "none"  # model.pretrained_pth: a random projector
PROJECTOR = "projector."
SELECTED = -2  # the layer whose output is projected: LLaVAModel's visual_select_layer, which no preset changes
# Folder of an adapter → what the trainer calls its model, and its settings in the config stage's figures
ADAPTERS = {"llm_adapter": ("llm", "lora"), "visual_encoder_adapter": ("visual_encoder", "visual_encoder_lora")}


def names(run: Run) -> Dict[str, Any]:
    """What the rendered config calls the images, the visual encoder and the projector. Raises InputWrong."""
    folder = files.image_folder(run)
    images = run.settings.train.evaluation_images
    if images is None:
        with run.dataset.open(encoding="utf-8") as stream:
            images = [str(folder / json.loads(next(stream))["image"])]
    missing = [image for image in images if not (run.root / image).is_file()]
    if missing:
        raise InputWrong(f"train.evaluation_images: there is no {missing[0]}.")
    found: Dict[str, Any] = {
        "visual_encoder_name_or_path": run.shown(model.folder(model.visual(run))),
        "image_folder": run.shown(folder),
        "evaluation_images": [run.shown(run.root / image) for image in images],
    }
    if run.settings.model.pretrained_pth:
        checkpoint = pretrained(run)
        found["pretrained_pth"] = run.shown(checkpoint) if checkpoint else None
    return found


def pretrained(run: Run) -> Optional[Path]:
    """The checkpoint with the first stage's projector; None for a random one. Raises InputWrong."""
    given = run.settings.model.pretrained_pth
    if given in ("", NONE):
        return None
    place = run.root / given
    try:
        if (place / "run.json").is_file():
            [made] = json.loads((place / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["outputs"]
            place = place / made
        held = adapter.saved(place)
    except (ValueError, KeyError, RunFailed) as error:
        raise InputWrong(
            f"model.pretrained_pth={given}: neither a checkpoint (iter_N.pth) nor the folder of a run that is trained "
            f"({error})."
        )
    if not any(name.startswith(PROJECTOR) for name in held):
        raise InputWrong(f"model.pretrained_pth={given}: the checkpoint {place} holds no projector.")
    return place


def inputs(run: Run) -> Dict[str, Any]:
    """What training depends on beside what it does without images. The images' own sums stand in dataset.jsonl."""
    place = model.folder(model.visual(run))
    return {
        "visual_encoder": model.fingerprint(place) if place.is_dir() else "absent",
        "pretrained_pth": began_from(run),
    }


def began_from(run: Run) -> str:
    """sha256 of the checkpoint with the first stage's projector; NONE where it began with a random one."""
    checkpoint = pretrained(run)
    return digest(checkpoint) if checkpoint else NONE


def write(checkpoint: Path, place: Path, settings: Dict[str, Any], dtype: str, base: Dict[str, str]) -> Dict[str, Any]:
    """Write the parts of a checkpoint that are trained, but for a whole language model, into the fresh folder `place`.

    `settings`: the config stage's figures. The language model's adapter in `dtype`, the rest fp32, as `pth_to_hf`. The
    figures are the language model's adapter's, with `projector` and `visual_encoder_adapter`, numbers of parameters.
    Raises RunFailed for a part that belongs nowhere, values that are no numbers, files that are not the checkpoint's.
    """
    found = adapter.saved(checkpoint)
    own = {name: held.read for name, held in found.items() if name.startswith(PROJECTOR)}
    whole = (adapter.WHOLE,) if settings["method"] == "full" else ()
    places = tuple(f"{who}.base_model." for folder, (who, key) in ADAPTERS.items() if settings[key])
    astray = [name for name in found if name not in own and not name.startswith((*places, *whole))]
    if astray or not own:
        raise RunFailed(f"The checkpoint {checkpoint} is not of this recipe: {(astray or ['it has no projector'])[0]}.")
    figures: Dict[str, Any] = {
        "tensors": 0, "parameters": 0, "targets": [], "dtype": dtype, "largest_b": 0.0, "vanished": 0.0, **base,
    }  # fmt: skip
    for folder, (who, key) in ADAPTERS.items():
        if settings[key]:
            kind = dtype if who == "llm" else "fp32"
            made = adapter.convert(checkpoint, place / folder, settings[key], kind, base, who)
            figures.update(made if who == "llm" else {folder: made["parameters"]})
    figures["projector"] = _projector(own, place / "projector")
    return figures


def began(run: Run, place: Path) -> Optional[Tuple[Path, Path]]:
    """The visual encoder's folder and `place`, into which the first stage's projector is written: by what the second
    stage saw before it was trained. None where the recipe began with a random projector, by which nothing is seen.
    """
    checkpoint = pretrained(run)
    if checkpoint is None:
        return None
    own = {name: held.read for name, held in adapter.saved(checkpoint).items() if name.startswith(PROJECTOR)}
    _projector(own, place / "projector")
    return model.folder(model.visual(run)), place


def _projector(weights: Dict[str, Callable[[], Any]], place: Path) -> int:
    """Write XTuner's ProjectorModel with these weights, load it again and compare; how many parameters it has."""
    import torch
    from xtuner.model.modules import ProjectorConfig, ProjectorModel

    held = {name[len(PROJECTOR) :]: read().float() for name, read in weights.items()}
    odd = [name for name, tensor in held.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        raise RunFailed(
            f"projector.{odd[0]} holds values that are no numbers: training diverged. Lower train.lr and train again."
        )
    linear = sorted(name for name in held if name.endswith(".weight"))
    wide, narrow = held[linear[0]].shape
    made = ProjectorModel(ProjectorConfig(visual_hidden_size=narrow, llm_hidden_size=wide, depth=len(linear)))
    made.load_state_dict(held)
    made.save_pretrained(str(place))
    again = ProjectorModel.from_pretrained(str(place)).state_dict()
    if set(again) != set(held) or not all(torch.equal(again[name], held[name]) for name in held):
        raise RunFailed(f"What was written to {place} is not what the checkpoint holds.")
    return sum(tensor.numel() for tensor in held.values())


class Sight:
    """The visual encoder and the projector of a run, for a language model that is loaded: `see` makes tokens of an
    image.
    """

    def __init__(self, encoder: Path, parts: Path, device: Any, dtype: Any) -> None:
        from transformers import CLIPImageProcessor, CLIPVisionModel
        from xtuner.model.modules import ProjectorModel

        self.processor = CLIPImageProcessor.from_pretrained(str(encoder))
        self.encoder = CLIPVisionModel.from_pretrained(str(encoder), torch_dtype=dtype).to(device)
        if (parts / "visual_encoder_adapter").is_dir():
            from peft import PeftModel

            self.encoder = PeftModel.from_pretrained(self.encoder, str(parts / "visual_encoder_adapter"))
        self.projector = ProjectorModel.from_pretrained(str(parts / "projector"), torch_dtype=dtype).to(device)
        self.encoder.eval()
        self.projector.eval()

    def see(self, image: Path, square: bool = True) -> Any:
        """[1, patches, width] of the language model. `square`: made one first, as XTuner's evaluation does; else what
        stands out is cut off, as some presets train. Raises InputWrong.
        """
        import torch
        from xtuner.dataset.utils import expand2square, load_image

        try:
            opened = load_image(str(image))
        except (OSError, ValueError) as error:
            raise InputWrong(f"image={image}: it cannot be read as an image ({str(error).splitlines()[0][:100]}).")
        if square:
            opened = expand2square(opened, tuple(int(x * 255) for x in self.processor.image_mean))
        pixels = self.processor.preprocess(opened, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            seen = self.encoder(pixels.to(self.encoder.device, self.encoder.dtype), output_hidden_states=True)
            return self.projector(seen.hidden_states[SELECTED][:, 1:])
