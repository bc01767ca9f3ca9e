"""Makes a tiny CLIP vision model with random weights, and its image processor."""

from pathlib import Path

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

SIZE, PATCH = 56, 14  # pixels: 16 patches


def make(place: Path) -> None:
    """Write the model folder, the same bytes each time."""
    place.mkdir(parents=True)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=SIZE,
        patch_size=PATCH, projection_dim=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPVisionModel(config)
    model.save_pretrained(str(place), safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(
        str(place)
    )
