"""Epochs follow each other without a pause."""

from types import SimpleNamespace

import pytest
import torch


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_follow_each_other_without_a_pause(monkeypatch, workers):
    """The batches of XTuner's own loop in its order, the same numbers drawn; a pause only where processes load data."""
    from mmengine.dataset import DefaultSampler
    from mmengine.runner import loops
    from xtuner.engine.runner import TrainLoop as XTunersLoop

    from recipe.training import loop

    rows = torch.arange(10)

    def batches(kind):
        torch.manual_seed(5)
        slept = []
        monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=slept.append))
        data = torch.utils.data.DataLoader(
            rows, batch_size=3, sampler=DefaultSampler(rows, shuffle=True, seed=7), num_workers=workers
        )
        trainer = kind(SimpleNamespace(visualizer=None), data, max_epochs=3)
        found = [next(trainer.dataloader_iterator).tolist() for _ in range(trainer.max_iters)]
        return found, torch.rand(1).item(), slept

    (theirs, drawn, pauses), (ours, drawn_too, left) = batches(XTunersLoop), batches(loop.TrainLoop)
    assert ours == theirs
    assert len({str(theirs[at : at + 4]) for at in (0, 4, 8)}) == 3, "each epoch has an order of its own"
    assert drawn_too == drawn
    assert (pauses, left) == ([2, 2], [2, 2] * workers)
