"""Corrections to XTuner's EvaluateChatHook, which answers the evaluation questions during training."""

from typing import Any, List

import torch
from mmengine.hooks import Hook
from xtuner.engine.hooks import EvaluateChatHook


class ImageChatHook(EvaluateChatHook):
    """Answers questions about images under the autocast of training.

    Without DeepSpeed the projector is fp32 and the language model's output head is not: they only match in autocast.
    """

    def _generate_samples(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        dtype = getattr(runner.optim_wrapper, "cast_dtype", None)
        device = next(runner.model.parameters()).device.type
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            super()._generate_samples(runner, *args, **kwargs)


class DedupeEvalHook(Hook):
    """Skips the questions at the end of training if the last iteration has just asked them.

    On a 7B model they take longer than many iterations.
    """

    priority = "VERY_LOW"  # after XTuner's hook has asked its questions before training

    def before_train(self, runner: Any) -> None:
        for hook in runner.hooks:
            if hasattr(hook, "_generate_samples"):
                self._skip_repeat(hook)

    def _skip_repeat(self, hook: Any) -> None:
        generate, after_train = hook._generate_samples, hook.after_train
        evaluated: List[int] = []

        def generate_and_note(runner: Any, *args: Any, **kwargs: Any) -> None:
            evaluated.append(runner.iter + 1)
            generate(runner, *args, **kwargs)

        hook._generate_samples = generate_and_note
        hook.after_train = lambda runner: None if runner.iter in evaluated else after_train(runner)
