"""The decoder's tokens are those of transformers' `generate`, on a tiny model in fp32."""

import random

import pytest
import torch

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM
from recipe.core import imports

imports.load()

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import TextStreamer  # noqa: E402

from recipe.inference.decoding import Decoder, obstacle  # noqa: E402
from recipe.inference.decoding.session import Session, capacity_for  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of a model this small only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


STOP, PAD, VOCABULARY = 7, 2, 300
SIZES = dict(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=112, num_hidden_layers=3)


def make_model(lora=False, bias=False):
    torch.manual_seed(0)
    config = InternLM2Config(**SIZES, num_attention_heads=8, num_key_value_heads=2, bias=bias)
    model = InternLM2ForCausalLM(config).eval()
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(1 + torch.randn_like(one) / 5 if one.dim() == 1 else torch.randn_like(one) / one.shape[-1] ** 0.5)
    if lora:
        targets = ["wqkv", "wo", "w1", "w2", "w3", "output"]
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, one in model.named_parameters():
                if "lora_" in name:
                    one.copy_(torch.randn_like(one) / 8)
    return model.eval()


def make_prompts(count, longest=60, seed=0):
    chance = random.Random(seed)
    return [[chance.randrange(8, VOCABULARY) for _ in range(chance.randrange(1, longest))] for _ in range(count)]


def by_transformers(model, prompts, limit, **settings):
    """What `generate` appends: each row up to and including its stop token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    settings = settings or {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, eos_token_id=[STOP], pad_token_id=PAD, **settings
        )
    rows = [row[longest:] for row in out.tolist()]
    return [row[: row.index(STOP) + 1] if STOP in row else row for row in rows]


def batches(prompts, size):
    return [prompts[first : first + size] for first in range(0, len(prompts), size)]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_greedy_tokens_of_200_prompts(lora):
    model, prompts = make_model(lora), make_prompts(200)
    decoder = Decoder(model)
    together = [row for some in batches(prompts, 7) for row in decoder.generate(some, 8, [STOP], PAD)]
    alone = [decoder.generate([prompt], 8, [STOP], PAD)[0] for prompt in prompts]
    assert alone == together
    assert together == [row for some in batches(prompts, 7) for row in by_transformers(model, some, 8)]
    assert alone == [by_transformers(model, [prompt], 8)[0] for prompt in prompts]
    lengths = {len(row) for row in alone}
    assert len(lengths) > 1  # some met the stop token


@pytest.mark.parametrize(
    "settings",
    [
        dict(do_sample=True, temperature=0.8, top_p=0.8),
        dict(do_sample=True, temperature=0.1, top_p=0.75, top_k=40),
        dict(do_sample=True, temperature=1.3, top_k=0, repetition_penalty=1.2),
        dict(do_sample=False, repetition_penalty=1.3),
    ],
)
def test_sampled_tokens_of_the_same_seed(settings):
    model = make_model()
    decoder = Decoder(model)
    for seed, some in enumerate(batches(make_prompts(12, seed=1), 3)):
        torch.manual_seed(seed)
        expected = by_transformers(model, some, 20, **settings)
        torch.manual_seed(seed)
        assert decoder.generate(some, 20, [STOP], PAD, settings) == expected


def test_disabled_adapter_is_the_base():
    model, prompts = make_model(lora=True), make_prompts(3)
    decoder = Decoder(model)
    tuned = decoder.generate(prompts, 12, [STOP], PAD)
    with model.disable_adapter():
        base = decoder.generate(prompts, 12, [STOP], PAD)
        assert base == by_transformers(model, prompts, 12)
    assert base != tuned
    assert decoder.generate(prompts, 12, [STOP], PAD) == tuned == by_transformers(model, prompts, 12)


def test_bias_and_prompts_beyond_the_smallest_cache():
    model = make_model(bias=True)
    prompts = [make_prompts(1, 2, seed)[0] * 280 for seed in range(2)] + make_prompts(1)
    assert Decoder(model).generate(prompts, 8, [STOP], PAD) == by_transformers(model, prompts, 8)


def test_logits_in_bf16():
    """Both round differently; the largest difference stays below 3 % of the logits' spread."""
    model = make_model(lora=True).to(torch.bfloat16)
    decoder, prompts = Decoder(model), make_prompts(5, seed=2)
    session = decoder.session(1, 64)
    for prompt in prompts:
        with torch.no_grad():
            session.read([prompt[:-1] or prompt])
            got = session.step(torch.tensor(prompt[-1:]))
            expected = model(torch.tensor([(prompt[:-1] or prompt) + prompt[-1:]])).logits[:, -1]
        assert float((got - expected).abs().max()) < 0.03 * float(expected.max() - expected.min())


def test_a_row_ends_by_its_words_and_streams():
    model, prompt = make_model(), make_prompts(1)[0]
    whole = Decoder(model).generate([prompt], 10, [], PAD)[0]
    assert Decoder(model).generate([prompt], 10, [], PAD, is_complete=lambda _, row: len(row) == 4) == [whole[:4]]

    class Streamer(TextStreamer):
        def __init__(self):
            self.seen, self.ended = [], False

        def put(self, value):
            self.seen.append(value.tolist())

        def end(self):
            self.ended = True

    streamer = Streamer()
    Decoder(model).generate([prompt], 10, [], PAD, streamer=streamer)
    assert streamer.seen == [[prompt], *([token] for token in whole)]
    assert streamer.ended


def test_sessions_are_kept_for_the_next_answer():
    decoder = Decoder(make_model())
    decoder.generate(make_prompts(1), 4, [])
    kept = decoder.session(1, 100)
    decoder.generate(make_prompts(2), 4, [])
    assert decoder.session(1, 50) is kept
    for rows in (3, 4, 5):
        decoder.generate(make_prompts(rows), 4, [])
    assert len(decoder.sessions) == 2


def test_what_is_left_to_transformers():
    model = make_model()
    assert obstacle(model) == obstacle(make_model(lora=True)) == ""
    assert obstacle(torch.nn.Linear(2, 2)) == "Linear is not InternLM2"
    decoder = Decoder(model)
    assert decoder.accepts([[1] * 10], 20, {})
    assert not decoder.accepts([[1] * 10], 20, {"num_beams": 2})
    assert not decoder.accepts([[1] * 10], model.config.max_position_embeddings, {})
    model.output.half()
    assert "float16" in obstacle(model)


def test_capacities():
    assert [capacity_for(tokens, 2000) for tokens in (1, 256, 257, 1025)] == [256, 256, 512, 2000]


def test_a_decoder_that_differs_is_not_used(monkeypatch):
    model, prompts = make_model(lora=True), make_prompts(3)
    assert Decoder(model).fault(prompts) == ""
    wrong = Decoder(model)
    layer = wrong.network.layers[1]
    layer.w1, layer.w3 = layer.w3, layer.w1
    assert "differ by" in wrong.fault(prompts)
    broken = Decoder(model)
    monkeypatch.setattr(broken.network.layers[0], "step", None)
    assert broken.fault(prompts) == "TypeError: 'NoneType' object is not callable"
    assert not broken.record
    unrecorded, compute = Decoder(model), Session._compute

    def fails_where_recorded(session):
        if unrecorded.record:
            raise RuntimeError("operation not permitted when stream is capturing")
        compute(session)

    monkeypatch.setattr(Session, "_compute", fails_where_recorded)
    assert unrecorded.fault(prompts) == ""
    assert not unrecorded.record
