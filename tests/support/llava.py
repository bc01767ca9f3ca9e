"""Runs of LLaVA's presets on tiny models."""

import json

from recipe.core import settings
from recipe.core.run import Run
from recipe.stages import data
from support.command import ROOT

FIRST = "llava_internlm2_chat_7b_clip_vit_large_p14_336_e1_gpu8_pretrain"


WORDS = [
    "model.visual_encoder=tiny", "data.eval_share=0", "train.max_length=128", "train.batch_size=2",
    "train.max_epochs=1", "train.evaluation_max_new_tokens=4", "train.evaluation_freq=9999", "train.save_steps=9999",
    "train.warmup_ratio=0.5",
]  # fmt: skip


def run_of(place, name, base, files, *more):
    """A run of the demo's settings with a preset of LLaVA; its models lie where the demo's do."""
    _, found = settings.load("tiny", [f"base={base}", f"data.files={json.dumps([str(files)])}", *WORDS, *more])
    if base == FIRST:
        found = settings.replace(found, "train.method", None)
    run = Run(name, found, ROOT, place / "output", force=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def read(run):
    figures = data.make(run, run.folder)
    return figures, [json.loads(line) for line in run.dataset.read_text("utf-8").splitlines()]
