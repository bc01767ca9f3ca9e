"""The recipe's tokenizer, and the other model files that planning needs; none of them are weights."""

from pathlib import Path
from typing import Any, List, Tuple

from recipe.base_model import model_code, visual_encoder
from recipe.base_model.download import download_files, ensure, light_files
from recipe.base_model.folder import folder, is_internlm2, is_local, tokenizer_file
from recipe.base_model.hub_addresses import Files
from recipe.base_model.record import check_source
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.files import lfs_pointer
from recipe.core.run import Run
from recipe.core.settings import Settings
from recipe.core.translation import _, mark
from recipe.xtuner import preset_facts


def tokenizer(run: Run) -> Any:
    """The recipe's tokenizer: from model.tokenizer (a folder or a tokenizer.model), else from the base model's folder,
    else downloaded alone. Raises InputWrong, HostLacks.
    """
    from recipe.base_model.tiny import tokenizer_from_model

    given = run.settings.model.tokenizer
    place = Path(given) if given else folder(run)
    if given and not place.exists():
        raise InputWrong(
            _("model.tokenizer: {path} does not exist. Name a folder or a tokenizer.model file.", path=given)
        )
    if not given and place.exists():
        check_source(run, place)
    if not place.exists():
        if run.settings.model.is_made or run.settings.model.path:
            ensure(run)
        else:
            place = download_tokenizer(run)
    if given:
        pointer = lfs_pointer(place if place.is_file() else tokenizer_file(place))
        if pointer:
            raise HostLacks(_("model.tokenizer: {path}: {problem}.", path=given, problem=pointer))
    try:
        if place.is_file():
            return tokenizer_from_model(place)
        if not (place / "config.json").exists() and (place / "tokenizer.model").is_file():  # a folder with it alone
            return tokenizer_from_model(place / "tokenizer.model")
        return load(run.settings, place, padding_side="right")
    except Exception as error:  # sentencepiece, tokenizers and remote code raise many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputWrong(
            _(
                "{path} is not a tokenizer ({reason}). model.tokenizer takes a tokenizer.model file or a folder with "
                "one, model.path a whole model folder.",
                path=run.relative(place),
                reason=reason[:200],
            )
        )


def load(settings: Settings, place: Path, **more: Any) -> Any:
    """The tokenizer of a model folder, loaded the way the recipe's preset loads it."""
    kind, arguments = preset_facts.tokenizer_settings(settings)
    return model_code.load_tokenizer(place, kind, **more, **arguments)


def download_tokenizer(run: Run) -> Path:
    """tokenizer.model, downloaded with config.json (1.5 MB) from the commit that the weights will come from. For a
    family other than InternLM2, whose tokenizer has its own code, a folder with everything except the weights.
    """

    def tokenizer_files(files: Files) -> List[str]:
        if "tokenizer.model" not in files:
            raise InputWrong(
                _(
                    "{model} has no tokenizer.model: name a tokenizer (model.tokenizer=…), or fetch the whole model "
                    "first: {command}.",
                    model=run.settings.model.id,
                    command=command_line("model"),
                )
            )
        return [name for name in ("tokenizer.model", "config.json") if name in files]

    if is_internlm2(run):
        place = download_files(run, tokenizer_files)
        if is_internlm2(run):  # by config.json, which may be of another family than the preset
            return place / "tokenizer.model"
    return download_files(run, light_files)


def download_for_plan(run: Run) -> List[Tuple[str, Path]]:
    """(what, in English, path) of the model files that a plan needs, downloaded if they are not here."""
    found = []
    if not (is_local(run) or run.settings.model.tokenizer):
        found.append((mark("tokenizer"), download_tokenizer(run)))
    if preset_facts.has_images(run.settings):
        found.append((mark("visual encoder"), visual_encoder.settings_folder(run)))
    return found
