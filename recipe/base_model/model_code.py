"""Loads a model folder: InternLM2 with our code, every other family with transformers' or the folder's own.

For InternLM2 the folder's own code (auto_map) is never run.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import architecture
from recipe.core.translation import mark

HERE = Path(__file__).parent / "tiny"
FILES = tuple(HERE / f"{name}.py" for name in architecture.CODE)


def read_config(place: Path) -> Dict[str, Any]:
    """A model folder's config.json; {} if it is missing or damaged."""
    return read_json_object(place / "config.json")


def read_json_object(path: Path) -> Dict[str, Any]:
    """A JSON file's object; {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_internlm2(place: Path) -> bool:
    """Whether our own code loads a model folder."""
    return architecture.is_internlm2(read_config(place))


def describe(place: Path) -> str:
    """Whose code loads a model folder, for the figures: in English."""
    if is_internlm2(place):
        return mark("this project's")
    return mark("the folder's own") if "auto_map" in read_config(place) else mark("transformers'")


def load_tokenizer(place: Path, kind: str = "AutoTokenizer", **more: Any) -> Any:
    """The tokenizer of a model folder; `kind`: transformers' class for a folder that our code does not load."""
    if is_internlm2(place):
        from recipe.base_model.internlm2 import InternLM2Tokenizer

        return InternLM2Tokenizer.from_pretrained(str(place), **more)
    import transformers

    return getattr(transformers, kind).from_pretrained(str(place), trust_remote_code=True, **more)


def load_config(place: Path) -> Any:
    """The configuration of a model folder."""
    if is_internlm2(place):
        from recipe.base_model.internlm2 import InternLM2Config

        return InternLM2Config.from_pretrained(str(place))
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(place), trust_remote_code=True)


def load_model(place: Path, **more: Any) -> Any:
    """The language model of a folder, with its weights."""
    if is_internlm2(place):
        from recipe.base_model.internlm2 import InternLM2ForCausalLM

        return InternLM2ForCausalLM.from_pretrained(str(place), **more)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=True, **more)


def make_model(config: Any, **more: Any) -> Any:
    """A language model of `load_config`'s result, with random weights."""
    from recipe.base_model.internlm2 import InternLM2Config, InternLM2ForCausalLM

    if isinstance(config, InternLM2Config):
        return InternLM2ForCausalLM._from_config(config, **more)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, trust_remote_code=True, **more)


def write(place: Path) -> None:
    """Copy our code into an InternLM2 folder and name it in the JSON files, so that transformers loads the folder."""
    ours = (place / "tokenizer.model").is_file()  # else the folder has a tokenizer of transformers' own
    for path in FILES if ours else FILES[:2]:
        shutil.copyfile(str(path), str(place / path.name))
    _set(place / "config.json", {
        "architectures": [architecture.CLASS], "auto_map": architecture.AUTO_MAP, "model_type": architecture.MODEL_TYPE,
    })  # fmt: skip
    if ours and (place / "tokenizer_config.json").is_file():
        _set(place / "tokenizer_config.json", {"auto_map": architecture.TOKENIZER_MAP})


def link(place: Path, into: Path) -> None:
    """Make a folder of links to an InternLM2's files, with our code instead of the folder's own."""
    into.mkdir(parents=True)
    for path in (file for file in place.iterdir() if file.is_file() and file.suffix != ".py" and file.name[0] != "."):
        if path.name in ("config.json", "tokenizer_config.json"):
            shutil.copyfile(str(path), str(into / path.name))
        else:
            (into / path.name).symlink_to(path.resolve())
    write(into)


def _set(path: Path, values: Dict[str, Any]) -> None:
    """Set keys of a JSON file. A file that has them already is not rewritten."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if {**found, **values} != found:
        path.write_text(json.dumps({**found, **values}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
