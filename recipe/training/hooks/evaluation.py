"""Answers to the evaluation questions."""

from typing import Any

import torch
from mmengine.hooks import Hook
from xtuner.engine.hooks import EvaluateChatHook


class ImageChatHook(EvaluateChatHook):
    """XTuner's questions about images, answered in the type that is trained in. Without DeepSpeed its projector is fp32
    and the frozen language model's output head is not, which meet in training's autocast alone.
    """

    def _generate_samples(self, runner: Any, *words: Any, **more: Any) -> None:
        kind = getattr(runner.optim_wrapper, "cast_dtype", None)
        device = next(runner.model.parameters()).device.type
        with torch.autocast(device, dtype=kind, enabled=kind is not None):
            super()._generate_samples(runner, *words, **more)


class DedupeEvalHook(Hook):
    """XTuner asks its questions after the last iteration, and at the end of training once more, of the same model: once
    will do. With 7 billion parameters that takes longer than many iterations.
    """

    priority = "VERY_LOW"  # what is asked before the first iteration does not count

    def before_train(self, runner: Any) -> None:
        for hook in runner.hooks:
            if hasattr(hook, "_generate_samples"):
                self._once(hook)

    def _once(self, hook: Any) -> None:
        generate, at_the_end, asked = hook._generate_samples, hook.after_train, []

        def noted(runner: Any, *words: Any, **more: Any) -> None:
            asked.append(runner.iter + 1)
            generate(runner, *words, **more)

        hook._generate_samples = noted
        hook.after_train = lambda runner: None if runner.iter in asked else at_the_end(runner)
