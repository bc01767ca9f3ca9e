"""Weights & Biases without uploading code."""

from typing import Any

from mmengine.visualization import WandbVisBackend


class WandbBackend(WandbVisBackend):
    """mmengine's backend, except that it does not upload every Python file below the working folder."""

    def add_config(self, config: Any, **_: Any) -> None:
        self.experiment.config.update(config.to_dict())
