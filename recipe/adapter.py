"""Checkpoint to PEFT adapter: takes the LoRA tensors and names them as PEFT does. No base model, no GPU.

Equal to `xtuner convert pth_to_hf`, which loads the whole base model to do the same.
"""

import re
from pathlib import Path
from typing import Any, Dict

from . import libraries, model
from .errors import RunFailed
from .stages import Run

# XTuner: llm.base_model.model.….lora_A.default.weight → PEFT: base_model.model.….lora_A.weight
NAME = re.compile(r"^llm\.(.+\.lora_[AB])\.default\.(weight)$")


def tensors(checkpoint: Path) -> Dict[str, Any]:
    """The checkpoint's adapter weights by PEFT's names, fp32 as trained, sorted by name.

    `checkpoint` is mmengine's file or DeepSpeed's folder. Raises RunFailed if it holds no LoRA weights.
    """
    import torch

    if checkpoint.is_dir():
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        saved = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), checkpoint.name)
    else:
        saved = torch.load(str(checkpoint), map_location="cpu")["state_dict"]
    found = {f"{m[1]}.{m[2]}": saved[m[0]].float() for m in map(NAME.match, saved) if m}
    if not found:
        raise RunFailed(f"The checkpoint {checkpoint} holds no LoRA weights.")
    return dict(sorted(found.items()))


def reads(run: Run) -> Dict[str, Any]:
    return {
        "checkpoint": run.root / run.figures("train")["checkpoint"],
        "config": run.config,
        "code": Path(__file__),
    }


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write adapter/ (adapter_config.json, adapter_model.safetensors in fp16, as XTuner saves it).

    Figures: tensors, parameters, and what fp16 does to them: `vanished`, the share of trained lora_B values
    that are not zero in fp32 and are in fp16.
    """
    libraries.load()
    from mmengine.config import Config
    from peft import LoraConfig
    from safetensors.torch import save_file

    trained = tensors(run.root / run.figures("train")["checkpoint"])
    lora = Config.fromfile(str(run.config)).model.lora
    targets = sorted({name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained})
    place = out / "adapter"
    LoraConfig(
        base_model_name_or_path=run.shown(model.folder(run)), inference_mode=True, target_modules=targets,
        r=lora.r, lora_alpha=lora.lora_alpha, lora_dropout=lora.lora_dropout, bias=lora.bias, task_type=lora.task_type,
    ).save_pretrained(str(place))  # fmt: skip
    half = {name: weight.half().contiguous() for name, weight in trained.items()}
    save_file(half, str(place / "adapter_model.safetensors"), metadata={"format": "pt"})
    before = sum(int((w != 0).sum()) for name, w in trained.items() if ".lora_B." in name)
    after = sum(int((w != 0).sum()) for name, w in half.items() if ".lora_B." in name)
    return {
        "tensors": len(trained),
        "parameters": sum(w.numel() for w in trained.values()),
        "targets": targets,
        "largest_b": max(float(w.abs().max()) for name, w in trained.items() if ".lora_B." in name),
        "vanished": 1 - after / before if before else 1.0,
    }
