"""What each of XTuner's presets means, read from its text: family, method, chat template, kind of data; and whether it
runs on this stack.

Nothing is imported and nothing built, so that all 408 are read in seconds.
"""

import ast
import dataclasses
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.settings import Settings
from recipe.xtuner import preset_editor

# Architectures that are part of transformers: model names → its module there, and since when.
OWN_CODE = (
    (r"gemma", "gemma", "4.38"),
    (r"qwen1\.5", "qwen2", "4.37"),
    (r"mixtral", "mixtral", "4.36"),
    (r"mistral|zephyr", "mistral", "4.34"),
    (r"llama|vicuna|yi-|deepseek-coder", "llama", "4.28"),
    (r"starcoder", "gpt_bigcode", "4.27"),
)
# Billions of parameters where the name does not tell them.
SIZES = {"8x7b": 46.7, "moe-16b": 16.4, "starcoder": 15.5, "chatglm2-6b": 6.24, "chatglm3-6b": 6.24}
FLASH = "it computes attention with the package flash_attn, which this environment does not have"


@dataclasses.dataclass(frozen=True)
class Facts:
    """`method`: qlora, lora, full, or projector (LLaVA's first stage); `bits` of the frozen weights (4, 8, 16; 32 where
    they are trained). `kind`: instruction, pretrain, agent or image. `dataset`: the name of the dict that is trained
    on, `path`: the name that holds its place, "" where there is none. `why`: why it does not run here, "" if it does.
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
    names: Dict[str, str]  # every top-level name and every key below it → its source
    code: str  # where the architecture's code comes from: transformers' module, or "" for the model's own folder
    why: str

    @property
    def llm(self) -> str:
        """The path of the language model's dict."""
        return "model" if self.framework == "huggingface" else "model.llm"

    @property
    def lora(self) -> str:
        """The path of LoRA's dict, whether it is there or not."""
        if self.kind == "image":
            return "model.llm_lora"
        return "lora" if self.framework == "huggingface" else "model.lora"

    @property
    def eyes(self) -> str:
        """The visual encoder that LLaVA's presets name."""
        return self.names["visual_encoder_name_or_path"].strip("'")

    @property
    def billions(self) -> float:
        """Parameters of the language model, 10^9, by its name."""
        return size_of(self.model)


def size_of(model: str) -> float:
    """Parameters, 10^9, that a model's name tells; 0 for none."""
    lowered = model.lower().replace("_", ".")
    told = next((size for word, size in SIZES.items() if word in lowered), 0.0)
    found = re.findall(r"(?<![\dx.])(\d+(?:\.\d+)?)b\b", lowered)
    return told or (float(found[0]) if found else 0.0)


@functools.lru_cache(maxsize=None)
def facts(name: str) -> Facts:
    """Raises InputWrong for a name that XTuner does not have."""
    names = flat(preset_editor.source(name))
    text = {key: value.strip("'\"") for key, value in names.items()}
    model = text.get("pretrained_model_name_or_path", text.get("llm_name_or_path", ""))
    framework = text.get("framework", "mmengine")
    llm = "model" if framework == "huggingface" else "model.llm"
    image = text.get("model.type") == "LLaVAModel"
    dataset = names.get("train_dataloader.dataset", "train_dataset")
    maps = [value for key, value in names.items() if key.endswith(".dataset_map_fn")]
    kind = (
        "image" if image
        else "pretrain" if "pretrain_map_fn" in maps
        else "agent" if "msagent_react_map_fn" in maps
        else "instruction"
    )  # fmt: skip
    four = f"{llm}.quantization_config.type" in names
    eight = text.get(f"{llm}.load_in_8bit") == "True"
    lora = next((key for key in ("model.lora.type", "model.llm_lora.type", "lora.type") if key in names), "")
    if lora:
        method = "qlora" if four else "lora"
    else:
        method = "projector" if image and text.get("model.freeze_llm") == "True" else "full"
    known = next((entry for entry in OWN_CODE if re.search(entry[0], model.lower())), None)
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
        dataset=dataset,
        path="data_path" if "data_path" in names else paths[0] if paths else "",
        names=names,
        code=known[1] if known else "",
        why=_why(text, framework, known, model),
    )


def _why(text: Dict[str, str], framework: str, known: Any, model: str) -> str:
    if text.get("train_dataset.type") == "build_packed_dataset":
        return (
            "it reads folders that InternLM's own pipeline has tokenized, not rows or texts, and "
            f"{FLASH}; any other preset of the model reads yours"
        )
    if text.get("use_varlen_attn") == "True" or "flash_attention_2" in text.values():
        return FLASH
    if framework == "huggingface":
        return (
            "transformers' Trainer runs it and leaves other checkpoints than the next stages read; the preset of the "
            "same name without _hf trains the same by mmengine, and `xtuner train` runs this config as it is rendered"
        )
    if known and not _has(known[1]):
        return (
            f"its architecture came with transformers {known[2]}, and this stack has 4.36.2, the version of XTuner "
            "0.1.14's day"
        )
    if "baichuan" in model.lower():
        return OLD_TOKENIZER
    return ""


OLD_TOKENIZER = (
    "the tokenizer's code in the published folder fails from transformers 4.34 on (it asks for its vocabulary before "
    "it has read it); a copy whose class calls super().__init__ last runs, named with model.path=…"
)


@functools.lru_cache(maxsize=None)
def _has(module: str) -> bool:
    """Whether this transformers carries an architecture; looked up without importing it."""
    spec = importlib.util.find_spec("transformers")
    return bool(spec and spec.origin and (Path(spec.origin).parent / "models" / module).is_dir())


def flat(text: str) -> Dict[str, str]:
    """Every name and key of a config → its source; "" for a dict(...) or a list, whose parts follow."""
    found: Dict[str, str] = {}

    def walk(path: str, node: Any) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            found[path] = ""
            for keyword in node.keywords:
                walk(f"{path}.{keyword.arg}", keyword.value)
        elif isinstance(node, ast.List):
            found[path] = ""
            for index, element in enumerate(node.elts):
                walk(f"{path}.{index}", element)
        else:
            found[path] = _said(node)

    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            walk(node.targets[0].id, node.value)  # type: ignore[attr-defined]
    return found


def _said(node: Any) -> str:
    """A value's source, as far as it is a name or a constant (ast.unparse is not in Python 3.8)."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_said(node.value)}.{node.attr}"
    return repr(node.value) if isinstance(node, ast.Constant) else ast.dump(node)


@functools.lru_cache(maxsize=1)
def templates() -> List[str]:
    """Names of XTuner's chat templates, read from its source."""
    text = (preset_editor.folder().parent / "utils" / "templates.py").read_text(encoding="utf-8")
    call = next(
        node.value for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PROMPT_TEMPLATE"
    )  # fmt: skip
    return [str(keyword.arg) for keyword in call.keywords]  # type: ignore[attr-defined]


def method(settings: Settings) -> str:
    """The recipe's method, or what its preset means."""
    return settings.train.method or facts(settings.base).method


def kind(settings: Settings) -> str:
    """The recipe's kind of data, or what its preset means."""
    return settings.data.kind or facts(settings.base).kind


def pictures(settings: Settings) -> bool:
    """Whether it trains on pairs of images and texts."""
    return kind(settings) == "image"


def tokenizer_settings(settings: Settings) -> Tuple[str, Dict[str, Any]]:
    """transformers' class and the arguments with which the preset loads a tokenizer (Mistral's pre-training takes
    Llama's slow one, which cuts otherwise than the fast one; Qwen's end token, ChatGLM's special tokens).
    """
    names = facts(settings.base).names
    own = ("type", "pretrained_model_name_or_path", "trust_remote_code", "padding_side")
    told = {key[len("tokenizer.") :]: value for key, value in names.items() if key.startswith("tokenizer.")}
    more = {key: ast.literal_eval(value) for key, value in told.items() if key not in own}
    return told["type"].split(".")[0], more


def is_internlm2(name: str) -> bool:
    """Whether a preset is made for InternLM2."""
    return "internlm2" in facts(name).model.lower()


def is_measured(settings: Any) -> bool:
    """Whether it is InternLM2's 7B model by QLoRA, which is what was measured."""
    shipped = facts(settings.base).model.lower()
    if pictures(settings):
        return False
    return method(settings) == "qlora" and "internlm2" in shipped and "7b" in shipped


def check(settings: Settings) -> None:
    """Raise InputWrong, with the reason, for a recipe whose preset does not run here, or not in this way."""
    found = facts(settings.base)
    if found.why and not (found.why == OLD_TOKENIZER and settings.model.path):
        raise InputWrong(f"base = {found.name!r} does not run here: {found.why}.")
    if four_bits(settings) and "zero3" in settings.train.deepspeed:
        raise InputWrong(
            "train.deepspeed: ZeRO-3 cuts weights into parts, and 4-bit ones cannot be cut. Take deepspeed_zero2, or "
            "train.method=lora."
        )
    if "image" in (found.kind, settings.data.kind):
        _check_pairs(settings, found)
    chosen = settings.model
    named = "id" in chosen.model_fields_set or chosen.path or chosen.source == "tiny"
    if not named and not found.model.lower().endswith("internlm2-chat-7b"):
        raise InputWrong(
            f"base = {found.name!r} is made for {found.model}: name the model, model.id={found.model} "
            "model.source=huggingface model.revision=main, or a folder, model.path=…"
        )


def _check_pairs(settings: Settings, found: Facts) -> None:
    """What a recipe of images and texts must say, and what there is not for it. Raises InputWrong."""
    wanted, chosen, train = settings.data.kind, settings.model, settings.train
    if wanted and found.kind != wanted:
        raise InputWrong(
            f"data.kind: {found.name} trains on {found.kind} data and cannot take {wanted} data. Images take one of "
            f"LLaVA's presets ({command_line('presets llava')})."
        )
    if not chosen.visual_encoder:
        raise InputWrong(
            f"base = {found.name!r} sees by {found.eyes}: name its folder, or what the model's hub calls it: "
            f"model.visual_encoder={found.eyes} (Hugging Face; ModelScope's is "
            f"{found.eyes.replace('openai/', 'AI-ModelScope/')})."
        )
    if ("pretrained_pth" in found.names) != bool(chosen.pretrained_pth):
        if chosen.pretrained_pth:
            raise InputWrong(
                f"model.pretrained_pth: base = {found.name!r} is the stage that trains the projector anew."
            )
        raise InputWrong(
            f"base = {found.name!r} goes on from the projector that the first stage trained: name its run's folder or "
            "checkpoint, model.pretrained_pth=output/…, or begin with a random one, model.pretrained_pth=none."
        )
    shipped = sum(key.startswith("evaluation_inputs.") for key in found.names)
    asked = len(train.evaluation_inputs or ()) or shipped
    if train.evaluation_images and len(train.evaluation_images) not in (1, asked):
        raise InputWrong(
            f"train.evaluation_images: one image for all of the {asked} evaluation_inputs, or one for each; there "
            f"are {len(train.evaluation_images)}."
        )


def four_bits(settings: Settings) -> bool:
    """Whether the language model is held in 4 bits; under a projector it is as the preset has it, but in fp32."""
    if method(settings) != "projector":
        return method(settings) == "qlora"
    return facts(settings.base).bits == 4 and settings.train.dtype != "fp32"


def shown(facts_of: Facts, gib: Optional[float]) -> List[str]:
    """A row of the table: name, family, method, template, kind of data, expected memory, accepted or why not."""
    how = facts_of.method + (" int8" if facts_of.bits == 8 else "")
    code = f"code: transformers' {facts_of.code}" if facts_of.code else "code: in the model's folder, checked there"
    said = facts_of.why
    return [
        facts_of.name, facts_of.family, how, facts_of.template or "none", facts_of.kind,
        f"{gib:.0f}" if gib else "?", f"refused: {said}" if said else f"accepted; {code}",
    ]  # fmt: skip
