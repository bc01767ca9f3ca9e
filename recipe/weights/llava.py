"""LLaVA: visual encoder, projector and images.

adapter/ holds what `xtuner convert pth_to_hf` writes: projector/ (XTuner's ProjectorModel) and, where trained,
llm_adapter/ and visual_encoder_adapter/ (PEFT).
"""

import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

from recipe.base_model import folder, visual_encoder
from recipe.core.errors import InputWrong, RunFailed
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.translation import _
from recipe.intake.images import image_folder
from recipe.weights import adapter, checkpoint_reader

NONE = "none"  # model.pretrained_pth: start from a random projector
PROJECTOR = "projector."
SELECTED = -2  # LLaVAModel's visual_select_layer, the same in every preset
# Adapter folder → (XTuner's name of the adapted model, key of its settings in the config stage's figures)
ADAPTERS = {"llm_adapter": ("llm", "lora"), "visual_encoder_adapter": ("visual_encoder", "visual_encoder_lora")}


def config_values(run: Run) -> Dict[str, Any]:
    """Values of the rendered config for images, visual encoder and projector. Raises InputWrong."""
    images_folder = image_folder(run)
    images = run.settings.train.evaluation_images
    if images is None:
        with run.dataset.open(encoding="utf-8") as stream:
            images = [str(images_folder / json.loads(next(stream))["image"])]
    missing = [image for image in images if not (run.root / image).is_file()]
    if missing:
        raise InputWrong(_("train.evaluation_images: {file} does not exist.", file=missing[0]))
    values: Dict[str, Any] = {
        "visual_encoder_name_or_path": run.relative(visual_encoder.encoder_folder(run)),
        "image_folder": run.relative(images_folder),
        "evaluation_images": [run.relative(run.root / image) for image in images],
    }
    if run.settings.model.pretrained_pth:
        checkpoint = pretrained_checkpoint(run)
        values["pretrained_pth"] = run.relative(checkpoint) if checkpoint else None
    return values


def pretrained_checkpoint(run: Run) -> Optional[Path]:
    """Checkpoint that holds the pre-trained projector; None for a random one. Raises InputWrong."""
    given = run.settings.model.pretrained_pth
    if given in ("", NONE):
        return None
    place = run.root / given
    try:
        if (place / "run.json").is_file():
            [made] = json.loads((place / "run.json").read_text(encoding="utf-8"))["stages"]["train"]["outputs"]
            place = place / made
        weights = checkpoint_reader.read_checkpoint(place)
    except (ValueError, KeyError, RunFailed) as error:
        raise InputWrong(
            _(
                "model.pretrained_pth={path}: neither a checkpoint (iter_N.pth) nor the folder of a "
                "trained run ({error}).",
                path=given,
                error=error,
            )
        )
    if not any(name.startswith(PROJECTOR) for name in weights):
        raise InputWrong(
            _(
                "model.pretrained_pth={path}: the checkpoint {checkpoint} holds no projector.",
                path=given,
                checkpoint=place,
            )
        )
    return place


def inputs(run: Run) -> Dict[str, Any]:
    """Additional inputs of training with images. dataset.jsonl holds the checksums of the images."""
    place = visual_encoder.encoder_folder(run)
    return {
        "visual_encoder": folder.fingerprint(place) if place.is_dir() else "absent",
        "pretrained_pth": projector_checksum(run),
    }


def projector_checksum(run: Run) -> str:
    """sha256 of the checkpoint that holds the pre-trained projector, or NONE."""
    checkpoint = pretrained_checkpoint(run)
    return digest(checkpoint) if checkpoint else NONE


def write_parts(
    checkpoint: Path, place: Path, settings: Dict[str, Any], dtype: str, base: Dict[str, str]
) -> Dict[str, Any]:
    """Write a checkpoint's adapters and projector into the new folder `place`.

    `settings` are the config stage's figures. As with `pth_to_hf`, the language model's adapter has `dtype`, the rest
    is fp32. Returns the figures of the language model's adapter, plus the parameter counts `projector` and
    `visual_encoder_adapter`. Raises RunFailed for unknown parts and non-finite values.
    """
    found = checkpoint_reader.read_checkpoint(checkpoint)
    projector = {name: stored.read for name, stored in found.items() if name.startswith(PROJECTOR)}
    llm = (checkpoint_reader.LLM,) if settings["method"] == "full" else ()
    adapted = tuple(f"{model}.base_model." for model, key in ADAPTERS.values() if settings[key])
    unknown = [name for name in found if name not in projector and not name.startswith((*adapted, *llm))]
    if unknown:
        raise RunFailed(
            _("The checkpoint {checkpoint} is not of this recipe: {weight}.", checkpoint=checkpoint, weight=unknown[0])
        )
    if not projector:
        raise RunFailed(
            _("The checkpoint {checkpoint} is not of this recipe: it has no projector.", checkpoint=checkpoint)
        )
    figures: Dict[str, Any] = {
        "tensors": 0, "parameters": 0, "targets": [], "dtype": dtype, "largest_b": 0.0, "underflow_share": 0.0, **base,
    }  # fmt: skip
    for name, (model, key) in ADAPTERS.items():
        if settings[key]:
            kind = dtype if model == "llm" else "fp32"
            made = adapter.convert(checkpoint, place / name, settings[key], kind, base, model)
            figures.update(made if model == "llm" else {name: made["parameters"]})
    figures["projector"] = _write_projector(projector, place / "projector")
    return figures


def prepare_untrained(run: Run, place: Path) -> Optional[Tuple[Path, Path]]:
    """Write the pre-trained projector into `place`; return (visual encoder's folder, `place`).

    None if training started from a random projector: the untrained model then cannot read images.
    """
    checkpoint = pretrained_checkpoint(run)
    if checkpoint is None:
        return None
    weights = checkpoint_reader.read_checkpoint(checkpoint)
    projector = {name: stored.read for name, stored in weights.items() if name.startswith(PROJECTOR)}
    _write_projector(projector, place / "projector")
    return visual_encoder.encoder_folder(run), place


def _write_projector(weights: Dict[str, Callable[[], Any]], place: Path) -> int:
    """Write `weights` as XTuner's ProjectorModel, read it back and compare; return the number of parameters."""
    import torch
    from xtuner.model.modules import ProjectorConfig, ProjectorModel

    tensors = {name[len(PROJECTOR) :]: read().float() for name, read in weights.items()}
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise RunFailed(
            _(
                "{weight} holds non-finite values: training diverged. Lower train.lr and train again.",
                weight=f"projector.{bad[0]}",
            )
        )
    linear = sorted(name for name in tensors if name.endswith(".weight"))
    wide, narrow = tensors[linear[0]].shape
    model = ProjectorModel(ProjectorConfig(visual_hidden_size=narrow, llm_hidden_size=wide, depth=len(linear)))
    model.load_state_dict(tensors)
    model.save_pretrained(str(place))
    written = ProjectorModel.from_pretrained(str(place)).state_dict()
    if set(written) != set(tensors) or not all(torch.equal(written[name], tensors[name]) for name in tensors):
        raise RunFailed(
            _("The projector in {folder} differs from the checkpoint. Check the disk and train again.", folder=place)
        )
    return sum(tensor.numel() for tensor in tensors.values())


class VisionTower:
    """Visual encoder and projector of a run; `embed` turns an image into embeddings of the language model."""

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

    def embed(self, image: Path, square: bool = True) -> Any:
        """Return [1, patches, hidden size]. The image is padded to a square if `square`, as in XTuner's evaluation,
        else center-cropped, as in the training of some presets. Raises InputWrong.
        """
        import torch
        from xtuner.dataset.utils import expand2square, load_image

        try:
            opened = load_image(str(image))
        except (OSError, ValueError) as error:
            raise InputWrong(
                _(
                    "image={image}: it cannot be read as an image ({error}).",
                    image=image,
                    error=str(error).splitlines()[0][:100],
                )
            )
        if square:
            opened = expand2square(opened, tuple(int(x * 255) for x in self.processor.image_mean))
        pixels = self.processor.preprocess(opened, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            outputs = self.encoder(pixels.to(self.encoder.device, self.encoder.dtype), output_hidden_states=True)
            return self.projector(outputs.hidden_states[SELECTED][:, 1:])
