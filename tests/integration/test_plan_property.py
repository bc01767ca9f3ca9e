"""The plan against what mmengine and XTuner then really do, for random data and settings.

A real mmengine Runner trains a model of one weight on the dataset, loop, optimizer wrapper and schedulers of
the rendered config; hooks and counters record what happened.
"""

import json
import random

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner, loops

from recipe.base_model import tokenizer as base_model_tokenizer
from recipe.core import imports, settings
from recipe.core.run import Run
from recipe.planning import plan, schedule
from recipe.xtuner import config

COMBINATIONS = 36


class OneWeight(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, data, data_samples=None, mode="loss"):
        return {"loss": self.weight.sum() + 0 * data["input_ids"].sum()}


class Recorder(Hook):
    """Learning rate of every iteration, as the optimizer has it when the iteration begins."""

    def __init__(self):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])


def combination(number):
    """Random but fixed: rows, their lengths, and the settings that decide the schedule."""
    pick = random.Random(number)
    ranks = pick.choice([1, 1, 2, 4])
    divisor = pick.choice([n for n in (1, 2, 4) if n <= ranks])  # of the ranks, the part that accumulates less
    rows = [
        ["问" * pick.randint(1, 12), "答" * pick.choice([3, pick.randint(1, 40), 120])]
        for _ in range(pick.randint(3, 60))
    ]
    overrides = [
        f"train.max_length={pick.choice([48, 64, 128, 256])}",
        f"train.batch_size={ranks * pick.randint(1, 4) // divisor}",
        f"train.accumulative_counts={divisor * pick.choice([1, 2, 3, 16])}",
        f"gpus={ranks}",
        f"train.max_epochs={pick.randint(1, 4)}",
        f"train.warmup_ratio={pick.choice([0.01, 0.03, 0.1, 0.3])}",
        f"train.map_num_proc={pick.choice([1, 1, 2, 3])}",
        f"train.seed={pick.randint(0, 99)}",
        f"train.pack_to_max_length={pick.choice(['true', 'true', 'true', 'false'])}",
    ]
    return rows, overrides, ranks


@pytest.fixture(scope="module")
def tokenizer():
    imports.load()
    _, recipe = settings.load("tiny")
    from support.command import ROOT

    return base_model_tokenizer.tokenizer(Run("tiny", recipe, ROOT, ROOT / "output"))


def really_train(text, work_dir, ranks, monkeypatch):
    """Run the rendered config's loop; return (iterations, rates, updates, tokens seen in an epoch's dataset)."""
    from xtuner.tools.train import register_function

    cfg = Config.fromstring(text, file_format=".py")
    register_function(cfg._cfg_dict)
    monkeypatch.setattr(loops.time, "sleep", lambda seconds: None)  # mmengine waits 2 s between epochs
    monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (0, ranks))
    steps = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (steps.append(1), original(self, *a, **k))[1])
    recorder = Recorder()
    runner = Runner(
        model=OneWeight(), work_dir=str(work_dir), train_dataloader=cfg.train_dataloader, train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper, param_scheduler=cfg.param_scheduler, custom_hooks=[recorder],
        default_hooks={"logger": None, "checkpoint": None}, randomness=cfg.randomness, log_level="ERROR",
        experiment_name=work_dir.name,
    )  # fmt: skip
    runner.train()
    dataset = runner.train_dataloader.dataset
    return runner.iter, recorder.rates, len(steps), sum(dataset["length"])


@pytest.mark.parametrize("number", range(COMBINATIONS))
def test_plan_equals_the_run(number, tokenizer, tmp_path, monkeypatch):
    rows, overrides, ranks = combination(number)
    _, recipe = settings.load("tiny", overrides)
    run = Run("tiny", recipe, tmp_path, tmp_path)
    run.folder.mkdir()
    conversations = [[{"input": question, "output": answer}] for question, answer in rows]
    run.dataset.write_text("".join(json.dumps({"conversation": c}) + "\n" for c in conversations), encoding="utf-8")
    # The tokenizer object stands in for the folder that the config names.
    monkeypatch.setattr("recipe.base_model.internlm2.InternLM2Tokenizer.from_pretrained", lambda *a, **k: tokenizer)

    planned = plan.predict(run, config.effective(recipe), conversations, tokenizer, recipe.train.seed)
    expected = planned["by_gpus"][str(ranks)]
    text = config.render(recipe, "tiny", str(run.dataset), {})
    cfg = config.effective(recipe)
    per_epoch = schedule.iterations_per_epoch(planned["packs"], cfg.batch_size, ranks)
    try:
        trace = schedule.learning_rates(cfg.param_scheduler, cfg.lr, per_epoch, expected["iterations"])
    except ValueError:
        with pytest.raises(ValueError, match="end should be larger than begin"):
            really_train(text, tmp_path, ranks, monkeypatch)
        return
    iterations, rates, updates, tokens = really_train(text, tmp_path, ranks, monkeypatch)
    assert iterations == expected["iterations"]
    assert updates == schedule.updates(iterations, cfg.accumulative_counts, deepspeed=False) == expected["updates"]
    assert tokens == planned["tokens_kept"]
    assert rates == pytest.approx(trace, rel=1e-9)
    assert planned["lr_trace"] == trace
    assert planned["iterations"] == iterations
    assert planned["ranks"] == ranks
