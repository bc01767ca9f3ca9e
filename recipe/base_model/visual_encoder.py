"""LLaVA's visual encoder (CLIP): where it is, its shape, and what it adds to training a language model."""

from pathlib import Path
from typing import NamedTuple

from recipe.base_model.download import download_files, ensure, light_files
from recipe.base_model.folder import CLIP, folder, is_local
from recipe.base_model.record import at_hub, chosen
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.core.settings import Encoder
from recipe.core.translation import _


class VisionLoad(NamedTuple):
    """What images add to training: parameters that stay frozen, parameters that are trained, and activations (values)
    that an iteration keeps for the gradients.
    """

    frozen: int = 0
    trained: int = 0
    activations: int = 0


class EncoderShape(NamedTuple):
    """The shape of CLIP's vision model; `patches` are an image's tokens, without the class token."""

    layers: int
    hidden: int
    inner: int
    patch: int
    patches: int

    @property
    def parameters(self) -> int:
        layer = 4 * self.hidden * (self.hidden + 1) + 2 * self.hidden * self.inner + self.inner + 5 * self.hidden
        ends = self.hidden * (3 * self.patch**2 + self.patches + 6)
        return self.layers * layer + ends

    def load(self, hidden: int, images: int, rank: int = 0) -> VisionLoad:
        """For an iteration of `images` and a language model of this width; `rank`: of LoRA on CLIP, 0 for none.

        The projector is XTuner's, with two layers. The checkpointed input of each CLIP layer is kept even where CLIP is
        frozen, because XTuner lets gradients into it.
        """
        projector = self.hidden * hidden + hidden * hidden + 2 * hidden
        adapter = rank * self.layers * (8 * self.hidden + 2 * (self.hidden + self.inner))
        return VisionLoad(self.parameters, projector + adapter, images * (self.patches + 1) * self.layers * self.hidden)


CLIP_LARGE = EncoderShape(24, 1024, 4096, 14, 576)  # openai/clip-vit-large-patch14-336, which all LLaVA presets use


def encoder_run(run: Run) -> Run:
    """The run with the visual encoder in place of its base model, for functions that download or check a model."""
    name, source = run.settings.model.visual_encoder, chosen(run).source
    if name == "tiny":
        encoder = Encoder(source="tiny", id=CLIP)
    elif name.startswith(("/", ".")) or (run.root / name).is_dir():
        encoder = Encoder(path=name)
    else:
        encoder = Encoder(source="modelscope" if source == "modelscope" else "huggingface", id=name)
    return at_hub(run, encoder)


def encoder_folder(run: Run) -> Path:
    """Where the visual encoder is or will be."""
    return folder(encoder_run(run))


def settings_folder(run: Run) -> Path:
    """A folder with the visual encoder's settings, which are downloaded without the weights if it is not here."""
    encoder = encoder_run(run)
    return ensure(encoder) if is_local(encoder) else download_files(encoder, light_files)


def encoder_shape(run: Run) -> EncoderShape:
    """The shape of the recipe's visual encoder. Raises InputWrong if it is not a CLIP."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig

    place = settings_folder(run)
    try:
        config = CLIPVisionConfig.from_pretrained(str(place))
        crop = CLIPImageProcessor.from_pretrained(str(place)).crop_size
    except (OSError, ValueError, TypeError) as error:
        raise InputWrong(
            _(
                "model.visual_encoder: {folder} is not a CLIP model ({error}).",
                folder=run.relative(place),
                error=str(error).splitlines()[0][:200],
            )
        )
    if {crop.get("height"), crop.get("width")} != {config.image_size}:
        raise InputWrong(
            _(
                "model.visual_encoder: {folder} crops images to {crop}, but its model takes {pixels} pixels.",
                folder=run.relative(place),
                crop=crop,
                pixels=config.image_size,
            )
        )
    return EncoderShape(
        config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.patch_size,
        (config.image_size // config.patch_size) ** 2,
    )  # fmt: skip
