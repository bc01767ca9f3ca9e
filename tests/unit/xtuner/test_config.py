"""The rendered config: the preset's text, the recipe's edits, nothing else."""

import ast
import subprocess
import sys

import pytest
from mmengine.config import Config

from benchmarks import families as tiny_families
from recipe.base_model import tiny
from recipe.core import imports, settings
from recipe.core.errors import InputWrong
from recipe.xtuner import config, preset_editor, preset_facts, step_choice
from support.command import ROOT
from support.presets import PRESET, parsed, recipe_of, rendered


def flat(text):
    """Every place of a config → its source, down through dict(...) and lists."""
    found = {}

    def walk(path, node):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            for keyword in node.keywords:
                walk(f"{path}.{keyword.arg}", keyword.value)
        elif isinstance(node, ast.List):
            for index, element in enumerate(node.elts):
                walk(f"{path}.{index}", element)
        else:
            found[path] = ast.dump(node)

    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            walk(node.targets[0].id, node.value)
    return found


def changed(before, after):
    a, b = flat(before), flat(after)
    return {path for path in {*a, *b} if a.get(path) != b.get(path)}


def test_tutorial_differs_from_the_preset_in_the_pages_edits_only():
    """The page: model path, data path, max_length, batch_size, max_epochs, evaluation_freq, its three
    questions, load_dataset of a json file, dataset_map_fn=None. max_epochs (3) and evaluation_freq (500)
    are the preset's own values, so they leave no difference. Beside these the visualizer, which writes the curves as
    TensorBoard's files too and touches no number, and whose code loads InternLM2: ours, and not the folder's."""
    text = rendered("tutorial", intervals={"evaluation_freq": 500})
    assert changed(preset_editor.source(PRESET), text) == {
        "pretrained_model_name_or_path",
        "data_path",
        "max_length",
        "batch_size",
        *(f"evaluation_inputs.{i}" for i in range(3)),
        "train_dataset.dataset.path",
        "train_dataset.dataset.data_files.train",
        "train_dataset.dataset_map_fn",
        "visualizer",
        *(f"visualizer.{place}" for place in ("type", "vis_backends.0.type", "vis_backends.1.type")),
        *(f"{place}.{key}" for place in ("tokenizer", "model.llm") for key in ("type", "trust_remote_code")),
    }
    assert text.count("from recipe.base_model.internlm2 import ") == 2
    assert "vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]" in text
    cfg = Config.fromstring(text, file_format=".py")
    assert (cfg.max_length, cfg.batch_size, cfg.max_epochs, cfg.evaluation_freq) == (512, 2, 3, 500)
    assert (cfg.lr, cfg.warmup_ratio, cfg.accumulative_counts, cfg.save_steps) == (2e-4, 0.03, 16, 500)
    assert cfg.SYSTEM == ""
    assert cfg.randomness.seed is None
    assert "map_num_proc" not in cfg.train_dataset


@pytest.mark.parametrize("name", ["coach", "tiny"])
def test_corrected_recipes(name):
    _, recipe = settings.load(name)
    cfg = Config.fromstring(rendered(name), file_format=".py")
    assert cfg.train_dataset.map_num_proc == 1
    assert cfg.train_dataloader.dataset.map_num_proc == 1  # xtuner reads this copy
    assert cfg.accumulative_counts == 1
    assert cfg.warmup_ratio == 0.1
    assert cfg.randomness.seed == 0
    assert recipe.data.system == cfg.SYSTEM == cfg.custom_hooks[1].system


def test_demo_needs_no_gpu():
    cfg = Config.fromstring(rendered("tiny"), file_format=".py")
    assert cfg.model.llm.get("quantization_config") is None
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert "loss_scale" not in cfg.optim_wrapper


def test_bf16_reaches_model_quantization_and_autocast(monkeypatch):
    monkeypatch.setattr(
        step_choice, "gpus", lambda: [{"name": "NVIDIA RTX 3090", "memory_mib": 24576, "capability": "8.6"}]
    )
    text = rendered("coach")
    assert "bnb_4bit_compute_dtype=torch.bfloat16" in text
    assert "torch_dtype=torch.bfloat16" in text
    assert "dtype='bfloat16')" in text
    monkeypatch.setattr(step_choice, "gpus", lambda: [{"capability": "7.5"}])
    assert "bfloat16" not in rendered("coach")


@pytest.mark.slow
def test_reading_a_config_says_nothing():
    """It imports XTuner, and what that imports warns: of a machine without a GPU, of newer PyTorch. So do model classes
    that are imported later.
    """
    code = (
        "from recipe.core import settings; from recipe.xtuner import config; "
        "config.effective(settings.load('tiny')[1]); import recipe.base_model.tiny.clip"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, check=True)
    assert "Warning" not in done.stdout + done.stderr


def test_a_system_prompt_with_braces_survives_the_evaluation_hook():
    text = rendered("tiny", 'data.system="用 {json} 回答"')
    cfg = Config.fromstring(text, file_format=".py")
    # what XTuner's EvaluateChatHook does with it
    assert (f"<s>{cfg.SYSTEM}" + "{input}").format(input="x") == "<s>用 {json} 回答x"


def test_unknown_preset_and_misfit():
    with pytest.raises(InputWrong, match="internlm2_chat_7b_qlora_oasst1_e3"):
        rendered("tiny", "base=internlm2_chat_7b_qlora_oasst")
    with pytest.raises(InputWrong, match="does not fit"):
        rendered("tiny", "base=llama2_7b_chat_qlora_medical_e1", "train.method=full", "lora.r=8",
                 "base=deepseek_moe_16b_base_full_oasst1_e3")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("llama", "llama2_7b_qlora_oasst1_e3"),
        ("mistral", "mistral_7b_qlora_skypile_pretrain_e1"),
        ("mixtral", "mixtral_8x7b_instruct_qlora_oasst1_e3"),
        ("gpt_bigcode", "starcoder_qlora_stack_exchange_example"),
        ("internlm2", "internlm2_7b_qlora_oasst1_e3"),
    ],
)
def test_no_token_sees_those_to_come(kind, base, tmp_path):
    """Of the model as XTuner builds it from the rendered config, and with its attention in place of transformers'."""
    imports.load()
    import torch
    from xtuner.registry import BUILDER

    place = tmp_path / kind
    texts = ["压力很大，怎么办？ hello world"] * 9
    if kind == "internlm2":
        tiny.make(place, texts, vocab_size=700, hidden_size=64, heads=4, intermediate_size=128)
    else:
        tiny_families.make(place, kind, texts)
    text = config.render(recipe_of(base, method="lora", dtype="fp32"), str(place), "d", {})
    model = BUILDER.build(parsed(tmp_path, text).model).llm.eval()
    ids = torch.arange(60, 100)[None]
    other = ids.clone()
    other[0, 20:] += 7
    with torch.no_grad():
        one, two = (model(input_ids=i, attention_mask=torch.ones_like(i)).logits for i in (ids, other))
    assert torch.equal(one[0, :20], two[0, :20])
    assert not torch.allclose(one[0, 20:], two[0, 20:])


def test_templates_are_xtuners():
    text = config.render(recipe_of("llama2_7b_qlora_oasst1_e3", template="vicuna"), "m", "d", {})
    assert preset_facts.flat(text)["prompt_template"] == "PROMPT_TEMPLATE.vicuna"
    with pytest.raises(InputWrong, match="internlm2_chat"):
        config.render(recipe_of("llama2_7b_qlora_oasst1_e3", template="vicunia"), "m", "d", {})
