"""What mmengine's runner and DeepSpeed's engine are doing."""

import math
from typing import Any, Optional


def accumulation_steps(runner: Any) -> int:
    """Iterations for an update."""
    engine = getattr(runner.model, "model", None)  # DeepSpeed's, in mmengine's wrapper
    if hasattr(engine, "gradient_accumulation_steps"):
        return int(engine.gradient_accumulation_steps())
    return int(runner.optim_wrapper._accumulative_counts)


def gradient_norm(runner: Any) -> Optional[float]:
    """Norm of this iteration's gradient before clipping, None where there was no update."""
    if (runner.iter + 1) % accumulation_steps(runner):
        return None
    engine = getattr(runner.model, "model", None)
    if hasattr(engine, "get_global_grad_norm"):
        # DeepSpeed skips an update that overflows, and leaves the norm of the one before it, or 0.
        if getattr(engine.optimizer, "overflow", False):
            return math.inf
        norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm)
    log = runner.message_hub.log_scalars.get("train/grad_norm")
    return None if log is None else float(log.current())


def is_loss_scale_at_minimum(runner: Any) -> bool:
    """Whether DeepSpeed's scale of the loss is at its minimum: it ends the run when the next update overflows too."""
    scaler = getattr(getattr(getattr(runner.model, "model", None), "optimizer", None), "loss_scaler", None)
    return hasattr(scaler, "min_scale") and float(scaler.cur_scale) <= scaler.min_scale


def compute_dtype(runner: Any) -> str:
    """The compute type: fp16, bf16 or fp32."""
    engine = getattr(runner.model, "model", None)
    if hasattr(engine, "fp16_enabled"):
        return "fp16" if engine.fp16_enabled() else "bf16" if engine.bfloat16_enabled() else "fp32"
    if not hasattr(runner.optim_wrapper, "loss_scaler"):
        return "fp32"
    return "fp16" if "bfloat16" not in str(runner.cfg.optim_wrapper.get("dtype")) else "bf16"
