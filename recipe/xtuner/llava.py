"""What is special about XTuner's LLaVA presets: image-text pairs, a visual encoder and a projector."""

from typing import Any, Dict, Optional

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.settings import Settings
from recipe.core.translation import _

DATASET = "llava_dataset"  # the dataset's name in every LLaVA preset


def check(settings: Settings, found: Any) -> None:
    """Raise InputWrong if a recipe does not fit its LLaVA preset (`found`, its Facts)."""
    wanted, model, train = settings.data.kind, settings.model, settings.train
    if wanted and found.kind != wanted:
        raise InputWrong(
            _(
                "data.kind: {preset} trains on {kind} data and cannot take {wanted} data. For images take one of "
                "LLaVA's presets ({command}).",
                preset=found.name,
                kind=found.kind,
                wanted=wanted,
                command=command_line("presets", "llava"),
            )
        )
    if not model.visual_encoder:
        raise InputWrong(
            _(
                "base = {preset!r} needs the visual encoder {encoder}: name its folder, or its id at the model's hub: "
                "model.visual_encoder={encoder} (Hugging Face; at ModelScope {other}).",
                preset=found.name,
                encoder=found.visual_encoder,
                other=found.visual_encoder.replace("openai/", "AI-ModelScope/"),
            )
        )
    if "pretrained_pth" not in found.names and model.pretrained_pth:
        raise InputWrong(
            _("model.pretrained_pth: base = {preset!r} is the stage that trains a new projector.", preset=found.name)
        )
    if "pretrained_pth" in found.names and not model.pretrained_pth:
        raise InputWrong(
            _(
                "base = {preset!r} continues with the projector that the first stage trained: name its run's folder or "
                "checkpoint, model.pretrained_pth=output/…, or start with a random one, model.pretrained_pth=none.",
                preset=found.name,
            )
        )
    shipped = sum(key.startswith("evaluation_inputs.") for key in found.names)
    inputs = len(train.questions) or shipped
    if train.evaluation_images and len(train.evaluation_images) not in (1, inputs):
        raise InputWrong(
            _(
                "train.evaluation_images: name one image for all of the {inputs} evaluation_inputs, or one for each, "
                "not {images}.",
                inputs=inputs,
                images=len(train.evaluation_images),
            )
        )


def data_edits(settings: Settings, found: Any, dataset: str) -> Dict[str, Optional[str]]:
    """The edits that replace the preset's dataset with ours, like `config_edits.data_edits`."""
    changes: Dict[str, Optional[str]] = {
        found.path: repr(dataset),
        f"{DATASET}.type": "'recipe.xtuner.llava_dataset.Dataset'",
        f"{DATASET}.dataset_map_fn": "None",
        "custom_hooks.1.type": "'recipe.training.hooks.ImageChatHook'",
    }
    if settings.train.map_num_proc is not None:
        changes[f"{DATASET}.map_num_proc"] = repr(settings.train.map_num_proc)
    if found.dataset != DATASET:  # joined with RefCOCO
        changes["train_dataloader.dataset"] = DATASET
        changes.update(dict.fromkeys((found.dataset, "refcoco_dataset", "inv_refcoco_dataset", "refcoco_path")))
    return changes
