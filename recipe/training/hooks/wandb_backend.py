"""Weights & Biases."""

from typing import Any

from mmengine.visualization import WandbVisBackend


class WandbBackend(WandbVisBackend):
    """mmengine's, but without the code: it would take every Python file below the working folder, environments too."""

    def add_config(self, config: Any, **_: Any) -> None:
        self.experiment.config.update(config.to_dict())
