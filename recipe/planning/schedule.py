"""Iterations, updates and the learning rate of each iteration, from mmengine's own schedulers."""

import math
from typing import Any, List, Optional, Sequence


def learning_rates(schedulers: Sequence[Any], lr: float, per_epoch: int, iterations: int) -> List[float]:
    """The learning rate of each iteration; `schedulers` is the config's param_scheduler.

    Raises mmengine's ValueError, for instance for a warm-up of 0 iterations.
    """
    import torch
    from mmengine.optim import CosineAnnealingLR, LinearLR

    classes = {"LinearLR": LinearLR, "CosineAnnealingLR": CosineAnnealingLR}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    built = []
    for item in schedulers:
        arguments = dict(item)
        kind = arguments.pop("type")
        kind = classes.get(kind if isinstance(kind, str) else kind.__name__, kind)
        if arguments.pop("convert_to_iter_based", False):
            built.append(kind.build_iter_from_epoch(optimizer, epoch_length=per_epoch, **arguments))
        else:
            built.append(kind(optimizer, **arguments))
    rates = []
    for _ in range(iterations):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    return rates


def updates(iterations: int, accumulation: int, deepspeed: bool) -> int:
    """Optimizer updates. DeepSpeed drops an incomplete last accumulation; mmengine makes an update of it."""
    return iterations // accumulation if deepspeed else math.ceil(iterations / accumulation)


def iterations_per_epoch(packs: int, batch_size: int, ranks: int = 1, group: int = 1) -> int:
    """Iterations per epoch and rank. mmengine's sampler pads to equal shares, and the last batch may be short; XTuner's
    sampler by length pads to full groups of `group` batches.
    """
    return math.ceil(math.ceil(packs / ranks) / (batch_size * group)) * group


def generated_tokens(cfg: Any, evaluated: Sequence[int], iterations: int, once: bool) -> int:
    """The most tokens that XTuner's evaluation hook generates: before training (50 per answer), after the iterations
    `evaluated`, and at the end; `once`: not twice for the same model (hooks.DedupeEvalHook).
    """
    hook = next((one for one in cfg.get("custom_hooks", ()) if "evaluation_inputs" in one), None)
    if hook is None:
        return 0
    longest = hook.get("max_new_tokens", 600)  # XTuner's default
    times = len(set(evaluated)) + (0 if once and iterations in evaluated else 1)
    return len(hook["evaluation_inputs"]) * (50 + longest * times)


def group_size(cfg: Any) -> int:
    """How many batches the config's sampler groups by length (those of an update); 0 if it does not group."""
    return cfg.train_dataloader.sampler.get("per_device_batch_size", 0) // cfg.batch_size


def in_iterations(value: Any, iterations: int) -> int:
    """A setting that may be a share of the run (a float below 1), in iterations, rounded up."""
    return math.ceil(value * iterations) if isinstance(value, float) and value < 1 else int(value)


def smallest_warmup(per_epoch: int, epochs: int) -> Optional[float]:
    """The smallest warm-up ratio, in hundredths, with which mmengine's LinearLR reaches the peak; None if none does.

    The warm-up has int(ratio * epochs * per_epoch) iterations. With one, the rate stays at its start factor (the cause
    of the tutorial's flat loss); with none, mmengine does not start.
    """
    for hundredths in range(1, 100):
        if int(hundredths / 100 * epochs * per_epoch) >= 2:
            return hundredths / 100
    return None


def multiples(every: int, iterations: int, also: Sequence[int] = ()) -> List[int]:
    """The multiples of `every` up to `iterations`, and `also`, sorted."""
    return sorted({*range(every, iterations + 1, every), *also})
