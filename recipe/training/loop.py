"""XTuner's training loop without mmengine's pause of two seconds between epochs; the rendered config names it."""

from itertools import count
from typing import Any, Iterator

from xtuner.engine.runner import TrainLoop as XTunerTrainLoop


class TrainLoop(XTunerTrainLoop):
    """Gives the same batches in the same order as XTuner's loop.

    The pause protects data loading processes, which may hang when they restart. Most presets have none. A resumed run
    would also repeat the pause of every finished epoch.
    """

    dataloader_iterator: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.dataloader.num_workers:
            self.dataloader_iterator = _batches(self.dataloader_iterator)


def _batches(endless: Any) -> Iterator[Any]:
    """The batches of mmengine's _InfiniteDataloaderIterator, which has already drawn the order of the first epoch."""
    loader, batches = endless._dataloader, endless._iterator
    sampler: Any = loader.sampler
    if not hasattr(sampler, "set_epoch"):
        sampler = getattr(loader.batch_sampler, "sampler", None)
    for epoch in count(1):
        yield from batches
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        batches = iter(loader)
