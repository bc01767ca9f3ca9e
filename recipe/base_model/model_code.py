"""Whose code loads a model folder: ours for InternLM2, transformers' or the folder's own for every other family.

Our code never asks a folder for its own (auto_map), so nothing that a hub publishes is executed for InternLM2.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import architecture

HERE = Path(__file__).parent / "tiny"
FILES = tuple(HERE / f"{name}.py" for name in architecture.CODE)


def config_of(place: Path) -> Dict[str, Any]:
    """A model folder's config.json; {} where there is none, or none that can be read."""
    try:
        found = json.loads((place / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_ours(place: Path) -> bool:
    """Whether our own code loads a model folder."""
    return architecture.is_internlm2(config_of(place))


def describe(place: Path) -> str:
    """Whose code loads a model folder, in words."""
    if is_ours(place):
        return "this project's"
    return "the folder's own" if "auto_map" in config_of(place) else "transformers'"


def load_tokenizer(place: Path, kind: str = "AutoTokenizer", **more: Any) -> Any:
    """The tokenizer of a model folder; `kind`: transformers' class for a folder that our code does not load."""
    if is_ours(place) and (place / "tokenizer.model").is_file():
        from recipe.base_model.internlm2 import InternLM2Tokenizer

        return InternLM2Tokenizer.from_pretrained(str(place), **more)
    import transformers

    return getattr(transformers, kind).from_pretrained(str(place), trust_remote_code=not is_ours(place), **more)


def load_config(place: Path) -> Any:
    """The configuration of a model folder."""
    if is_ours(place):
        from recipe.base_model.internlm2 import InternLM2Config

        return InternLM2Config.from_pretrained(str(place))
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(place), trust_remote_code=True)


def load_model(place: Path, **more: Any) -> Any:
    """The language model of a folder, with its weights."""
    if is_ours(place):
        from recipe.base_model.internlm2 import InternLM2ForCausalLM

        return InternLM2ForCausalLM.from_pretrained(str(place), **more)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=True, **more)


def make_model(config: Any, **more: Any) -> Any:
    """The language model that `load_config`'s result describes, without weights."""
    from recipe.base_model.internlm2 import InternLM2Config, InternLM2ForCausalLM

    if isinstance(config, InternLM2Config):
        return InternLM2ForCausalLM._from_config(config, **more)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, trust_remote_code=True, **more)


def write(place: Path) -> None:
    """Put our code into a folder that holds an InternLM2, and name it there: the folder then loads on this stack."""
    for path in FILES:
        shutil.copyfile(str(path), str(place / path.name))
    _set(place / "config.json", {
        "architectures": [architecture.CLASS], "auto_map": architecture.AUTO_MAP, "model_type": architecture.MODEL_TYPE,
    })  # fmt: skip
    if (place / "tokenizer_config.json").is_file():
        _set(place / "tokenizer_config.json", {"auto_map": architecture.TOKENIZER_MAP})


def link(place: Path, into: Path) -> None:
    """A folder of links to an InternLM2's files, with our code in the place of the folder's own."""
    into.mkdir(parents=True)
    for path in (one for one in place.iterdir() if one.is_file() and one.suffix != ".py" and one.name[0] != "."):
        if path.name in ("config.json", "tokenizer_config.json"):
            shutil.copyfile(str(path), str(into / path.name))
        else:
            (into / path.name).symlink_to(path.resolve())
    write(into)


def _set(path: Path, values: Dict[str, Any]) -> None:
    """Set keys of a JSON file; a file that has them already stays as it is."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if {**found, **values} != found:
        path.write_text(json.dumps({**found, **values}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
