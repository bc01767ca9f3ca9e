"""XTuner's training loop without mmengine's pause of two seconds between epochs; the rendered config names it."""

from itertools import count
from typing import Any, Iterator

from xtuner.engine.runner import TrainLoop as XTunersLoop


class TrainLoop(XTunersLoop):
    """The same batches in the same order. The pause is for processes that load data, which may hang when they are ended
    and started again; where there are none, as in most presets, nothing can. A run that goes on from a checkpoint would
    make every pause before it once more.
    """

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        if not self.dataloader.num_workers:
            self.dataloader_iterator = _batches(self.dataloader_iterator)


def _batches(endless: Any) -> Iterator[Any]:
    """What mmengine's _InfiniteDataloaderIterator gives; it has begun the first epoch already, by a random number."""
    loader, batches = endless._dataloader, endless._iterator
    sampler = loader.sampler if hasattr(loader.sampler, "set_epoch") else getattr(loader.batch_sampler, "sampler", None)
    for epoch in count(1):
        yield from batches
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        batches = iter(loader)
