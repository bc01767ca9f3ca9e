"""Renders the XTuner config: the preset's text with the recipe's edits, and nothing else.

The result is an ordinary XTuner config: open it, read it, change it, run it with bare `xtuner train`.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, Optional

from . import cost, loggers, preset, ranks
from .errors import InputWrong
from .settings import Settings
from .stages import Run, gpus

# Settings that are plain names at the top of every preset.
TOP_LEVEL = (
    *("max_length", "pack_to_max_length", "batch_size", "accumulative_counts", "max_epochs"),
    *("lr", "weight_decay", "max_norm", "warmup_ratio", "save_total_limit"),
)
PLACES = re.compile(r"(?m)^\+?(pretrained_model_name_or_path|data_path) = .*$")


def dtype(settings: Settings) -> str:
    """The compute type: as set, or for "auto" bf16 where the first GPU has it (capability 8.0), else fp16.

    Without any GPU "auto" is bf16: then the config is being looked at, not trained with.
    """
    if settings.train.dtype != "auto":
        return settings.train.dtype
    found = gpus()
    return "fp16" if found and float(found[0]["capability"]) < 8 else "bf16"


LINEARS = ("wqkv", "wo", "w1", "w2", "w3")  # InternLM2's, but for the output head


def speed(settings: Settings) -> str:
    """stock, fast or small: as set, or for "auto" what the first GPU allows; without any it is fast, as for dtype.

    fast and small know InternLM2's presets alone. "auto" takes them in bf16 only: no card was tried in fp16.
    """
    known = settings.base.startswith("internlm2_")
    if settings.train.speed != "auto":
        if settings.train.speed != "stock" and not known:
            raise InputWrong(
                f"train.speed={settings.train.speed} knows InternLM2 alone, not base = {settings.base!r}: "
                f"train.speed=stock trains everything that XTuner does."
            )
        return settings.train.speed
    if not known or dtype(settings) != "bf16":
        return "stock"
    found = gpus()
    return "small" if found and found[0]["memory_mib"] < cost.SMALL else "fast"


def deepspeed(settings: Settings) -> str:
    """train.deepspeed, but none for "small": its buffers are what there is no memory for."""
    return "" if speed(settings) == "small" else settings.train.deepspeed


def checkpointing(settings: Settings, tokens: int) -> bool:
    """Whether layers are computed again for their gradients; `tokens`: of an iteration."""
    if settings.train.checkpointing is not None:
        return settings.train.checkpointing
    found = gpus()
    if speed(settings) != "fast" or not found:
        return True
    return cost.memory_mib(tokens, found[0]["name"], "kept") > 0.85 * found[0]["memory_mib"]


def way(settings: Settings, tokens: int) -> str:
    """How an iteration of `tokens` is reckoned, in measured.toml's words: stock, fast, kept or small."""
    kind = speed(settings)
    return "kept" if kind == "fast" and not checkpointing(settings, tokens) else kind


def _speed(settings: Settings, tokens: int) -> Dict[str, Optional[str]]:
    """What names the fast way. Its LoRA leaves out the output head, which XTuner's trains too, and has no dropout but
    what the recipe asks for.
    """
    kind = speed(settings)
    if kind == "stock":
        if settings.train.checkpointing is None:
            return {}
        return {"model.use_activation_checkpointing": repr(settings.train.checkpointing)}
    changes: Dict[str, Optional[str]] = {
        "model.type": "'recipe.fast.finetune.Finetune'",
        "model.use_activation_checkpointing": repr(checkpointing(settings, tokens)),
        "model.lora.target_modules": repr(list(LINEARS)),
        "model.lora.lora_dropout": repr(settings.lora.lora_dropout or 0.0),
    }
    if kind == "small":
        changes["model.small"] = "True"
        if settings.train.method == "qlora":
            changes["optim_type"] = "'bitsandbytes.optim.AdamW8bit'"
    return changes


def edits(settings: Settings, model: str, dataset: str, intervals: Dict[str, int]) -> Dict[str, Optional[str]]:
    """The recipe's changes to its preset, path → Python source (see `preset.edit`).

    `model` and `dataset` are paths as the config shall name them; `intervals` holds evaluation_freq and
    save_steps in iterations, where the recipe sets them.
    """
    train = settings.train
    changes: Dict[str, Optional[str]] = {
        "pretrained_model_name_or_path": repr(model),
        "data_path": repr(dataset),
    }
    for name in TOP_LEVEL:
        value = getattr(train, name)
        if value is not None:
            changes[name] = repr(value)
    if ranks.count(settings) > 1:  # what the recipe says of one is shared
        text = preset.edit(preset.source(settings.base), changes)
        whole = (preset.value(text, "batch_size"), preset.value(text, "accumulative_counts"))
        changes["batch_size"], changes["accumulative_counts"] = map(repr, ranks.shared(settings, *whole))
    for name, value in intervals.items():
        changes[name] = repr(value)
    # The evaluation samples get the data's system prompt, as chat does. The hook formats it once more than
    # the data path does, so braces in it are doubled.
    system = settings.data.system if train.evaluation_system is None else train.evaluation_system
    if system:
        changes["SYSTEM"] = repr(system.replace("{", "{{").replace("}", "}}"))
    if train.evaluation_inputs is not None:
        changes["evaluation_inputs"] = repr(train.evaluation_inputs)
    if train.evaluation_max_new_tokens is not None:
        changes["custom_hooks.1.max_new_tokens"] = repr(train.evaluation_max_new_tokens)
    changes["train_dataset.dataset"] = "dict(type=load_dataset, path='json', data_files=dict(train=data_path))"
    changes["train_dataset.dataset_map_fn"] = "None"
    if train.map_num_proc is not None:
        changes["train_dataset.map_num_proc"] = repr(train.map_num_proc)
    for name in ("r", "lora_alpha", "lora_dropout"):
        value = getattr(settings.lora, name)
        if value is not None:
            changes[f"model.lora.{name}"] = repr(value)
    if train.log_interval is not None:
        changes["default_hooks.logger.interval"] = repr(train.log_interval)
    if train.seed is not None:
        changes["randomness"] = f"dict(seed={train.seed}, deterministic=False)"
    if train.guard:
        changes["default_hooks.checkpoint.type"] = "'recipe.hooks.Checkpoint'"
    # mmengine's own `deterministic` would end the run at anything that has no such algorithm, evaluation too.
    hooks = ["Repeat", "Lenient"] * train.deterministic + ["Guard"] * train.guard + ["Beat"] * (settings.nodes > 1)
    if hooks:
        changes["custom_hooks.+"] = ",\n    ".join(f"dict(type='recipe.hooks.{name}')" for name in hooks)
    backends = ["LocalVisBackend", "TensorboardVisBackend", *(loggers.BACKENDS[name] for name in train.loggers)]
    listed = ", ".join(f"dict(type='{name}')" for name in backends)
    changes["visualizer"] = f"dict(type='Visualizer', vis_backends=[{listed}])"
    if train.method == "lora":
        changes["model.llm.quantization_config"] = None
    changes.update(_precision(dtype(settings), train.method))
    changes.update(_speed(settings, (train.batch_size or 1) * (train.max_length or 2048)))
    return changes


def _precision(kind: str, method: str) -> Dict[str, Optional[str]]:
    if kind == "fp16":  # as shipped
        return {}
    if kind == "bf16":
        changes: Dict[str, Optional[str]] = {
            "model.llm.torch_dtype": "torch.bfloat16",
            "optim_wrapper.dtype": "'bfloat16'",
        }
        if method == "qlora":
            changes["model.llm.quantization_config.bnb_4bit_compute_dtype"] = "torch.bfloat16"
        return changes
    # fp32 has no autocast: mmengine's plain wrapper, whose class the preset does not import
    return {
        "model.llm.torch_dtype": "torch.float32",
        "optim_wrapper.type": "'OptimWrapper'",
        "optim_wrapper.loss_scale": None,
        "optim_wrapper.dtype": None,
    }


def render(settings: Settings, model: str, dataset: str, intervals: Dict[str, int]) -> str:
    """The config's text. Raises InputWrong if the preset has no place for one of the recipe's settings."""
    try:
        return preset.edit(preset.source(settings.base), edits(settings, model, dataset, intervals))
    except KeyError as error:
        raise InputWrong(f"base = {settings.base!r} does not fit this recipe: {error.args[0]}.")


def effective(settings: Settings) -> Any:
    """The recipe's config as mmengine reads it, for whoever needs a value before the real one is rendered."""
    from mmengine.config import Config

    return Config.fromstring(render(settings, "model", "dataset", {}), file_format=".py")


def without_places(text: str) -> str:
    """A config's text, or its difference, but for the two lines that say where model and data lie."""
    return PLACES.sub("", text)


def reads(run: Run) -> Dict[str, Any]:
    from . import model

    return {
        "settings": run.settings.model_dump(
            exclude={
                "data": {"files", "skip_blank", "eval_share", "eval_files"},
                "adapter": True,
                "merge": True,
                "eval": True,
                "export": True,
                "plan": True,
                "cluster": True,
            }
        ),
        "dtype": dtype(run.settings),
        "speed": _speed(run.settings, 0),
        "plan": run.plan,
        "model": run.shown(model.folder(run)),
        "dataset": run.shown(run.dataset),
        "code": Path(__file__),
        "editor": Path(preset.__file__),
    }


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write config.py and config.diff (against the preset). Figures: lines changed, LoRA settings, stop words."""
    from . import model

    plan = json.loads(run.plan.read_text(encoding="utf-8"))
    text = render(run.settings, run.shown(model.folder(run)), run.shown(run.dataset), plan["intervals"])
    diff = preset.difference(preset.source(run.settings.base), text, f"{run.settings.base}.py", "config.py")
    (out / "config.py").write_text(text, encoding="utf-8")
    (out / "config.diff").write_text(diff, encoding="utf-8")
    from mmengine.config import Config

    cfg = Config.fromfile(str(out / "config.py"))
    added = sum(line.startswith("+") and not line.startswith("+++") for line in diff.splitlines())
    return {
        "base": run.settings.base,
        "lines_changed": added,
        "dtype": dtype(run.settings),
        "speed": speed(run.settings),
        # What adapter and merge need of the config, without loading the libraries that reading it takes.
        "lora": {name: value for name, value in (cfg.model.get("lora") or {}).items() if name != "type"},
        "stop_words": list(cfg.prompt_template.get("STOP_WORDS", [])),
    }
