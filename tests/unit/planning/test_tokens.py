"""Token counts, against XTuner's own encoding."""

import json

import pytest

from recipe.base_model import tokenizer as base_model_tokenizer
from recipe.core import imports, settings
from recipe.planning import tokens
from recipe.planning.tokens import count
from recipe.xtuner import config
from support.command import ROOT
from support.kinds import SAID, read, run_of


def test_the_plan_counts_as_xtuner_does(tmp_path):
    """Raw rows through XTuner's process with its own dataset map, beside our dataset.jsonl through the plan's."""
    import datasets
    import numpy

    imports.load()
    from xtuner.dataset.huggingface import process
    from xtuner.dataset.map_fns import msagent_react_map_fn, pretrain_map_fn, template_map_fn_factory

    raw = {
        "pretrain": [{"text": f"第{number}篇。{'放松一下。' * (number % 7)}"} for number in range(40)],
        "agent": [{"conversations": repr(SAID)}] * 8,
    }
    for kind, own in (("pretrain", pretrain_map_fn), ("agent", msagent_react_map_fn)):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in raw[kind]), encoding="utf-8")
        run = run_of(tmp_path, kind, [str(path)], train__max_length=512, data__piece=512)
        _, found = read(run)
        cfg, tokenizer = config.effective(run.settings), base_model_tokenizer.tokenizer(run)
        template = config.template(cfg)
        assert (template is None) == (kind == "pretrain")
        numpy.random.seed(0)
        made = process(
            dataset=datasets.Dataset.from_list(raw[kind]), tokenizer=tokenizer, max_length=512, dataset_map_fn=own,
            template_map_fn=template_map_fn_factory(template) if template else None, split=None,
            remove_unused_columns=True, pack_to_max_length=True, map_num_proc=1,
        )  # fmt: skip
        packed = tokens.pack(cfg, run.dataset, tokenizer, 0)
        assert packed["packs"] == len(made)
        assert packed["tokens_kept"] == sum(map(len, made["input_ids"]))
        assert packed["answer_tokens_kept"] == sum(label >= 0 for labels in made["labels"] for label in labels)
        counted = tokens.count(found, template, tokenizer, 512)
        assert 0 <= sum(counted["lengths"]) - packed["tokens_kept"] < 512
        if kind == "pretrain":  # everything but the first token of each text has loss
            assert counted["answers"] == [length - 1 for length in counted["lengths"]]


SYSTEM = settings.load("tutorial")[1].data.system


@pytest.fixture(scope="module")
def real_tokens(real_workbook, real_tokenizer, cfg):
    """Function: token counts of the tutorial's workbook with a system prompt."""
    from recipe.base_model.tiny import tokenizer_from_model
    from recipe.intake import dataset

    tokenizer = tokenizer_from_model(real_tokenizer)
    return lambda system: count(dataset.sample(real_workbook, system), cfg.prompt_template, tokenizer, 512)


def test_token_counts_of_the_tutorials_workbook(real_tokens):
    tokens = real_tokens(SYSTEM)
    assert sum(tokens["lengths"]) == 27714
    assert max(tokens["lengths"]) == 164
    assert tokens["cut"] == tokens["masked"] == []
    assert sum(real_tokens("")["lengths"]) == 19104


def test_turns_reach_the_trainer_with_loss_on_the_outputs_only(cfg, workbook):
    """Labels of a two-turn conversation after XTuner's own map and encode: the outputs and their end, no more."""
    import datasets
    from xtuner.dataset.huggingface import process
    from xtuner.dataset.map_fns import template_map_fn_factory

    from recipe.base_model import tokenizer as base_model_tokenizer
    from recipe.core.run import Run
    from recipe.intake import dataset

    _, recipe_settings = settings.load("tiny")
    tokenizer = base_model_tokenizer.tokenizer(Run("tiny", recipe_settings, ROOT, ROOT / "output"))
    rows = [["conversation", "q", "a"], [1, "压力大怎么办？", "先休息。"], [1, "然后呢？", "再说出来。"]]
    (conversation,) = dataset.sample(workbook(s=rows), "系统")
    made = process(
        dataset=datasets.Dataset.from_list([{"conversation": conversation}]),
        tokenizer=tokenizer,
        max_length=512,
        template_map_fn=template_map_fn_factory(cfg.prompt_template),
        split=None,
        remove_unused_columns=True,
        pack_to_max_length=False,
        map_num_proc=1,
    )[0]
    with_loss = [token for token, label in zip(made["input_ids"], made["labels"]) if label >= 0]
    assert all(label in (-100, token) for token, label in zip(made["input_ids"], made["labels"]))
    assert tokenizer.decode(with_loss) == "先休息。<|im_end|>再说出来。<|im_end|>"
    assert tokenizer.decode(made["input_ids"]) == (
        "<s><|im_start|>system\n系统<|im_end|>\n<|im_start|>user\n压力大怎么办？<|im_end|>\n<|im_start|>assistant\n先休息。"
        "<|im_end|>\n<|im_start|>user\n然后呢？<|im_end|>\n<|im_start|>assistant\n再说出来。<|im_end|>\n"
    )
