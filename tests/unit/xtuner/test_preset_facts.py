"""Every preset of XTuner: what it trains, in which type, by which method, and why some do not run."""

import re

import pytest

from recipe.core import settings
from recipe.core.errors import InputWrong
from recipe.intake import agent
from recipe.xtuner import config, preset_editor, preset_facts
from support.command import recipe, refused
from support.presets import PRETRAIN, parsed, recipe_of

# What a recipe may change, as paths of a config; a dict that is replaced counts with all that is below it.
INTENDED = (
    r"(pretrained_model|llm)_name_or_path", r"\w*_path", r"dataset_folder", r"(\w+\.)?(dataset|data_files)(\..+)?",
    r"\w+\.(dataset_map_fn|map_num_proc|template_map_fn(\..+)?)", r"train_dataset(\..+)?",
    r"moss_sft\w+(\..+)?", r"llava_dataset\.type", r"(inv_)?refcoco_dataset(\..+)?",
    r"(alpaca_\w+|oasst1|crime_kg_assitant|law_reference_data)(\..+)?", r"max_length", r"batch_size", r"lr",
    r"accumulative_counts", r"max_epochs", r"warm_?up_ratio", r"evaluation_(freq|inputs(\.\d+)?)",
    r"save_steps", r"SYSTEM", r"custom_hooks(\.\d+(\.(type|max_new_tokens|system|prompt_template))?)?",
    r"default_hooks\.(logger\.interval|checkpoint\.type)",
    r"randomness(\..+)?", r"visualizer(\..+)?", r"train_cfg(\.type)?",
    r"training_args\.(per_device_train_batch_size|gradient_accumulation_steps|num_train_epochs|learning_rate|warmup_steps)",
    r"training_args\.(warmup_ratio|save_steps|logging_steps|seed|fp16|bf16)", r"model(\.llm)?\.attn_implementation",
    r"(tokenizer|model(\.llm)?)\.(type|trust_remote_code)",
)  # fmt: skip


PRECISION = (
    r"model(\.llm)?\.torch_dtype", r"optim_wrapper\.(dtype|type|loss_scale)",
    r"model(\.llm)?\.quantization_config\.bnb_4bit_compute_dtype",
)  # fmt: skip


METHOD = (r"model(\.llm)?\.(quantization_config(\..+)?|torch_dtype|load_in_8bit)", r"(model\.)?lora(\..+)?")


def changed(before, after):
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def plain(value):
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def test_there_are_all_of_them():
    assert len(preset_editor.files()) == 408
    assert {preset_facts.facts(name).method for name in preset_editor.files()} == {"qlora", "lora", "full", "projector"}
    assert sum(preset_facts.facts(name).kind == "agent" for name in preset_editor.files()) == 5
    assert sum(preset_facts.facts(name).kind == "image" for name in preset_editor.files()) == 16
    assert all(preset_facts.facts(name).template in (*preset_facts.templates(), "") for name in preset_editor.files())


@pytest.mark.slow
def test_every_preset_renders(tmp_path):
    """408 configs: parsed, with the recipe's values in them, and nothing else changed."""
    for name in preset_editor.files():
        found = preset_facts.facts(name)
        text = config.render(recipe_of(name), "models/base", "output/x/dataset.jsonl", {"save_steps": 11})
        after = preset_facts.flat(text)
        odd = [p for p in changed(found.names, after) if not any(re.fullmatch(one, p) for one in INTENDED)]
        assert not odd, (name, odd)
        assert (after.get(f"{found.llm}.attn_implementation") == "'eager'") == (found.code == "llama"), name
        loaded = {place: after[f"{place}.type"] for place in ("tokenizer", found.llm)}
        ours = {"tokenizer": "InternLM2Tokenizer.from_pretrained", found.llm: "InternLM2ForCausalLM.from_pretrained"}
        kept = {place: found.names[f"{place}.type"] for place in loaded}
        assert loaded == (ours if "internlm2" in found.model else kept), name
        trusting = {place for place in loaded if f"{place}.trust_remote_code" in after}
        assert trusting == (set() if "internlm2" in found.model else set(loaded)), name
        cfg = parsed(tmp_path, text)._cfg_dict
        raw = {key: dict.get(cfg, key) for key in cfg}
        place = "llm_name_or_path" if found.kind == "image" else "pretrained_model_name_or_path"
        assert raw[place] == "models/base", name
        assert raw["max_length"] == 512, name
        where = dict.get(cfg, "training_args") if found.framework == "huggingface" else cfg
        assert dict.get(where, "save_steps") == 11, name
        assert "output/x/dataset.jsonl" in (raw.get(found.path), raw.get("dataset_folder")), name
        if found.kind != "image" and "dataset_folder" not in raw:
            kept = raw[found.dataset]
            assert dict.get(kept, "dataset_map_fn") is None, name
            files = dict.get(dict.get(kept, "dataset"), "data_files")
            assert dict(files) == {"train": "output/x/dataset.jsonl"}, name
            assert (dict.get(kept, "template_map_fn") is None) == (found.kind == "pretrain"), name
            if found.framework == "mmengine":  # xtuner builds this copy
                assert dict.get(raw["train_dataloader"], "dataset").keys() == kept.keys(), name


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_compute_type_of_every_preset(dtype, tmp_path):
    for name in list(preset_editor.files())[:: 7 if dtype == "bf16" else 11]:
        found = preset_facts.facts(name)
        if dtype == "fp32" and found.method == "qlora":
            continue
        text = config.render(recipe_of(name, dtype=dtype), "m", "d", {})
        odd = [
            p for p in changed(found.names, preset_facts.flat(text))
            if not any(re.fullmatch(one, p) for one in (*INTENDED, *PRECISION))
        ]  # fmt: skip
        assert not odd, (name, odd)


@pytest.mark.parametrize("wanted", ["qlora", "lora", "full"])
def test_methods_switch(wanted, tmp_path):
    """Of every family one preset of each method, into each other; and the preset that loads in 8 bits."""
    seen = {}
    for name in preset_editor.files():
        found = preset_facts.facts(name)
        seen.setdefault((found.family, found.method, found.framework, found.bits), name)
    for name in seen.values():
        found = preset_facts.facts(name)
        if found.kind == "image" and found.method != wanted and {found.method, wanted} != {"lora", "qlora"}:
            with pytest.raises(InputWrong, match="LLaVA"):
                config.render(recipe_of(name, method=wanted), "m", "d", {})
            continue
        text = config.render(recipe_of(name, method=wanted), "m", "d", {})
        parsed(tmp_path, text)
        after = preset_facts.flat(text)
        odd = [p for p in changed(found.names, after) if not any(re.fullmatch(o, p) for o in (*INTENDED, *METHOD))]
        assert not odd, (name, odd)
        assert (f"{found.llm}.quantization_config" in after) == (wanted == "qlora"), name
        assert (found.lora in after) == (wanted != "full"), name
        if wanted == "full":
            assert f"{found.llm}.torch_dtype" not in after or found.method == "full", name
    given = {"base": "llama2_7b_qlora_lawyer_e3", "data": {"files": ["x"]}, "train": {"method": wanted}}
    rate = settings.Settings.model_validate(given)
    assert preset_facts.flat(config.render(rate, "m", "d", {}))["lr"] == ("2e-05" if wanted == "full" else "0.0002")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("gemma_2b_qlora_alpaca_e3", "transformers 4.38"),
        ("qwen1_5_7b_full_alpaca_e3", "transformers 4.37"),
        ("internlm_7b_qlora_oasst1_e3_hf", "transformers' Trainer"),
        ("internlm2_7b_w_tokenized_dataset", "flash_attn"),
        ("baichuan_7b_qlora_alpaca_e3", "4.34"),
    ],
)
def test_what_does_not_run_says_why(base, said):
    with pytest.raises(InputWrong, match="does not run here") as caught:
        preset_facts.check(recipe_of(base))
    assert said in str(caught.value)


def test_a_preset_of_another_model_wants_the_model_named():
    given = {"base": "llama2_7b_qlora_oasst1_e3", "data": {"files": ["x"]}}
    with pytest.raises(InputWrong, match=r"model\.id=meta-llama/Llama-2-7b-hf "):
        preset_facts.check(settings.Settings.model_validate(given))
    preset_facts.check(settings.Settings.model_validate({**given, "model": {"path": "models/mine"}}))
    preset_facts.check(settings.load("coach")[1])


def test_kinds_of_data_switch(tmp_path):
    pre = recipe_of(PRETRAIN)
    assert preset_facts.kind(pre) == "pretrain"
    asked = settings.replace(pre, "data.kind", "instruction")
    cfg = parsed(tmp_path, config.render(asked, "m", "d", {}))._cfg_dict
    assert dict.get(cfg, "train_dataset")["template_map_fn"] is not None
    text = settings.replace(recipe_of("llama2_7b_qlora_oasst1_e3"), "data.kind", "pretrain")
    after = preset_facts.flat(config.render(text, "m", "d", {}))
    assert after["train_dataset.template_map_fn"] == "None"
    assert "custom_hooks.1.prompt_template" not in after


def test_presets_say_which_kind(tmp_path):
    _, found = settings.load("tiny", ["base=internlm2_7b_qlora_msagent_react_e3_gpu8"])
    assert preset_facts.kind(found) == "agent"
    done = recipe("data", "tiny", "base=internlm2_7b_qlora_msagent_react_e3_gpu8", "--output", tmp_path)
    refused(done, 2, "has an unknown type", ".jsonl")
    assert agent.ROLES == ("system", "user", "assistant")
