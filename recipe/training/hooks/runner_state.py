"""Reads the training state that hooks need, from mmengine's runner or from DeepSpeed's engine inside it."""

import math
from typing import Any, Optional


def accumulation_steps(runner: Any) -> int:
    """Iterations per optimizer update."""
    engine = _deepspeed_engine(runner)
    if hasattr(engine, "gradient_accumulation_steps"):
        return int(engine.gradient_accumulation_steps())
    return int(runner.optim_wrapper._accumulative_counts)


def gradient_norm(runner: Any) -> Optional[float]:
    """Norm of this iteration's gradient before clipping; None if the iteration made no update."""
    if (runner.iter + 1) % accumulation_steps(runner):
        return None
    engine = _deepspeed_engine(runner)
    if hasattr(engine, "get_global_grad_norm"):
        # When an update overflows, DeepSpeed skips it and still reports the norm of the one before, or 0.
        if getattr(engine.optimizer, "overflow", False):
            return math.inf
        norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm)
    log = runner.message_hub.log_scalars.get("train/grad_norm")
    return None if log is None else float(log.current())


def is_loss_scale_at_minimum(runner: Any) -> bool:
    """Whether DeepSpeed would end the run at the next overflow."""
    scaler: Any = getattr(getattr(_deepspeed_engine(runner), "optimizer", None), "loss_scaler", None)
    return hasattr(scaler, "min_scale") and float(scaler.cur_scale) <= scaler.min_scale


def compute_dtype(runner: Any) -> str:
    """fp16, bf16 or fp32."""
    engine = _deepspeed_engine(runner)
    if hasattr(engine, "fp16_enabled"):
        return "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    if not hasattr(runner.optim_wrapper, "loss_scaler"):
        return "fp32"
    return "fp16" if "bfloat16" not in str(runner.cfg.optim_wrapper.get("dtype")) else "bf16"


def _deepspeed_engine(runner: Any) -> Any:
    """The engine in mmengine's wrapper; without DeepSpeed None or another object, which lacks the engine's methods."""
    return getattr(runner.model, "model", None)
