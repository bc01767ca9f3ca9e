"""The hooks that the rendered config adds to mmengine's runner, by name: recipe.training.hooks.X."""

from recipe.training.hooks.checkpoint import AtomicCheckpointHook
from recipe.training.hooks.determinism import DeterminismHook, RelaxDeterminismHook
from recipe.training.hooks.divergence import DivergenceHook
from recipe.training.hooks.evaluation import DedupeEvalHook, ImageChatHook
from recipe.training.hooks.timing import HeartbeatHook, TimingHook
from recipe.training.hooks.wandb_backend import WandbBackend

__all__ = [
    "AtomicCheckpointHook",
    "DedupeEvalHook",
    "DeterminismHook",
    "DivergenceHook",
    "HeartbeatHook",
    "ImageChatHook",
    "RelaxDeterminismHook",
    "TimingHook",
    "WandbBackend",
]
