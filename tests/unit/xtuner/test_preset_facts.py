"""Every preset of XTuner: rendered, read by mmengine, compared with its original, and accepted or refused in words."""

import re

import families as tiny_families
import pytest
from conftest import ROOT
from mmengine.config import Config

from recipe.base_model import compatibility, tiny, visual_encoder
from recipe.cli import presets
from recipe.core import imports, measurements, settings
from recipe.core.errors import InputWrong
from recipe.planning import memory
from recipe.xtuner import config, preset_editor, preset_facts

PRETRAIN = "mistral_7b_qlora_skypile_pretrain_e1"
TABLE = ROOT / "docs" / "presets.tsv"
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


def recipe_of(base, **more):
    """A recipe's settings for a base, with every knob set that has a place everywhere."""
    train = dict(
        max_length=512, batch_size=2, accumulative_counts=4, max_epochs=7, lr=1e-4, warmup_ratio=0.05, seed=3,
        map_num_proc=1, evaluation_inputs=["问"], evaluation_max_new_tokens=9, log_interval=2, **more,
    )  # fmt: skip
    return settings.Settings.model_validate(
        {"base": base, "data": {"files": ["x.xlsx"], "system": "教练"}, "train": train, "model": {"id": "a/b"}}
    )


def changed(before, after):
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def parsed(tmp_path, text):
    """As mmengine reads the file; its modules are looked up, not imported: that would take longer than all the rest."""
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8")
    return Config.fromfile(str(path))


def plain(value):
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def test_there_are_all_of_them():
    assert len(preset_editor.files()) == 408
    assert {preset_facts.facts(name).method for name in preset_editor.files()} == {"qlora", "lora", "full", "projector"}
    assert sum(preset_facts.facts(name).kind == "agent" for name in preset_editor.files()) == 5
    assert sum(preset_facts.facts(name).kind == "image" for name in preset_editor.files()) == 16
    assert all(preset_facts.facts(name).template in (*preset_facts.templates(), "") for name in preset_editor.files())


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


def test_the_table_is_the_one_committed():
    """docs/presets.tsv: `just presets --write` makes it again."""
    assert TABLE.read_text(encoding="utf-8") == presets.as_tsv(presets.rows())
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 409
    assert all(re.search(r"\t(accepted; code: |refused: )\S", line) for line in lines[1:])


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


def test_computed_memory_against_what_was_measured():
    """measured.toml's three entries of InternLM2-chat-7B, QLoRA: within 10 %."""
    shape = memory.Shape(7_737_708_544, 32, 4096, 92544)
    for entry in measurements.for_step("stock"):
        tokens = entry["batch_size"] * entry["max_length"]
        computed = memory.estimate(shape, "qlora", 4, tokens)["total"] / 2**20
        assert computed == pytest.approx(entry["memory_mib"], rel=0.1), entry


def test_computed_memory_of_other_models_against_what_was_measured():
    """H100 80GB HBM3, PyTorch 2.11, 2026-11-26: MiB allocated at the peak of an iteration (docs/en/other-models.md)."""
    llama, internlm = memory.Shape(6_738_415_616, 32, 4096, 32000), memory.Shape(1_889_110_016, 24, 2048, 92544)
    sights = [visual_encoder.CLIP_LARGE.load(4096, 4, rank) for rank in (0, 64)]  # LLaVA, four images
    text = 4 * 634  # 15,208 tokens in 24 pairs
    for computed, measured, within in (
        (memory.estimate(llama, "qlora", 4, 2048, 64, False), 8336, 0.15),
        (memory.estimate(internlm, "full", 32, 2048, 0), 39725, 0.02),
        (memory.estimate(internlm, "qlora", 4, 1024, 64), 4668, 0.1),
        (memory.estimate(llama, "projector", 4, text, 0, False, sights[0]), 8655, 0.05),
        (memory.estimate(llama, "qlora", 4, text, 512, False, sights[1]), 31055, 0.1),
    ):
        assert computed["total"] / 2**20 == pytest.approx(measured, rel=within)
    two = {row["stage"]: row["gpu"]["2"] / 2**20 for row in memory.zero_stages(internlm, "lora", 16, 8192, 64)}
    assert two["zero2"] == pytest.approx(13789, rel=0.1)
    assert two["zero3"] == pytest.approx(14877, rel=0.15)


def test_computed_disk_against_what_was_measured():
    """measured.toml's checkpoint and model of InternLM2-chat-7B, QLoRA."""
    shape = memory.Shape(7_737_708_544, 32, 4096, 92544)
    trained = round(memory.estimate(shape, "qlora", 4, 1024)["trained"] / 16)
    found = memory.disk(round(shape.parameters), trained, deepspeed=False, copies=3)
    known = measurements.measurements()["disk"]
    assert found["checkpoint"] / 1e9 == pytest.approx(known["checkpoint"], rel=0.05)
    assert found["model"] / 1e9 == pytest.approx(known["model"], rel=0.01)
    assert found["checkpoints"] == 3 * found["checkpoint"]


def test_zero_divides_what_it_says():
    shape = memory.Shape(1e9, 16, 2048, 32000)
    rows = {row["stage"]: row for row in memory.zero_stages(shape, "full", 32, 1024, 0)}
    assert set(rows) == {"zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"}
    rest = rows["zero3_offload"]["gpu"]["1"]
    assert rows["zero3"]["gpu"]["1"] == pytest.approx(16e9 + 6e9)
    assert rows["zero3"]["gpu"]["8"] - rest == pytest.approx(2e9)
    assert rows["zero2"]["gpu"]["1"] == rows["zero1"]["gpu"]["1"] == pytest.approx(16e9 + 6e9)
    assert rows["zero2"]["gpu"]["8"] - rest == pytest.approx(2e9 + 14e9 / 8)
    assert rows["zero2_offload"]["host"]["8"] == pytest.approx(12e9)
    assert not any(row["stage"].startswith("zero3") for row in memory.zero_stages(shape, "qlora", 4, 1024, 64))


def test_a_new_recipe_parses_and_renders_and_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for base in ("llama2_7b_chat_qlora_medical_e1", "internlm2_chat_1_8b_full_alpaca_e3", PRETRAIN):
        path = presets.write_recipe(f"mine_{base}", base)
        name, found = settings.load(str(path))
        assert (name, found.base, found.model.id) == (f"mine_{base}", base, preset_facts.facts(base).model)
        preset_facts.check(found)
        config.render(found, "m", "d", {"save_steps": 5})
        with pytest.raises(InputWrong, match="is there already"):
            presets.write_recipe(f"mine_{base}", base)
    with pytest.raises(InputWrong, match="no preset"):
        presets.write_recipe("other", "llama9")


TOKENIZER = """
class Tokenizer(PreTrainedTokenizer):
    def __init__(self, vocab_file, **kwargs):
        {first}
        {second}

    @property
    def vocab_size(self):
        return self.sp_model.get_piece_size()

    def get_vocab(self):
        return {{self.convert_ids_to_tokens(i): i for i in range(self.vocab_size)}}
"""


def test_a_tokenizer_that_asks_too_early_is_seen(tmp_path):
    """As Baichuan's: huggingface/transformers#27171. Set in the other order it is let through."""
    lines = ["super().__init__(**kwargs)", "self.sp_model = load(vocab_file)"]
    path = tmp_path / "tokenization_x.py"
    path.write_text(TOKENIZER.format(first=lines[0], second=lines[1]), encoding="utf-8")
    (said,) = compatibility.code_problems(tmp_path)
    assert "before 4.34" in said
    assert "self.sp_model" in said
    path.write_text(TOKENIZER.format(first=lines[1], second=lines[0]), encoding="utf-8")
    assert compatibility.code_problems(tmp_path) == []


@pytest.mark.parametrize("name", preset_facts.templates())
def test_chat_and_engines_ask_as_training_did(name):
    """Two turns by XTuner's template_map_fn, as text, beside what chat asks and what the exported template makes."""
    from recipe.export import merged
    from recipe.inference import chat_model

    template = xtuners(name)
    tokens = merged._Tokens("</s>", "<s>")
    text = ""
    for number, (asked, said) in enumerate((("一", "二"), ("三", "")), start=1):  # encode_fn's order, XTuner 0.1.14
        if number == 1 or not template.get("SUFFIX_AS_EOS", False):
            text += "<s>"
        text += template.SYSTEM.format(system="甲") if number == 1 else ""
        text += template.INSTRUCTION.format(input=asked, round=number)
        if said:
            text += said + template.get("SUFFIX", "")
            text += "" if template.get("SUFFIX_AS_EOS", False) else "</s>"
            text += template.get("SEP", "")
    asked = chat_model.ChatModel.prompt(merged._Trained(template, tokens), "甲", [("一", "二")], "三")
    assert "<s>" + asked == text
    if name == "chatglm2":
        with pytest.raises(InputWrong, match="numbers its turns"):
            merged.in_jinja(template, "</s>", "<s>")
        return
    jinja = merged.in_jinja(template, "</s>", "<s>")
    assert merged._agrees(jinja, template, {"eos_token": "</s>", "bos_token": {"content": "<s>"}})


def xtuners(name):
    """A chat template of XTuner, by its source: importing XTuner would take ten seconds."""
    text = (preset_editor.folder().parent / "utils" / "templates.py").read_text(encoding="utf-8")
    held = {}
    exec(compile(text, "templates.py", "exec"), held)
    return held["PROMPT_TEMPLATE"][name]
