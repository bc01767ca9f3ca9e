"""Renders the XTuner config: the preset's text with the recipe's edits, and nothing else.

The result is an ordinary XTuner config that `xtuner train` runs, with this clone on PYTHONPATH for the classes of
recipe.base_model.internlm2.
"""

import re
from typing import Any, Dict, Optional

from recipe.core import imports
from recipe.core.errors import InputWrong
from recipe.core.settings import Settings
from recipe.core.translation import _, listed
from recipe.xtuner import preset_editor, preset_facts
from recipe.xtuner.config_edits import edits

# Lines of a config, or of its difference from the preset, that name files.
PATH_LINES = re.compile(
    r"(?m)^\+?((pretrained_model|llm|visual_encoder)_name_or_path|data_path|image_folder|pretrained_pth|evaluation_images)"
    r" = .*$"
)

# Names that edits may use and a preset may not import.
IMPORTS = (
    ("", "torch"), ("datasets", "load_dataset"), ("peft", "LoraConfig"), ("transformers", "BitsAndBytesConfig"),
    ("xtuner.dataset", "process_hf_dataset"), ("xtuner.dataset.map_fns", "template_map_fn_factory"),
    ("xtuner.utils", "PROMPT_TEMPLATE"),
    ("recipe.base_model.internlm2", "InternLM2ForCausalLM"), ("recipe.base_model.internlm2", "InternLM2Tokenizer"),
)  # fmt: skip


def render(
    settings: Settings, model: str, dataset: str, intervals: Dict[str, int], vision: Optional[Dict[str, Any]] = None,
    own_code: Optional[bool] = None,
) -> str:  # fmt: skip
    """The config's text; for the arguments see `edits`. Raises InputWrong if the preset has no place for a setting."""
    if settings.train.template and settings.train.template not in preset_facts.templates():
        raise InputWrong(
            _(
                "train.template: XTuner has no template {name!r}. It has: {names}.",
                name=settings.train.template,
                names=listed(preset_facts.templates()),
            )
        )
    try:
        changes = edits(settings, model, dataset, intervals, vision, own_code)
        text = preset_editor.edit(preset_editor.source(settings.base), changes)
    except KeyError as error:
        raise InputWrong(
            _("base = {preset!r} does not fit this recipe: {problem}.", preset=settings.base, problem=error.args[0])
        )
    for module, name in IMPORTS:
        if re.search(rf"\b{name}\b", text):
            text = preset_editor.add_import(text, module, name)
    return text


def effective(settings: Settings) -> Any:
    """The recipe's config as mmengine reads it, for values that are needed before the final one is rendered."""
    imports.load_models()  # silences what reading the config imports
    from mmengine.config import Config

    return Config.fromstring(render(settings, "model", "dataset", {}), file_format=".py")


def without_paths(text: str) -> str:
    """A config's text, or its difference from the preset, without the lines that name files."""
    return PATH_LINES.sub("", text)


def dataset(cfg: Any) -> Any:
    """The dict of the dataset that the config trains on."""
    return cfg.train_dataloader.dataset if "train_dataloader" in cfg else cfg.train_dataset


def template(cfg: Any) -> Any:
    """XTuner's chat template that the config trains with; None for plain texts."""
    found = dataset(cfg).get("template_map_fn")
    return found.template if found else None
