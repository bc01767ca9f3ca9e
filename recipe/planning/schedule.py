"""Iterations, updates and the learning rate of every iteration, by mmengine's own schedulers."""

import math
from typing import Any, List, Optional, Sequence


def learning_rates(schedulers: Sequence[Any], lr: float, per_epoch: int, iterations: int) -> List[float]:
    """The rate of every iteration, from mmengine's own scheduler classes.

    `schedulers` is the config's param_scheduler. Raises ValueError as mmengine would, for instance for a
    warm-up that ends where it begins.
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
    trace = []
    for _ in range(iterations):
        trace.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        for scheduler in built:
            scheduler.step()
    return trace


def updates(iterations: int, accumulation: int, deepspeed: bool) -> int:
    """Optimizer updates. DeepSpeed drops a last group that is not full; mmengine makes an update of it."""
    return iterations // accumulation if deepspeed else math.ceil(iterations / accumulation)


def iterations_per_epoch(packs: int, batch_size: int, together: int = 1, grouped: int = 1) -> int:
    """Iterations per epoch and rank: mmengine's sampler pads to equal shares, the last batch may be short. XTuner's,
    by length, pads to whole groups of `grouped` batches.
    """
    return math.ceil(math.ceil(packs / together) / (batch_size * grouped)) * grouped


def answers(cfg: Any, within: Sequence[int], iterations: int, once: bool) -> int:
    """Tokens, at most, of the answers that XTuner's hook generates: before training (cut at 50), after the iterations
    `within` the run, and at its end; `once`: unless the same model has then been asked already (hooks.DedupeEvalHook).
    """
    hook = next((one for one in cfg.get("custom_hooks", ()) if "evaluation_inputs" in one), None)
    if hook is None:
        return 0
    longest = hook.get("max_new_tokens", 600)  # XTuner's default
    times = len(set(within)) + (0 if once and iterations in within else 1)
    return len(hook["evaluation_inputs"]) * (50 + longest * times)


def grouped(cfg: Any) -> int:
    """How many batches the config's sampler keeps together: those of an update where it groups by length, else 0."""
    return cfg.train_dataloader.sampler.get("per_device_batch_size", 0) // cfg.batch_size


def interval(value: Any, iterations: int) -> int:
    """A setting that is a share of the run (below 1) in iterations, rounded up; a whole number as it is."""
    return math.ceil(value * iterations) if isinstance(value, float) and value < 1 else int(value)


def smallest_warmup(per_epoch: int, epochs: int) -> Optional[float]:
    """Smallest warm-up ratio in hundredths with which mmengine's LinearLR reaches the peak, if any does.

    The ramp ends at int(ratio * epochs * per_epoch) iterations; with one it stays at its start factor for
    ever (the cause of the tutorial's flat loss), with none mmengine refuses to start.
    """
    for hundredths in range(1, 100):
        if int(hundredths / 100 * epochs * per_epoch) >= 2:
            return hundredths / 100
    return None


def events(every: int, iterations: int, also: Sequence[int] = ()) -> List[int]:
    """Iterations at which something that happens every `every` iterations falls inside the run."""
    return sorted({*range(every, iterations + 1, every), *also})
