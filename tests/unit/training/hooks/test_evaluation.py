"""The questions at the end of training."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config

from recipe.training import hooks


@pytest.mark.parametrize(("every", "asked"), [(2, [0, 2, 4, 6]), (4, [0, 4, 6]), (9, [0, 6])])
def test_the_questions_are_asked_once_at_the_end(every, asked):
    """By XTuner's own hook, in mmengine's order of hooks, of a training of six iterations."""
    from xtuner.engine.hooks import EvaluateChatHook

    evaluation, made = EvaluateChatHook.__new__(EvaluateChatHook), []
    evaluation.every_n_iters = every
    runner = SimpleNamespace(
        hooks=[evaluation, hooks.DedupeEvalHook()],
        iter=0,
        cfg=Config(dict(default_hooks=dict(checkpoint=dict(interval=99)))),
        logger=SimpleNamespace(info=lambda _: None),
    )
    evaluation._generate_samples = lambda runner, **_: made.append(runner.iter)
    for hook in runner.hooks:
        hook.before_train(runner)
    for runner.iter in range(6):
        before = len(made)
        evaluation.after_train_iter(runner, 0)
        made[before:] = [runner.iter + 1] * (len(made) - before)
    runner.iter = 6
    evaluation.after_train(runner)
    assert made == asked
