"""The edits that turn a preset into the recipe's config: path → Python source (see `preset_editor.edit`)."""

import ast
import math
from typing import Any, Dict, Optional

from recipe.core import distributed
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.settings import Settings
from recipe.core.translation import _
from recipe.xtuner import llava, loggers, preset_editor, preset_facts
from recipe.xtuner.preset_facts import Facts
from recipe.xtuner.step_choice import batch_shape, checkpointing, dtype, has_hooks, speed

Edits = Dict[str, Optional[str]]

# Settings that are names at the top level of every preset.
TOP_LEVEL = (
    *("max_length", "pack_to_max_length", "batch_size", "accumulative_counts", "max_epochs"),
    *("lr", "weight_decay", "max_norm", "warmup_ratio", "save_total_limit"),
)

# Their names in transformers' TrainingArguments, for the three presets with framework = 'huggingface'.
TRAINING_ARGS = {
    "batch_size": "per_device_train_batch_size", "accumulative_counts": "gradient_accumulation_steps",
    "max_epochs": "num_train_epochs", "lr": "learning_rate", "weight_decay": "weight_decay",
    "max_norm": "max_grad_norm",
    "warmup_ratio": "warmup_ratio", "save_total_limit": "save_total_limit", "save_steps": "save_steps",
    "log_interval": "logging_steps", "seed": "seed",
}  # fmt: skip

REFERENCE = "internlm2_chat_7b_qlora_oasst1_e3"  # its dataset, LoRA and quantization are copied into other presets

FULL_LR, ADAPTER_LR = 2e-5, 2e-4  # as in XTuner's presets

# Architectures whose attention XTuner replaces with PyTorch's, using the mask that it receives. From PyTorch 2.1.1 on
# transformers chooses its own causal attention and passes no mask, so with XTuner's every token would attend to later
# ones. With plain ("eager") attention transformers passes the mask.
MASKLESS = ("llama",)

LINEARS = ("wqkv", "wo", "w1", "w2", "w3")  # InternLM2's, without the output layer


def edits(
    settings: Settings, model: str, dataset: str, intervals: Dict[str, int], vision: Optional[Dict[str, Any]] = None,
    own_code: Optional[bool] = None,
) -> Edits:  # fmt: skip
    """All edits of the recipe. `model` and `dataset`: paths as the config names them; `intervals`: evaluation_freq and
    save_steps in iterations, where the recipe sets them; `vision`: LLaVA's values (`llava.config_values`);
    `own_code`: whether our code loads the model (default: by the preset's model).
    """
    train, found = settings.train, preset_facts.facts(settings.base)
    changes: Edits = {found.model_key: repr(model)}
    is_ours = preset_facts.is_internlm2(settings.base) if own_code is None else own_code
    if is_ours:
        changes.update(_own_code(found))
    if is_ours and has_hooks(train) and found.names.get("custom_hooks.1.type") == "EvaluateChatHook":
        changes["custom_hooks.1.type"] = "'recipe.inference.chat_hook.BatchChatHook'"
    changes.update(data_edits(settings, found, dataset))
    changes.update({name: repr(value) for name, value in (vision or {}).items()})
    changes.update(_top_level(settings, found, intervals))
    if distributed.count(settings) > 1:
        changes.update(_share_of_each_rank(settings, found, changes))
    changes.update(_evaluation(settings, found))
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


def _reference(path: str) -> str:
    return preset_editor.part(preset_editor.source(REFERENCE), path)


def _own_code(found: Facts) -> Edits:
    """Our InternLM2 classes instead of the folder's own, which transformers would run."""
    changes: Edits = {}
    for place, name in (("tokenizer", "InternLM2Tokenizer"), (found.llm, "InternLM2ForCausalLM")):
        changes[f"{place}.type"] = f"{name}.from_pretrained"
        changes[f"{place}.trust_remote_code"] = None
    return changes


def data_edits(settings: Settings, found: Facts, dataset: str) -> Edits:
    """Our dataset.jsonl instead of the preset's data. Its rows are conversations in the form that the template map
    expects; the data stage converts other data to it with XTuner's own maps.
    """
    if "dataset_folder" in found.names:
        return {"dataset_folder": repr(dataset)}
    if found.kind == "image":
        return llava.data_edits(settings, found, dataset)
    changes: Edits = {found.path: repr(dataset)}
    name, num_proc = found.dataset, settings.train.map_num_proc
    load = f"dict(type=load_dataset, path='json', data_files=dict(train={found.path}))"
    if found.names.get(f"{name}.type") != "process_hf_dataset":
        # Several joined datasets, MOSS's own format, a dataset from ModelScope: one dataset replaces all of it.
        changes[name] = _reference("train_dataset")
        if "pack_to_max_length" not in found.names:  # MOSS's format is never packed; ours is by default
            changes[f"{name}.pack_to_max_length"] = repr(settings.train.pack_to_max_length is not False)
        for other in sorted({value for key, value in found.names.items() if key.startswith(f"{name}.datasets.")}):
            changes.update({value: None for key, value in found.names.items() if key.startswith(f"{other}.")
                            and value.endswith("_path") and value != found.path})  # fmt: skip
            changes[other] = None
    changes[f"{name}.dataset"] = load
    changes[f"{name}.dataset_map_fn"] = "None"
    if num_proc is not None:
        changes[f"{name}.map_num_proc"] = repr(num_proc)
    changes.update(_template(settings, found))
    return changes


def _template(settings: Settings, found: Facts) -> Edits:
    """The chat template, where the recipe's data are plain texts and the preset's conversations, or the reverse."""
    kind, name = preset_facts.kind(settings), found.dataset
    changes: Edits = {}
    if kind == "pretrain" and found.kind != "pretrain":
        # Texts are learned as they are, and evaluation continues texts instead of answering.
        changes[f"{name}.template_map_fn"] = "None"
        changes["custom_hooks.1.system"] = changes["custom_hooks.1.prompt_template"] = None
    elif kind != "pretrain" and found.kind == "pretrain":
        template = f"PROMPT_TEMPLATE.{settings.train.template or 'default'}"
        changes[f"{name}.template_map_fn"] = f"dict(\n        type=template_map_fn_factory, template={template})"
        changes["custom_hooks.1.prompt_template"] = template
        if settings.data.system:
            changes["custom_hooks.1.system"] = _escaped(settings.data.system)
    return changes


def _escaped(system: str) -> str:
    """A system prompt for the evaluation hook, which formats it once more than the data path does."""
    return repr(system.replace("{", "{{").replace("}", "}}"))


def _top_level(settings: Settings, found: Facts, intervals: Dict[str, int]) -> Edits:
    """The hyperparameters at a preset's top level, or in the arguments of transformers' Trainer."""
    train, changes = settings.train, {}  # type: Any, Edits
    wanted: Dict[str, Any] = {name: getattr(train, name) for name in TOP_LEVEL}
    wanted.update(intervals)
    if "pack_to_max_length" not in found.names and (found.kind != "image" or not train.pack_to_max_length):
        wanted["pack_to_max_length"] = None  # the dataset itself has it
    changed = found.method != preset_facts.method(settings)
    if wanted["lr"] is None and changed and "full" in (found.method, train.method):
        wanted["lr"] = FULL_LR if train.method == "full" else ADAPTER_LR
    if found.framework == "huggingface":
        wanted.update(log_interval=train.log_interval, seed=train.seed)
        arguments = {f"training_args.{TRAINING_ARGS[k]}": v for k, v in wanted.items() if k in TRAINING_ARGS}
        wanted = {**{name: wanted[name] for name in ("max_length", "pack_to_max_length")}, **arguments}
        if train.warmup_ratio is not None:
            changes["training_args.warmup_steps"] = None
    for name, value in wanted.items():
        if value is not None:
            key = "warm_up_ratio" if name == "warmup_ratio" and name not in found.names else name
            changes[key] = repr(value)
    return changes


def _share_of_each_rank(settings: Settings, found: Facts, changes: Edits) -> Edits:
    """Batch size and accumulation of each rank: their share of what the recipe sets for one GPU."""
    if found.framework == "huggingface":
        raise InputWrong(
            _("base = {preset!r} uses transformers' Trainer, which runs on one GPU here: gpus=1.", preset=settings.base)
        )
    text = preset_editor.edit(preset_editor.source(settings.base), changes)
    names = ("batch_size", "accumulative_counts")
    share = distributed.update_per_rank(settings, *(ast.literal_eval(preset_editor.part(text, name)) for name in names))
    return dict(zip(names, map(repr, share)))


def _evaluation(settings: Settings, found: Facts) -> Edits:
    """The samples that XTuner's hook generates, with the system prompt of the data unless the recipe sets another."""
    train = settings.train
    changes: Edits = {}
    system = settings.data.system if train.evaluation_system is None else train.evaluation_system
    if system and "SYSTEM" in found.names:
        changes["SYSTEM"] = _escaped(system)
    if train.questions and "evaluation_inputs" in found.names:
        changes["evaluation_inputs"] = repr(train.questions)
    if train.evaluation_max_new_tokens is not None and "custom_hooks" in found.names:
        changes["custom_hooks.1.max_new_tokens"] = repr(train.evaluation_max_new_tokens)
    return changes


def _method(settings: Settings, found: Facts) -> Edits:
    """From the preset's method to the recipe's. Raises InputWrong if XTuner does not support it."""
    wanted = preset_facts.method(settings)
    if wanted == found.method:
        return {}
    if found.kind == "image" and {wanted, found.method} != {"lora", "qlora"}:
        raise InputWrong(
            _(
                "train.method = {method!r}: {preset} is LLaVA's stage by {own}; XTuner has separate presets for the "
                "other stages ({command}).",
                method=wanted,
                preset=found.name,
                own=found.method,
                command=command_line("presets", "llava"),
            )
        )
    changes: Edits = {}
    if wanted == "full":
        changes[found.lora] = changes[f"{found.llm}.torch_dtype"] = None
        changes[f"{found.llm}.quantization_config"] = changes[f"{found.llm}.load_in_8bit"] = None
        return changes
    if found.method == "full":
        changes[f"{found.llm}.torch_dtype"] = "torch.float16"
        changes[found.lora] = _reference("model.lora")
    if wanted == "qlora":
        changes[f"{found.llm}.load_in_8bit"] = None
        changes[f"{found.llm}.quantization_config"] = _reference("model.llm.quantization_config")
    elif found.method == "qlora":
        changes[f"{found.llm}.quantization_config"] = None
    return changes


def _runner(settings: Settings) -> Edits:
    """Settings of mmengine's runner: logging, seed, hooks, loop, loggers."""
    train = settings.train
    changes: Edits = {}
    if train.log_interval is not None:
        changes["default_hooks.logger.interval"] = repr(train.log_interval)
    if train.seed is not None:
        changes["randomness"] = f"dict(seed={train.seed}, deterministic=False)"
    if train.guard:
        changes["default_hooks.checkpoint.type"] = "'recipe.training.hooks.AtomicCheckpointHook'"
    # mmengine's `deterministic` would stop the run at any operation without a deterministic algorithm.
    hooks = (
        ["DeterminismHook", "RelaxDeterminismHook"] * train.deterministic
        + ["DivergenceHook"] * train.guard
        + ["HeartbeatHook"] * (settings.nodes > 1)
    )
    if has_hooks(train):
        hooks += ["DedupeEvalHook", "TimingHook"]
        changes["train_cfg.type"] = "'recipe.training.loop.TrainLoop'"
    if hooks:
        changes["custom_hooks.+"] = ",\n    ".join(f"dict(type='recipe.training.hooks.{name}')" for name in hooks)
    backends = ["LocalVisBackend", "TensorboardVisBackend", *(loggers.BACKENDS[name] for name in train.loggers)]
    listed = ", ".join(f"dict(type='{name}')" for name in backends)
    changes["visualizer"] = f"dict(type='Visualizer', vis_backends=[{listed}])"
    changes.update(speed_edits(settings, math.prod(batch_shape(settings))))
    return changes


def speed_edits(settings: Settings, tokens: int) -> Edits:
    """The edits for train.speed. The fast step's LoRA leaves out the output layer, which XTuner's trains, and has no
    dropout unless the recipe sets one. `tokens`: of an iteration.
    """
    kind = speed(settings)
    if kind == "stock":
        if settings.train.checkpointing is None:
            return {}
        return {"model.use_activation_checkpointing": repr(settings.train.checkpointing)}
    changes: Edits = {
        "model.type": "'recipe.training.fast.finetune.Finetune'",
        "model.use_activation_checkpointing": repr(checkpointing(settings, tokens)),
        "model.lora.target_modules": repr(list(LINEARS)),
        "model.lora.lora_dropout": repr(settings.lora.lora_dropout or 0.0),
    }
    if settings.nodes > 1:
        changes["model.graph"] = "False"  # measured on two GPUs of one machine, not across machines
    if kind == "small":
        changes["model.small"] = "True"
        if preset_facts.method(settings) == "qlora":
            changes["optim_type"] = "'bitsandbytes.optim.AdamW8bit'"
    return changes


def _precision(settings: Settings, found: Facts) -> Edits:
    """The compute dtype. Trained weights stay fp32; autocast computes in the dtype."""
    kind, method = dtype(settings), preset_facts.method(settings)
    if kind == "fp16":  # as shipped
        return {}
    changes: Edits = {}
    if method != "full" and (f"{found.llm}.torch_dtype" in found.names or found.method == "full"):
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
