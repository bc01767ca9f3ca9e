"""Renders the XTuner config: the preset's text with the recipe's edits, and nothing else.

The result is an ordinary XTuner config: open it, read it, change it, run it with bare `xtuner train` (this clone on
PYTHONPATH: InternLM2 is loaded with recipe.base_model.internlm2's classes).
"""

import math
import re
from typing import Any, Dict, Optional

from recipe.core import distributed, imports
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.settings import Settings
from recipe.xtuner import loggers, preset_editor, preset_facts
from recipe.xtuner.step_choice import checkpointing, dtype, hooked, sequences, speed

# Settings that are plain names at the top of every preset.
TOP_LEVEL = (
    *("max_length", "pack_to_max_length", "batch_size", "accumulative_counts", "max_epochs"),
    *("lr", "weight_decay", "max_norm", "warmup_ratio", "save_total_limit"),
)

PLACES = re.compile(
    r"(?m)^\+?((pretrained_model|llm|visual_encoder)_name_or_path|data_path|image_folder|pretrained_pth|evaluation_images)"
    r" = .*$"
)


# What transformers' Trainer calls them; the three presets with framework = 'huggingface'.
TRAINING_ARGS = {
    "batch_size": "per_device_train_batch_size", "accumulative_counts": "gradient_accumulation_steps",
    "max_epochs": "num_train_epochs", "lr": "learning_rate", "weight_decay": "weight_decay",
    "max_norm": "max_grad_norm",
    "warmup_ratio": "warmup_ratio", "save_total_limit": "save_total_limit", "save_steps": "save_steps",
    "log_interval": "logging_steps", "seed": "seed",
}  # fmt: skip

# XTuner's own, of the presets that have it.
DATASET = """dict(
    type=process_hf_dataset,
    dataset={load},
    tokenizer=tokenizer,
    max_length=max_length,
    dataset_map_fn=None,
    template_map_fn=dict(
        type=template_map_fn_factory, template=prompt_template),
    remove_unused_columns=True,
    shuffle_before_pack=True,
    pack_to_max_length={pack},
    use_varlen_attn=use_varlen_attn)"""

LORA = """dict(
        type=LoraConfig,
        r=64,
        lora_alpha=16,
        lora_dropout=0.1,
        bias='none',
        task_type='CAUSAL_LM')"""

NF4 = """dict(
            type=BitsAndBytesConfig,
            load_in_4bit=True,
            load_in_8bit=False,
            llm_int8_threshold=6.0,
            llm_int8_has_fp16_weight=False,
            bnb_4bit_compute_dtype=torch.float16,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_quant_type='nf4')"""

PAIRS = "llava_dataset"  # what all of LLaVA's presets call it

FULL_LR = 2e-5  # as XTuner's own presets of full fine-tuning; its adapters train at 2e-4


# Architectures of transformers whose attention XTuner replaces by PyTorch's, with the mask that it is given. From
# PyTorch 2.1.1 on transformers takes that attention itself, which it makes causal, and then gives no mask: by XTuner's
# every token would see those to come. Asked for the plain attention, transformers gives the mask to XTuner's.
MASKLESS = ("llama",)

LINEARS = ("wqkv", "wo", "w1", "w2", "w3")  # InternLM2's, but for the output head


def speed_changes(settings: Settings, tokens: int) -> Dict[str, Optional[str]]:
    """What names the fast way. Its LoRA leaves out the output head, which XTuner's trains too, and has no dropout but
    what the recipe asks for.
    """
    kind = speed(settings)
    if kind == "stock":
        if settings.train.checkpointing is None:
            return {}
        return {"model.use_activation_checkpointing": repr(settings.train.checkpointing)}
    changes: Dict[str, Optional[str]] = {
        "model.type": "'recipe.training.fast.finetune.Finetune'",
        "model.use_activation_checkpointing": repr(checkpointing(settings, tokens)),
        "model.lora.target_modules": repr(list(LINEARS)),
        "model.lora.lora_dropout": repr(settings.lora.lora_dropout or 0.0),
    }
    if distributed.count(settings) > 1:
        changes["model.graph"] = "False"  # what several cards say to each other meanwhile was not tried
    if kind == "small":
        changes["model.small"] = "True"
        if preset_facts.method(settings) == "qlora":
            changes["optim_type"] = "'bitsandbytes.optim.AdamW8bit'"
    return changes


def _own_code(found: preset_facts.Facts) -> Dict[str, Optional[str]]:
    """InternLM2's classes of ours in place of the folder's own, which transformers would run."""
    changes: Dict[str, Optional[str]] = {}
    for place, name in (("tokenizer", "InternLM2Tokenizer"), (found.llm, "InternLM2ForCausalLM")):
        changes[f"{place}.type"] = f"{name}.from_pretrained"
        changes[f"{place}.trust_remote_code"] = None
    return changes


def edits(
    settings: Settings, model: str, dataset: str, intervals: Dict[str, int], sight: Optional[Dict[str, Any]] = None,
    ours: Optional[bool] = None,
) -> Dict[str, Optional[str]]:  # fmt: skip
    """The recipe's changes to its preset, path → Python source (see `preset.edit`).

    `model` and `dataset` are paths as the config shall name them; `intervals` holds evaluation_freq and
    save_steps in iterations, where the recipe sets them; `sight` LLaVA's values (`llava.config_values`);
    `ours`: whether our own code loads the model (default: as for the preset's model).
    """
    train, found = settings.train, preset_facts.facts(settings.base)
    there = found.names
    place = "llm_name_or_path" if "llm_name_or_path" in there else "pretrained_model_name_or_path"
    changes: Dict[str, Optional[str]] = {place: repr(model)}
    if preset_facts.is_internlm2(settings.base) if ours is None else ours:
        changes.update(_own_code(found))
    changes.update(_data(settings, found, dataset))
    changes.update({name: repr(value) for name, value in (sight or {}).items()})
    wanted: Dict[str, Any] = {name: getattr(train, name) for name in TOP_LEVEL}
    wanted.update(intervals)
    if "pack_to_max_length" not in there and (found.kind != "image" or not train.pack_to_max_length):
        wanted["pack_to_max_length"] = None  # stands in the dataset itself
    if (
        wanted["lr"] is None
        and found.method != preset_facts.method(settings)
        and "full" in (found.method, train.method)
    ):
        wanted["lr"] = FULL_LR if train.method == "full" else 2e-4
    if found.framework == "huggingface":
        wanted.update(log_interval=train.log_interval, seed=train.seed)
        lengths = {name: wanted.pop(name) for name in ("max_length", "pack_to_max_length")}
        wanted = {
            **lengths,
            **{f"training_args.{TRAINING_ARGS[k]}": v for k, v in wanted.items() if k in TRAINING_ARGS},
        }
        if train.warmup_ratio is not None:
            changes["training_args.warmup_steps"] = None
    for name, value in wanted.items():
        if value is not None:
            changes["warm_up_ratio" if name == "warmup_ratio" and name not in there else name] = repr(value)
    if distributed.count(settings) > 1:  # what the recipe says of one is shared
        if found.framework == "huggingface":
            raise InputWrong(f"base = {settings.base!r} trains by transformers' Trainer, here on one GPU only: gpus=1.")
        text = preset_editor.edit(preset_editor.source(settings.base), changes)
        whole = (preset_editor.value(text, "batch_size"), preset_editor.value(text, "accumulative_counts"))
        changes["batch_size"], changes["accumulative_counts"] = map(repr, distributed.update_per_rank(settings, *whole))
    # The evaluation samples get the data's system prompt, as chat does. The hook formats it once more than
    # the data path does, so braces in it are doubled.
    system = settings.data.system if train.evaluation_system is None else train.evaluation_system
    if system and "SYSTEM" in there:
        changes["SYSTEM"] = repr(system.replace("{", "{{").replace("}", "}}"))
    if train.evaluation_inputs is not None and "evaluation_inputs" in there:
        changes["evaluation_inputs"] = repr(train.evaluation_inputs)
    if train.evaluation_max_new_tokens is not None and "custom_hooks" in there:
        changes["custom_hooks.1.max_new_tokens"] = repr(train.evaluation_max_new_tokens)
    if found.kind == "image":
        changes["custom_hooks.1.type"] = "'recipe.training.hooks.ImageChatHook'"
    if train.template:
        changes["prompt_template"] = f"PROMPT_TEMPLATE.{train.template}"
    changes.update(_method(settings, found))
    if found.code in MASKLESS:
        changes[f"{found.llm}.attn_implementation"] = "'eager'"
    for name in ("r", "lora_alpha", "lora_dropout"):
        value = getattr(settings.lora, name)
        if value is not None:
            changes[f"{found.lora}.{name}"] = repr(value)
    if found.framework != "huggingface":
        changes.update(_runner(settings))
    changes.update(_precision(settings, found))
    return changes


def _runner(settings: Settings) -> Dict[str, Optional[str]]:
    """What the recipe asks of mmengine's runner."""
    train = settings.train
    changes: Dict[str, Optional[str]] = {}
    if train.log_interval is not None:
        changes["default_hooks.logger.interval"] = repr(train.log_interval)
    if train.seed is not None:
        changes["randomness"] = f"dict(seed={train.seed}, deterministic=False)"
    if train.guard:
        changes["default_hooks.checkpoint.type"] = "'recipe.training.hooks.AtomicCheckpointHook'"
    # mmengine's own `deterministic` would end the run at anything that has no such algorithm, evaluation too.
    hooks = (
        ["DeterminismHook", "RelaxDeterminismHook"] * train.deterministic
        + ["DivergenceHook"] * train.guard
        + ["HeartbeatHook"] * (settings.nodes > 1)
    )
    if hooked(train):
        hooks += ["DedupeEvalHook", "TimingHook"]
        changes["train_cfg.type"] = "'recipe.training.loop.TrainLoop'"
    if hooks:
        changes["custom_hooks.+"] = ",\n    ".join(f"dict(type='recipe.training.hooks.{name}')" for name in hooks)
    backends = ["LocalVisBackend", "TensorboardVisBackend", *(loggers.BACKENDS[name] for name in train.loggers)]
    listed = ", ".join(f"dict(type='{name}')" for name in backends)
    changes["visualizer"] = f"dict(type='Visualizer', vis_backends=[{listed}])"
    changes.update(speed_changes(settings, math.prod(sequences(settings))))
    return changes


def _data(settings: Settings, found: preset_facts.Facts, dataset: str) -> Dict[str, Optional[str]]:
    """The recipe's data in place of the preset's: dataset.jsonl, whose rows are conversations as the template map
    wants them. Agent's and plain texts are brought into that form by the data stage, as XTuner's own maps do.
    """
    there, name = found.names, found.dataset
    if "dataset_folder" in there:
        return {"dataset_folder": repr(dataset)}
    changes: Dict[str, Optional[str]] = {found.path: repr(dataset)}
    num_proc = settings.train.map_num_proc
    if found.kind == "image":
        changes.update({f"{PAIRS}.type": "'recipe.xtuner.llava_dataset.Dataset'", f"{PAIRS}.dataset_map_fn": "None"})
        if num_proc is not None:
            changes[f"{PAIRS}.map_num_proc"] = repr(num_proc)
        if name != PAIRS:  # joined with RefCOCO's
            changes["train_dataloader.dataset"] = PAIRS
            changes.update(dict.fromkeys((name, "refcoco_dataset", "inv_refcoco_dataset", "refcoco_path")))
        return changes
    load = f"dict(type=load_dataset, path='json', data_files=dict(train={found.path}))"
    if there.get(f"{name}.type") == "process_hf_dataset":
        changes[f"{name}.dataset"] = load
        changes[f"{name}.dataset_map_fn"] = "None"
        if num_proc is not None:
            changes[f"{name}.map_num_proc"] = repr(num_proc)
    else:  # several sets joined, MOSS's own form, a set that ModelScope downloads: one set of our rows instead
        pack = "pack_to_max_length"
        if pack not in there:  # MOSS's form is never packed; ours is, unless the recipe says otherwise
            pack = repr(settings.train.pack_to_max_length is not False)
        text = DATASET.format(load=load, pack=pack)
        changes[name] = text if num_proc is None else f"{text[:-1]},\n    map_num_proc={num_proc})"
        joined = {value for key, value in there.items() if key.startswith(f"{name}.datasets.")}
        for other in sorted(joined):
            changes.update({value: None for key, value in there.items() if key.startswith(f"{other}.")
                            and value.endswith("_path") and value != found.path})  # fmt: skip
            changes[other] = None
    kind = preset_facts.kind(settings)
    if kind == "pretrain" and found.kind != "pretrain":
        # Texts are learnt as they are, and evaluation goes on with them, without question and answer.
        changes[f"{name}.template_map_fn"] = "None"
        changes["custom_hooks.1.system"] = changes["custom_hooks.1.prompt_template"] = None
    elif kind != "pretrain" and found.kind == "pretrain":
        template = settings.train.template or "default"
        changes[f"{name}.template_map_fn"] = (
            f"dict(\n        type=template_map_fn_factory, template=PROMPT_TEMPLATE.{template})"
        )
        changes["custom_hooks.1.prompt_template"] = f"PROMPT_TEMPLATE.{template}"
        if settings.data.system:
            changes["custom_hooks.1.system"] = repr(settings.data.system.replace("{", "{{").replace("}", "}}"))
    return changes


def _method(settings: Settings, found: preset_facts.Facts) -> Dict[str, Optional[str]]:
    """From the preset's method to the recipe's. Raises InputWrong where XTuner has no such way."""
    wanted = preset_facts.method(settings)
    if wanted == found.method:
        return {}
    if found.kind == "image" and {wanted, found.method} != {"lora", "qlora"}:
        raise InputWrong(
            f"train.method = {wanted!r}: {found.name} trains LLaVA's {found.method}; XTuner has presets of its own for "
            f"LLaVA's other stages ({command_line('presets llava')})."
        )
    changes: Dict[str, Optional[str]] = {}
    if wanted == "full":
        changes[found.lora] = changes[f"{found.llm}.torch_dtype"] = None
        changes[f"{found.llm}.quantization_config"] = changes[f"{found.llm}.load_in_8bit"] = None
        return changes
    if found.method == "full":
        changes[f"{found.llm}.torch_dtype"] = "torch.float16"
        changes[found.lora] = LORA
    if wanted == "qlora":
        changes[f"{found.llm}.load_in_8bit"] = None
        changes[f"{found.llm}.quantization_config"] = NF4
    elif found.method == "qlora":
        changes[f"{found.llm}.quantization_config"] = None
    return changes


def _precision(settings: Settings, found: preset_facts.Facts) -> Dict[str, Optional[str]]:
    """The compute type. Weights that are trained stay fp32, whatever the type: the wrapper's autocast has it."""
    kind, method = dtype(settings), preset_facts.method(settings)
    if kind == "fp16":  # as shipped
        return {}
    changes: Dict[str, Optional[str]] = {}
    whole = method == "full"
    if not whole and (f"{found.llm}.torch_dtype" in found.names or found.method == "full"):
        changes[f"{found.llm}.torch_dtype"] = f"torch.{'bfloat16' if kind == 'bf16' else 'float32'}"
    if found.framework == "huggingface":
        changes["training_args.fp16"] = "False"
        if kind == "bf16":
            changes["training_args.bf16"] = "True"
    elif kind == "bf16":
        changes["optim_wrapper.dtype"] = "'bfloat16'"
    else:  # fp32 has no autocast: mmengine's plain wrapper, whose class the preset does not import
        changes["optim_wrapper.type"] = "'OptimWrapper'"
        changes["optim_wrapper.loss_scale"] = changes["optim_wrapper.dtype"] = None
    if method == "projector" and not preset_facts.four_bits(settings):
        changes[f"{found.llm}.quantization_config"] = None
    if preset_facts.four_bits(settings) and kind == "bf16":
        changes[f"{found.llm}.quantization_config.bnb_4bit_compute_dtype"] = "torch.bfloat16"
    return changes


def render(
    settings: Settings, model: str, dataset: str, intervals: Dict[str, int], sight: Optional[Dict[str, Any]] = None,
    ours: Optional[bool] = None,
) -> str:  # fmt: skip
    """The config's text. Raises InputWrong if the preset has no place for one of the recipe's settings."""
    if settings.train.template and settings.train.template not in preset_facts.templates():
        raise InputWrong(
            f"train.template: XTuner has no template {settings.train.template!r}. It has: "
            f"{', '.join(preset_facts.templates())}."
        )
    try:
        text = preset_editor.edit(
            preset_editor.source(settings.base), edits(settings, model, dataset, intervals, sight, ours)
        )
    except KeyError as error:
        raise InputWrong(f"base = {settings.base!r} does not fit this recipe: {error.args[0]}.")
    for module, name in IMPORTS:
        if re.search(rf"\b{name}\b", text):
            text = preset_editor.importing(text, module, [name])
    return text


# What edits may name and a preset may not import.
IMPORTS = (
    ("", "torch"), ("datasets", "load_dataset"), ("peft", "LoraConfig"), ("transformers", "BitsAndBytesConfig"),
    ("xtuner.dataset", "process_hf_dataset"), ("xtuner.dataset.map_fns", "template_map_fn_factory"),
    ("xtuner.utils", "PROMPT_TEMPLATE"),
    ("recipe.base_model.internlm2", "InternLM2ForCausalLM"), ("recipe.base_model.internlm2", "InternLM2Tokenizer"),
)  # fmt: skip


def effective(settings: Settings) -> Any:
    """The recipe's config as mmengine reads it, for whoever needs a value before the real one is rendered."""
    imports.load()  # silently: reading the config imports them
    from mmengine.config import Config

    return Config.fromstring(render(settings, "model", "dataset", {}), file_format=".py")


def without_places(text: str) -> str:
    """A config's text, or its difference, but for the two lines that say where model and data lie."""
    return PLACES.sub("", text)


def dataset(cfg: Any) -> Any:
    """What the config trains on: the dict that XTuner builds, whatever its preset calls it."""
    return cfg.train_dataloader.dataset if "train_dataloader" in cfg else cfg.train_dataset


def template(cfg: Any) -> Any:
    """The chat template that the config trains with, XTuner's own; None where texts are learnt as they are."""
    found = dataset(cfg).get("template_map_fn")
    return found.template if found else None
