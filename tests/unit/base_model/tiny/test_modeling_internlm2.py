"""The tiny model's arithmetic, against two other implementations."""

import importlib.util
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)

from recipe.base_model import tiny
from recipe.base_model.tiny import tokenizer_from_model
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM, InternLM2RMSNorm, InternLM2RotaryEmbedding
from support.tiny_model import SIZES, TEXTS


@pytest.fixture
def model(base):
    return InternLM2ForCausalLM.from_pretrained(str(base), torch_dtype=torch.float32).eval()


@pytest.fixture
def ids(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, model.config.vocab_size, (2, 40), generator=generator)


# The arithmetic.


def as_llama(model):
    """transformers' Llama with the same weights: only the fused projection differs."""
    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=1e-5,
            rope_theta=1000000.0,
            rope_scaling={"type": "dynamic", "factor": 2.0},
        )
    )
    names = {
        "tok_embeddings": "embed_tokens",
        "output": "lm_head",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    weights = {}
    for name, weight in model.state_dict().items():
        if "wqkv" in name:
            head = config.hidden_size // config.num_attention_heads
            groups = config.num_attention_heads // config.num_key_value_heads
            blocks = weight.view(config.num_key_value_heads, groups + 2, head, config.hidden_size)
            for part, rows in (("q", blocks[:, :groups]), ("k", blocks[:, groups]), ("v", blocks[:, groups + 1])):
                target = name.replace("attention.wqkv", f"self_attn.{part}_proj")
                weights[target] = rows.reshape(-1, config.hidden_size)
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    llama.load_state_dict(weights)
    return llama.eval()


@pytest.fixture(scope="module")
def reference():
    """The InternLM2 code in lmdeploy 0.2.5, as published; what it takes from lmdeploy is stubbed."""
    folder = os.environ.get("REFERENCE", "")
    path = Path(folder) / "lmdeploy/pytorch/modeling/modeling_internlm2.py"
    if not folder or not path.is_file():
        message = "REFERENCE names no folder with lmdeploy 0.2.5"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    package = "lmdeploy.pytorch.modeling"
    stubs = {name: types.ModuleType(name) for name in ("lmdeploy", "lmdeploy.pytorch", package, "lmdeploy.utils")}
    stubs[package + ".convert_to_qmodules"] = types.ModuleType("convert_to_qmodules")
    stubs[package + ".configuration_internlm2"] = types.ModuleType("configuration_internlm2")
    stubs["lmdeploy.utils"].get_logger = lambda name: None
    stubs[package + ".convert_to_qmodules"].convert_to_qmodules = lambda model: None
    # No configuration comes with the code. A bare one has exactly the fields of config.json.
    stubs[package + ".configuration_internlm2"].InternLM2Config = PretrainedConfig
    specification = importlib.util.spec_from_file_location(package + ".modeling_internlm2", str(path))
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        for name, stub in stubs.items():
            patch.setitem(sys.modules, name, stub)
        specification.loader.exec_module(module)
    return module


def as_reference(model, reference):
    config = PretrainedConfig.from_dict(model.config.to_dict())
    other = reference.InternLM2ForCausalLM(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


def check_same(model, other, ids):
    """The same logits, loss and gradients, with padding on the right."""
    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    outputs = [each(input_ids=ids, attention_mask=mask, labels=labels) for each in (model, other)]
    ours, theirs = (output.logits[mask.bool()] for output in outputs)
    assert ours.std() > 0.1, "logits too flat to compare"
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss, rtol=0, atol=1e-5)
    gradients = [
        torch.autograd.grad(o.loss, m.get_input_embeddings().weight)[0] for o, m in zip(outputs, (model, other))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trained", [32768, 24], ids=["within", "beyond"])
def test_same_as_llama(trained, base, ids):
    """Also beyond the trained length of 24 tokens, where the rotary base is stretched."""
    model = InternLM2ForCausalLM.from_pretrained(str(base), torch_dtype=torch.float32, max_position_embeddings=trained)
    check_same(model.eval(), as_llama(model), ids)


@pytest.mark.parametrize("trained", [32768, 24], ids=["within", "beyond"])
def test_same_as_the_published_code(trained, base, ids, reference):
    model = InternLM2ForCausalLM.from_pretrained(str(base), torch_dtype=torch.float32, max_position_embeddings=trained)
    check_same(model.eval(), as_reference(model, reference), ids)


def test_biases(reference, ids, base):
    model = InternLM2ForCausalLM(AutoConfig.from_pretrained(str(base), trust_remote_code=True, bias=True)).eval()
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    check_same(model, as_reference(model, reference), ids)


def test_rotation_survives_a_cast():
    """In float16 the frequencies themselves would be off by whole turns far into a text."""
    rotary, half = InternLM2RotaryEmbedding(32), InternLM2RotaryEmbedding(32).half()
    x = torch.zeros(1)
    for wide, cast in zip(rotary(x, seq_len=20000), half(x, seq_len=20000)):
        assert wide.shape == (20000, 32)
        assert torch.equal(wide, cast)


def test_norm_is_computed_in_float32():
    """In float16 the squares of 300 would overflow."""
    norm = InternLM2RMSNorm(8).half()
    x = torch.full((1, 8), 300.0, dtype=torch.float16)
    assert norm(x).dtype == torch.float16
    torch.testing.assert_close(norm(x), torch.ones(1, 8, dtype=torch.float16))


def test_shapes(model, ids):
    output = model(input_ids=ids, use_cache=True, output_hidden_states=True, output_attentions=True)
    assert output.loss is None
    assert output.logits.shape == (2, 40, SIZES["vocab_size"])
    assert output.logits.dtype == torch.float32
    assert [state.shape for state in output.hidden_states] == [(2, 40, 64)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 4, 40, 40)] * 2
    assert [[part.shape for part in layer] for layer in output.past_key_values] == [[(2, 2, 40, 16)] * 2] * 2
    assert torch.equal(model.output(output.hidden_states[-1]), output.logits)
    torch.testing.assert_close(torch.stack(output.attentions).sum(-1), torch.ones(2, 2, 4, 40))
    plain = model(input_ids=ids, labels=ids, use_cache=False, return_dict=False)
    assert [part.shape for part in plain] == [(), (2, 40, SIZES["vocab_size"])]


def test_embeddings_for_ids(model, ids):
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert torch.equal(embedded, model(input_ids=ids).logits)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one"):
            model(**wrong)


def test_loss_ignores_unlabelled_tokens(model, ids):
    labels = torch.full_like(ids, -100)
    labels[0, 7], labels[1, 0] = ids[0, 7], ids[1, 0]
    output = model(input_ids=ids, labels=labels)
    # Token 0 has nothing before it that could predict it, so one token is scored.
    expected = -output.logits[0, 6].log_softmax(-1)[ids[0, 7]]
    torch.testing.assert_close(output.loss, expected)


def answers(model, ids, **more):
    plain = GenerationConfig(max_new_tokens=24, do_sample=False, bos_token_id=1, pad_token_id=2, **more)
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=plain)


def test_cache_changes_nothing(model, ids):
    greedy = answers(model, ids)
    assert greedy.shape == (2, 64)
    assert torch.equal(greedy, answers(model, ids, use_cache=False))
    beams = answers(model, ids, num_beams=3)
    assert torch.equal(beams, answers(model, ids, num_beams=3, use_cache=False))
    whole = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :25], use_cache=True)
    rest = model(input_ids=ids[:, 25:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), 1), whole, rtol=0, atol=1e-5)


def test_stops_at_both_end_tokens(model):
    """The folder's own settings, not those a model's configuration implies."""
    for end in model.generation_config.eos_token_id:
        with torch.no_grad():
            # Whatever is said, the row of `end` scores highest.
            model.output.weight.zero_()
            hook = model.output.register_forward_hook(lambda *a, end=end: a[2].index_fill(-1, torch.tensor(end), 1.0))
        assert model.generate(input_ids=torch.tensor([[1, 300]]), max_new_tokens=5)[0].tolist() == [1, 300, end]
        hook.remove()


def test_left_padding_changes_nothing(model, ids):
    padded = torch.cat((torch.full((2, 9), 2), ids), dim=1)
    mask = (torch.arange(49) >= 9).long().expand(2, 49)
    plain = model(input_ids=ids).logits
    shifted = model(input_ids=padded, attention_mask=mask).logits
    assert shifted.isfinite().all()
    torch.testing.assert_close(shifted[:, 9:], plain, rtol=0, atol=1e-4)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    one = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    other = model.generate(input_ids=padded, attention_mask=mask, **options)
    assert torch.equal(one[:, 40:], other[:, 49:])


def test_positions_begin_after_the_padding(model):
    row, mask = torch.tensor([[2, 2, 1, 300, 301]]), torch.tensor([[0, 0, 1, 1, 1]])
    whole = model.prepare_inputs_for_generation(row, attention_mask=mask)
    assert whole["position_ids"][0, 2:].tolist() == [0, 1, 2]
    past = model(input_ids=row[:, :4], attention_mask=mask[:, :4], use_cache=True).past_key_values
    rest = model.prepare_inputs_for_generation(row, past_key_values=past, attention_mask=mask)
    assert rest["input_ids"].tolist() == [[301]]
    assert rest["position_ids"].tolist() == [[2]]


def gradients(model, ids):
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_checkpointing_gives_the_same_gradients(model, ids):
    model.train()
    plain = gradients(model, ids)
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    again = gradients(model, ids)
    assert len(calls) == 2, "the layer was not run again on the way back"
    assert model(input_ids=ids, use_cache=True).past_key_values is None
    calls.clear()
    assert plain.keys() == again.keys() == dict(model.named_parameters()).keys()
    for name in plain:
        torch.testing.assert_close(plain[name], again[name])
    model.gradient_checkpointing_disable()
    gradients(model, ids)
    assert len(calls) == 1
    # As under LoRA: frozen, but for one matrix behind a checkpoint.
    model.requires_grad_(False)
    model.model.layers[1].attention.wo.weight.requires_grad_(True)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    only = gradients(model, ids)
    assert list(only) == ["model.layers.1.attention.wo.weight"]
    torch.testing.assert_close(only[list(only)[0]], plain[list(only)[0]])  # noqa: RUF015


def test_xtuner_puts_its_own_attention_in(model, ids):
    from xtuner.model.modules import dispatch_modules
    from xtuner.model.modules.dispatch import internlm2 as theirs

    mask = torch.ones_like(ids)
    mask[1, 30:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    before = model(input_ids=ids, attention_mask=mask, labels=labels)
    said = answers(model, ids)
    dispatch_modules(model)
    for layer in model.model.layers:
        assert layer.attention.forward.__func__ is theirs.internlm2_attn_forward
        assert type(layer.attention.rotary_emb) is theirs.InternLM2RotaryEmbedding
        assert layer.attention.rotary_emb.max_seq_len_cached == 32768
    after = model(input_ids=ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(before.loss, after.loss, rtol=0, atol=1e-5)
    torch.testing.assert_close(before.logits[mask.bool()], after.logits[mask.bool()], rtol=0, atol=1e-5)
    assert torch.equal(said, answers(model, ids))


def test_lora_learns_through_frozen_weights(tmp_path):
    """The default sizes and scales, few steps on few rows: from the vocabulary's logarithm to almost nothing."""
    from peft import LoraConfig, get_peft_model

    tiny.make(tmp_path / "base", TEXTS)
    tokenizer = tokenizer_from_model(tmp_path / "base/tokenizer.model")
    model = InternLM2ForCausalLM.from_pretrained(str(tmp_path / "base"), torch_dtype=torch.float32)
    torch.manual_seed(0)
    targets = ["wqkv", "wo", "w1", "w2", "w3", "output"]
    model = get_peft_model(model, LoraConfig(r=64, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
    talks = [
        tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>")
        for question, answer in (("工作累", "先深呼吸。"), ("睡不着", "写下来。"), ("想辞职", "今天只做一件事。"))
    ]
    optimizer = torch.optim.AdamW((w for w in model.parameters() if w.requires_grad), lr=4e-3)
    losses = []
    for _ in range(30):
        loss = sum(model(input_ids=torch.tensor([t]), labels=torch.tensor([t])).loss for t in talks) / len(talks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert 7 < losses[0] < 8.5
    assert losses[-1] < 1.0
    prompt = tokenizer("<|im_start|>user\n工作累<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")
    said = model.eval().generate(**prompt, max_new_tokens=30, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == "先深呼吸。<|im_end|>"
