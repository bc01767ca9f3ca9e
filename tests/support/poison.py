"""A hook that puts a NaN into a trained weight before the fifth iteration; named by the config of a test."""

from mmengine.hooks import Hook


class Poison(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4:
            next(p for p in runner.model.parameters() if p.requires_grad).data.fill_(float("nan"))
