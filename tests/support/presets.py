"""Presets of XTuner as recipes render them."""

from mmengine.config import Config

from recipe.core import settings
from recipe.xtuner import config

PRESET = "internlm2_chat_7b_qlora_oasst1_e3"


def rendered(name, *overrides, intervals=None):
    _, recipe = settings.load(name, overrides)
    return config.render(recipe, "models/base", "output/x/dataset.jsonl", intervals or {})


PRETRAIN = "mistral_7b_qlora_skypile_pretrain_e1"


def recipe_of(base, **more):
    """A recipe's settings for a base, with every knob set that has a place everywhere."""
    train = dict(
        max_length=512, batch_size=2, accumulative_counts=4, max_epochs=7, lr=1e-4, warmup_ratio=0.05, seed=3,
        map_num_proc=1, evaluation_inputs=["问"], evaluation_max_new_tokens=9, log_interval=2, **more,
    )  # fmt: skip
    return settings.Settings.model_validate(
        {"base": base, "data": {"files": ["x.xlsx"], "system": "教练"}, "train": train, "model": {"id": "a/b"}}
    )


def parsed(tmp_path, text):
    """As mmengine reads the file; its modules are looked up, not imported: that would take longer than all the rest."""
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8")
    return Config.fromfile(str(path))
