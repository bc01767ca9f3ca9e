"""The recipe's tokenizer, which planning needs without the weights."""

from pathlib import Path
from typing import Any

from recipe.base_model import model_code
from recipe.base_model.download import ensure, fetch_tokenizer
from recipe.base_model.folder import folder
from recipe.base_model.record import check_source
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.core.settings import Settings
from recipe.xtuner import preset_facts


def tokenizer(run: Run) -> Any:
    """The recipe's tokenizer, without weights: model.tokenizer (a folder or a tokenizer.model), else the
    base model's folder, else tokenizer.model alone is fetched. Raises InputWrong, HostLacks.
    """
    from recipe.base_model.tiny import tokenizer_from_model

    given = run.settings.model.tokenizer
    place = Path(given) if given else folder(run)
    if given and not place.exists():
        raise InputWrong(f"model.tokenizer: there is no {given}. Name a folder or a tokenizer.model file.")
    if not given and place.exists():
        check_source(run, place)
    if not place.exists():
        if run.settings.model.source == "tiny" or run.settings.model.path:
            ensure(run)
        else:
            place = fetch_tokenizer(run)
    try:
        if place.is_file():
            return tokenizer_from_model(place)
        return load(run.settings, place, padding_side="right")
    except Exception as error:  # sentencepiece, tokenizers and remote code raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputWrong(
            f"{run.relative(place)} is no tokenizer ({reason[:200]}). model.tokenizer takes a tokenizer.model file or "
            f"a folder with one, model.path a whole model folder."
        )


def load(settings: Settings, place: Path, **more: Any) -> Any:
    """The tokenizer in a model folder as the recipe's preset loads it."""
    kind, own = preset_facts.tokenizer_settings(settings)
    return model_code.load_tokenizer(place, kind, **more, **own)
