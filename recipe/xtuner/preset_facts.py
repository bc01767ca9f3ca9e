"""Reads an XTuner preset's family, method, chat template and kind of data from its text, and whether it runs here.

Nothing is imported or built, so all 408 are read in seconds.
"""

import ast
import dataclasses
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core.errors import InputWrong
from recipe.core.settings import Settings
from recipe.core.translation import _, english, mark, stored
from recipe.xtuner import llava, preset_editor

# Architectures in transformers: model names → its module there, and the first version that has it.
ARCHITECTURES = (
    (r"gemma", "gemma", "4.38"),
    (r"qwen1\.5", "qwen2", "4.37"),
    (r"mixtral", "mixtral", "4.36"),
    (r"mistral|zephyr", "mistral", "4.34"),
    (r"llama|vicuna|yi-|deepseek-coder", "llama", "4.28"),
    (r"starcoder", "gpt_bigcode", "4.27"),
)
# Billions of parameters where the name does not state them.
SIZES = {"8x7b": 46.7, "moe-16b": 16.4, "starcoder": 15.5, "chatglm2-6b": 6.24, "chatglm3-6b": 6.24}

FLASH = mark("it computes attention with the package flash_attn, which this environment does not have")
OLD_TOKENIZER = mark(
    "the tokenizer's code in the published folder fails from transformers 4.34 on (it asks for its vocabulary before "
    "it has read it); a copy whose class calls super().__init__ last runs, named with model.path=…"
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """`method`: qlora, lora, full, or projector (LLaVA's first stage). `bits`: of frozen weights 4, 8 or 16, of trained
    ones 32. `kind`: instruction, pretrain, agent or image. `dataset`: the name of the dataset's dict; `path`: the name
    of its path, "" if it has none. `names`: each top-level name, and each key below it → its source. `code`: the
    transformers module of the architecture, "" for code in the model's folder. `refusal`: why it does not run here, "".
    """

    name: str
    family: str
    model: str
    framework: str
    method: str
    bits: int
    template: str
    kind: str
    dataset: str
    path: str
    names: Dict[str, str]
    code: str
    refusal: str

    @property
    def model_key(self) -> str:
        """The name of the language model's path or id."""
        return "llm_name_or_path" if "llm_name_or_path" in self.names else "pretrained_model_name_or_path"

    @property
    def llm(self) -> str:
        """The path of the language model's dict."""
        return "model" if self.framework == "huggingface" else "model.llm"

    @property
    def lora(self) -> str:
        """The path of LoRA's dict, also if the preset has none."""
        if self.kind == "image":
            return "model.llm_lora"
        return "lora" if self.framework == "huggingface" else "model.lora"

    @property
    def visual_encoder(self) -> str:
        """The visual encoder of a LLaVA preset."""
        return self.names["visual_encoder_name_or_path"].strip("'")


def size_of(model: str) -> float:
    """Billions of parameters, from a model's name; 0 if it does not state them."""
    lowered = model.lower().replace("_", ".")
    known = next((size for word, size in SIZES.items() if word in lowered), 0.0)
    found = re.findall(r"(?<![\dx.])(\d+(?:\.\d+)?)b\b", lowered)
    return known or (float(found[0]) if found else 0.0)


@functools.lru_cache(maxsize=None)
def facts(name: str) -> Facts:
    """The facts of a preset. Raises InputWrong for a name that XTuner does not have."""
    names = flat(preset_editor.source(name))
    text = {key: value.strip("'\"") for key, value in names.items()}
    model = text.get("pretrained_model_name_or_path", text.get("llm_name_or_path", ""))
    framework = text.get("framework", "mmengine")
    llm = "model" if framework == "huggingface" else "model.llm"
    kind = _kind(names, text)
    four = f"{llm}.quantization_config.type" in names
    eight = text.get(f"{llm}.load_in_8bit") == "True"
    if any(key in names for key in ("model.lora.type", "model.llm_lora.type", "lora.type")):
        method = "qlora" if four else "lora"
    else:
        method = "projector" if kind == "image" and text.get("model.freeze_llm") == "True" else "full"
    known = next((entry for entry in ARCHITECTURES if re.search(entry[0], model.lower())), None)
    paths = [key for key in names if re.fullmatch(r"(data|dataset_name_or|\w+_data|\w+)_path", key)]
    paths = [key for key in paths if key not in ("pretrained_model_name_or_path", "llm_name_or_path",
                                                 "visual_encoder_name_or_path", "refcoco_path")]  # fmt: skip
    return Facts(
        name=name,
        family=preset_editor.files()[name].relative_to(preset_editor.folder()).parts[0],
        model=model,
        framework=framework,
        method=method,
        bits=4 if four else 8 if eight else 16 if method in ("lora", "projector") else 32,
        template=text.get("prompt_template", "").replace("PROMPT_TEMPLATE.", ""),
        kind=kind,
        dataset=names.get("train_dataloader.dataset", "train_dataset"),
        path="data_path" if "data_path" in names else paths[0] if paths else "",
        names=names,
        code=known[1] if known else "",
        refusal=_refusal(text, framework, known, model),
    )


def _kind(names: Dict[str, str], text: Dict[str, str]) -> str:
    if text.get("model.type") == "LLaVAModel":
        return "image"
    maps = [value for key, value in names.items() if key.endswith(".dataset_map_fn")]
    if "pretrain_map_fn" in maps:
        return "pretrain"
    return "agent" if "msagent_react_map_fn" in maps else "instruction"


def _refusal(text: Dict[str, str], framework: str, known: Optional[Tuple[str, str, str]], model: str) -> str:
    """Why a preset does not run here, in English; "" if it does."""
    if text.get("train_dataset.type") == "build_packed_dataset":
        return mark(
            "it reads folders that InternLM's own pipeline has tokenized, not rows or texts, and it computes attention "
            "with the package flash_attn, which this environment does not have; any other preset of the model reads "
            "yours"
        )
    if text.get("use_varlen_attn") == "True" or "flash_attention_2" in text.values():
        return FLASH
    if framework == "huggingface":
        return mark(
            "transformers' Trainer runs it and leaves other checkpoints than the next stages read; the preset of the "
            "same name without _hf trains the same by mmengine, and `xtuner train` runs this config as it is rendered"
        )
    if known and not _has_architecture(known[1]):
        with english():
            return _(
                "its architecture came with transformers {version}, and this stack has 4.36.2, the version of XTuner "
                "0.1.14's day",
                version=known[2],
            )
    return OLD_TOKENIZER if "baichuan" in model.lower() else ""


@functools.lru_cache(maxsize=None)
def _has_architecture(module: str) -> bool:
    """Whether this transformers has an architecture; does not import it."""
    spec = importlib.util.find_spec("transformers")
    return bool(spec and spec.origin and (Path(spec.origin).parent / "models" / module).is_dir())


def flat(text: str) -> Dict[str, str]:
    """Every name and key of a config → its source; "" for a dict(...) or a list, whose parts follow."""
    found: Dict[str, str] = {}

    def walk(path: str, node: ast.expr) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            found[path] = ""
            for keyword in node.keywords:
                walk(f"{path}.{keyword.arg}", keyword.value)
        elif isinstance(node, ast.List):
            found[path] = ""
            for index, element in enumerate(node.elts):
                walk(f"{path}.{index}", element)
        else:
            found[path] = _source(node)

    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            walk(node.targets[0].id, node.value)
    return found


def _source(node: ast.expr) -> str:
    """The source of a name or a constant, else a dump (Python 3.8 has no ast.unparse)."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_source(node.value)}.{node.attr}"
    return repr(node.value) if isinstance(node, ast.Constant) else ast.dump(node)


@functools.lru_cache(maxsize=1)
def templates() -> List[str]:
    """Names of XTuner's chat templates, read from its source."""
    text = (preset_editor.folder().parent / "utils" / "templates.py").read_text(encoding="utf-8")
    values = (
        node.value
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and _source(node.targets[0]) == "PROMPT_TEMPLATE"
    )
    return [str(keyword.arg) for call in values if isinstance(call, ast.Call) for keyword in call.keywords]


def method(settings: Settings) -> str:
    """The recipe's method, by default its preset's."""
    return settings.train.method or facts(settings.base).method


def kind(settings: Settings) -> str:
    """The recipe's kind of data, by default its preset's."""
    return settings.data.kind or facts(settings.base).kind


def has_images(settings: Settings) -> bool:
    """Whether the recipe trains on image-text pairs."""
    return kind(settings) == "image"


def tokenizer_settings(settings: Settings) -> Tuple[str, Dict[str, Any]]:
    """(transformers class, arguments) with which the preset loads its tokenizer. Some presets have arguments of their
    own: Mistral's pre-training uses Llama's slow tokenizer, which splits differently from the fast one.
    """
    prefix = "tokenizer."
    shared = ("type", "pretrained_model_name_or_path", "trust_remote_code", "padding_side")
    given = {k[len(prefix) :]: v for k, v in facts(settings.base).names.items() if k.startswith(prefix)}
    arguments = {key: ast.literal_eval(value) for key, value in given.items() if key not in shared}
    return given["type"].split(".")[0], arguments


def is_internlm2(name: str) -> bool:
    """Whether a preset is made for InternLM2."""
    return "internlm2" in facts(name).model.lower()


def is_measured(settings: Settings) -> bool:
    """Whether the recipe is InternLM2's 7B model by QLoRA, the only combination that was measured."""
    model = facts(settings.base).model.lower()
    return not has_images(settings) and method(settings) == "qlora" and "internlm2" in model and "7b" in model


def check(settings: Settings) -> None:
    """Raise InputWrong, with the reason, for a recipe whose preset does not run here, or not with these settings."""
    found = facts(settings.base)
    if found.refusal and not (found.refusal == OLD_TOKENIZER and settings.model.path):
        raise InputWrong(
            _("base = {preset!r} does not run here: {reason}.", preset=found.name, reason=stored(found.refusal))
        )
    if four_bits(settings) and "zero3" in settings.train.deepspeed:
        raise InputWrong(
            _(
                "train.deepspeed: ZeRO-3 splits weights, and 4-bit ones cannot be split. Use deepspeed_zero2, or "
                "train.method=lora."
            )
        )
    if "image" in (found.kind, settings.data.kind):
        llava.check(settings, found)
    chosen = settings.model
    named = "id" in chosen.model_fields_set or chosen.path or chosen.is_made
    if not named and not found.model.lower().endswith("internlm2-chat-7b"):
        raise InputWrong(
            _(
                "base = {preset!r} is made for {model}: name the model, model.id={model} model.source=huggingface "
                "model.revision=main, or a folder, model.path=…",
                preset=found.name,
                model=found.model,
            )
        )


def four_bits(settings: Settings) -> bool:
    """Whether the language model is held in 4 bits. Under a projector the preset decides, except in fp32."""
    if method(settings) != "projector":
        return method(settings) == "qlora"
    return facts(settings.base).bits == 4 and settings.train.dtype != "fp32"


def table_row(found: Facts, gib: Optional[float]) -> List[str]:
    """Name, family, method, template, kind of data, estimated memory in GiB, accepted or why not; in English."""
    how = found.method + (" int8" if found.bits == 8 else "")
    with english():  # docs/presets.tsv has it, too
        status = _("accepted; code: in the model's folder, checked there")
        if found.refusal:
            status = _("refused: {reason}", reason=found.refusal)
        elif found.code:
            status = _("accepted; code: transformers' {code}", code=found.code)
    return [
        found.name, found.family, how, found.template or "none", found.kind,
        f"{gib:.0f}" if gib else "?", status,
    ]  # fmt: skip
