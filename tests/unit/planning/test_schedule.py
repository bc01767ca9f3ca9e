"""Iterations, warm-up and learning rates, against mmengine's own."""

import pytest

from recipe.planning import schedule


def test_every_pack_is_seen_by_some_rank():
    """mmengine's sampler on each rank, against what the plan says of packs seen twice."""
    from mmengine.dataset import sampler

    for packs, together in ((33, 2), (33, 8), (8, 8), (5, 4)):
        seen = []
        for rank in range(together):
            made = sampler.DefaultSampler(list(range(packs)), seed=0)
            made.rank, made.world_size = rank, together
            made.num_samples = -(-packs // together)
            made.total_size = made.num_samples * together
            share = list(made)
            assert schedule.iterations_per_epoch(packs, 1, together) == len(share)
            seen += share
        assert set(seen) == set(range(packs))
        assert len(seen) - packs == -packs % together


def test_questions_are_estimated_beside_the_iterations():
    asking = {"type": "EvaluateChatHook", "evaluation_inputs": ["a", "b", "c"], "max_new_tokens": 300}
    cfg = {"custom_hooks": [{"type": "DatasetInfoHook"}, asking]}
    asked = schedule.generated_tokens(cfg, [39], 78, once=True)
    assert asked == schedule.generated_tokens(cfg, [39, 78], 78, once=True) == 3 * (50 + 300 + 300)
    assert schedule.generated_tokens(cfg, [39, 78], 78, once=False) == 3 * (50 + 300 + 300 + 300)  # at its end again
    asking["max_new_tokens"] = 20
    assert schedule.generated_tokens(cfg, [], 78, once=True) == 3 * (50 + 20)  # the first ones have XTuner's own limit
    assert (
        schedule.generated_tokens({"custom_hooks": []}, [39], 78, once=True)
        == schedule.generated_tokens({}, [], 78, once=True)
        == 0
    )


# learning rates of the published log (an RTX 3090, 2024-03-17), iterations 10 to 50 of 51
PUBLISHED = {10: 1.8763e-09, 20: 1.4258e-09, 30: 8.1262e-10, 40: 2.7103e-10, 50: 7.8853e-12}


def test_published_learning_rates(cfg):
    trace = schedule.learning_rates(cfg.param_scheduler, cfg.lr, per_epoch=17, iterations=51)
    for iteration, rate in PUBLISHED.items():
        assert f"{trace[iteration - 1]:.4e}" == f"{rate:.4e}"


def test_smallest_warmup_that_ramps():
    assert schedule.smallest_warmup(17, 3) == 0.04


@pytest.mark.parametrize(("ratio", "peak"), [(0.03, False), (0.04, True), (0.1, True)])
def test_warmup_reaches_the_peak_or_not(cfg, ratio, peak):
    schedulers = [dict(item) for item in cfg.param_scheduler]
    schedulers[0]["end"] = schedulers[1]["begin"] = ratio * 3
    trace = schedule.learning_rates(schedulers, 2e-4, per_epoch=17, iterations=51)
    assert (max(trace) > 0.99 * 2e-4) is peak


def test_warmup_that_rounds_to_zero_is_what_mmengine_refuses(cfg):
    with pytest.raises(ValueError, match="end should be larger than begin"):
        schedule.learning_rates(cfg.param_scheduler, cfg.lr, per_epoch=11, iterations=33)


def test_updates_at_the_published_size():
    assert schedule.updates(51, 16, deepspeed=True) == 3
    assert schedule.updates(51, 16, deepspeed=False) == 4
