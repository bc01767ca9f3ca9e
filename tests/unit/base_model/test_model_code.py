"""InternLM2 is loaded with our code: the same logits, and keys that are understood or refused."""

import json

import pytest
import torch

from recipe.base_model import architecture, compatibility, model_code
from recipe.base_model import folder as model
from recipe.core import settings
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.weights import merge
from recipe.xtuner import config
from support.hub_code import TODAY


def test_the_same_logits_and_ids_as_by_the_folders_own_code(run_of_demo, tiny):
    """The tiny folder holds the same code: loaded by transformers' way and by ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(str(run_of_demo), trust_remote_code=True).eval()
    ours = model_code.load_model(run_of_demo).eval()
    assert type(theirs).__module__.startswith("transformers_modules.")
    assert type(ours).__module__ == "recipe.base_model.internlm2"
    tokenizers = [AutoTokenizer.from_pretrained(str(run_of_demo), trust_remote_code=True)]
    tokenizers.append(model_code.load_tokenizer(run_of_demo))
    ids = [
        one("<|im_start|>user\n压力很大，怎么办？<|im_end|>\n", return_tensors="pt")["input_ids"] for one in tokenizers
    ]
    assert torch.equal(*ids)
    with torch.inference_mode():
        assert torch.equal(theirs(ids[0]).logits, ours(ids[0]).logits)


def test_another_family_under_an_internlm2_preset_keeps_its_way(run_of_demo, tmp_path):
    def rendered():
        _, chosen = settings.load("tiny", [f"model.path={run_of_demo}"])
        run = Run("tiny", chosen, tmp_path, tmp_path / "output")
        ours = model.is_internlm2(run)
        return ours, config.render(chosen, "m", "d", {}, None, ours)

    ours, text = rendered()
    assert ours
    assert "InternLM2ForCausalLM.from_pretrained" in text
    assert "AutoModelForCausalLM.from_pretrained" not in text
    read = json.loads((run_of_demo / "config.json").read_text())
    read.update(model_type="llama", architectures=["LlamaForCausalLM"])
    (run_of_demo / "config.json").write_text(json.dumps(read))
    ours, text = rendered()
    assert not ours
    assert "AutoModelForCausalLM.from_pretrained" in text
    assert text.count("trust_remote_code=True") == 2
    assert model_code.describe(run_of_demo) == "the folder's own"


# Keys of config.json

CONFIG = {
    "model_type": "internlm2", "vocab_size": 640, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768, "rope_theta": 1_000_000, "rope_scaling": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (TODAY, None),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 3.0}}, None),
        ({"rope_scaling": {"type": "default"}}, None),
        ({"rope_theta": ..., "rope_parameters": {"rope_theta": 5e7, "rope_type": "default"}}, None),
        ({"attn_implementation": "flash_attention_2"}, None),
        ({"head_dim": 16, "use_qk_norm": False, "temperature": 0.7}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling of type 'yarn'"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "llama3"}}, "rope_scaling of type 'llama3'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "rope_scaling with factor 0.5"),
        ({"head_dim": 32}, "head_dim = 32"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config = {'quant_method': 'awq'}"),
        ({"rope_theta": ...}, "rope_theta is missing"),
        ({"bias": ...}, "bias is missing"),
    ],
)
def test_keys_are_understood_or_refused_by_name(tmp_path, change, told):
    asked = {key: value for key, value in {**CONFIG, **change}.items() if value is not ...}
    found = architecture.unsupported_keys(asked)
    assert found == [] if told is None else told in found[0]
    (tmp_path / "config.json").write_text(json.dumps(asked))
    if told:
        with pytest.raises(InputWrong, match="asks for what our InternLM2 code does not support"):
            compatibility.check(tmp_path, "models/x", "")
        return
    from recipe.base_model.internlm2 import InternLM2ForCausalLM

    made = model_code.make_model(model_code.load_config(tmp_path))  # and our code takes what the check lets through
    assert isinstance(made, InternLM2ForCausalLM)
    theta = asked.get("rope_theta", 5e7)
    assert made.config.rope_theta == made.model.layers[0].attention.rotary_emb.base == theta


@pytest.mark.parametrize("change", [{}, {"bias": True}, {"num_key_value_heads": None}, {"tie_word_embeddings": True}])
def test_the_expected_weights_are_those_of_our_model(tmp_path, change):
    asked = {**CONFIG, **change}
    (tmp_path / "config.json").write_text(json.dumps(asked))
    made = model_code.make_model(model_code.load_config(tmp_path))
    shapes = {name: tuple(weight.shape) for name, weight in made.named_parameters()}
    assert architecture.expected(asked) == shapes
    assert architecture.mismatches(asked, shapes, 2 * sum(weight.numel() for weight in made.parameters())) == []


def test_a_tokenizer_that_adds_otherwise_is_refused(run_of_demo):
    path = run_of_demo / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_eos_token": True}))
    assert compatibility.tokenizer_problems(run_of_demo) == [
        "tokenizer_config.json has add_eos_token = True, and our tokenizer has False"
    ]


def test_a_dry_run_names_the_code_that_will_be_written(run_of_demo):
    (run_of_demo / "tokenization_internlm2_fast.py").write_text("raise SystemExit")
    plan = merge.make_plan(run_of_demo, [], merge.parse_size("1MB"))
    assert plan.code == model_code.FILES
    assert not [path for path in plan.copied if path.suffix == ".py"]


def test_weights_are_prepared_ahead_of_their_turn(run_of_demo):
    """As for a GPU, on the CPU: the same weights, in the same order."""
    from recipe.base_model import internlm2

    file = str(min(run_of_demo.glob("*.safetensors")))
    plain = internlm2.modeling_utils.load_state_dict(file)
    for dtype in (None, torch.bfloat16):
        with internlm2._prepared("cpu", dtype):
            read = internlm2.modeling_utils.load_state_dict(file)
        made = list(read.items())
        assert [name for name, _tensor in made] == list(plain)
        assert all(torch.equal(tensor, plain[name].to(dtype or tensor.dtype)) for name, tensor in made)
    assert type(internlm2.modeling_utils.load_state_dict(file)) is dict


def test_a_device_may_have_a_name(run_of_demo):
    assert model_code.load_model(run_of_demo, device_map="cpu").device.type == "cpu"
