"""The fast step against XTuner's own model: the same loss, gradients and training."""

import copy
import os

import pytest
import torch

from recipe.base_model.tiny.modeling_internlm2 import additive_mask
from recipe.core import imports
from support.fast_step import batch, loss_and_gradients, models, trained

imports.load()

from recipe.training.fast import check  # noqa: E402
from recipe.training.fast.finetune import Finetune, HostEmbedding  # noqa: E402

CLOSE = 1e-5  # of the largest value, fp32


@pytest.fixture(autouse=True)
def seed():
    """Fresh numbers every time; the seed is in the failure."""
    number = int.from_bytes(os.urandom(4), "big")
    torch.manual_seed(number)
    print("seed", number)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for matrices this small more of them wait for each other
    yield number
    torch.set_num_threads(threads)


def assert_same(got, wanted):
    assert float((got - wanted).abs().max() / wanted.abs().max()) <= CLOSE


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
def test_loss_and_every_gradient_are_the_stock_models(padded, checkpointed):
    stock, fast = models(use_activation_checkpointing=checkpointed)
    data = batch(padded=padded)
    (loss, wanted), (found, got) = loss_and_gradients(stock, data), loss_and_gradients(fast, data)
    assert_same(found, loss)
    assert got.keys() == wanted.keys()
    assert len(got) == 3 * 5 * 2
    for name, one in wanted.items():
        assert_same(got[name], one)


def test_each_layer_is_the_stock_layer():
    stock, fast = models()
    inputs = torch.randn(2, 40, 64)
    causal = stock.llm.get_base_model()
    cos, sin = causal.model.layers[0].attention.rotary_emb(inputs, seq_len=40)
    for number, layer in enumerate(causal.model.layers):
        x, y = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
        mask = additive_mask(None, x, 0)
        wanted = layer(x, attention_mask=mask, position_ids=torch.arange(40)[None])[0]
        got = fast._layers[0][number](y, cos, sin)
        assert_same(got.detach(), wanted.detach())
        upon = torch.randn_like(wanted)
        wanted.backward(upon)
        got.backward(upon)
        assert_same(y.grad, x.grad)


def test_training_gives_the_same_curve():
    """50 updates by AdamW on fresh batches: losses within 1e-4, relative; the weights go apart by rounding alone."""
    stock, fast = models(use_activation_checkpointing=True)
    batches = [batch(rows=2, padded=number % 2 == 1) for number in range(50)]
    curves = []
    for model in (stock, fast):
        optimizer = torch.optim.AdamW(trained(model).values(), lr=2e-3)
        curve = []
        for data in batches:
            loss, _ = loss_and_gradients(model, data)
            optimizer.step()
            curve.append(float(loss))
        curves.append(torch.tensor(curve))
    assert curves[0][-1] != curves[0][0]
    assert float(((curves[0] - curves[1]) / curves[0]).abs().max()) < 1e-4


def test_dropout_is_the_same_when_recomputed_and_right_on_average(seed):
    _, kept = models(dropout=0.3, use_activation_checkpointing=False)
    recomputed = copy.deepcopy(kept)
    recomputed.checkpointed = True
    data = batch(rows=1)
    found = []
    for model in (kept, recomputed):
        torch.manual_seed(seed)
        found.append(loss_and_gradients(model, data))
    assert found[0][0] == found[1][0]
    for name, one in found[0][1].items():
        assert_same(found[1][1][name], one)
    linear = kept._layers[0][0].wqkv
    x = torch.randn(1, 64)
    many = linear(x.expand(20000, 64)).detach()
    linear.dropout = 0.0
    alone = linear(x).detach()[0]
    error = (many.mean(0) - alone).abs() / (many.std(0) / 20000**0.5)
    assert float(error.max()) < 6  # standard errors, 96 values
    assert float(many.std(0).min()) > 0


def test_a_step_is_recorded_with_parameters_of_its_own_on_the_same_memory():
    """A graph cannot wait for the stream that DeepSpeed's hooks tied a parameter to; what is trained is still read."""
    fast = models()[1]
    held = fast.lora_parameters()
    with check.detached_parameters(fast.lora_modules()):
        other = fast.lora_parameters()
        assert not {id(one) for one in held} & {id(one) for one in other}
        assert [one.data_ptr() for one in held] == [one.data_ptr() for one in other]
        held[0].data.add_(1)
        assert torch.equal(held[0], other[0])
    assert [id(one) for one in fast.lora_parameters()] == [id(one) for one in held]


def test_small_keeps_embeddings_in_the_machines_memory():
    stock, fast = models(small=True)
    assert isinstance(fast.llm.get_base_model().model.tok_embeddings, HostEmbedding)
    assert not [name for name, _ in fast.named_parameters() if "tok_embeddings" in name]
    data = batch()
    assert_same(loss_and_gradients(fast, data)[0], loss_and_gradients(stock, data)[0])
    stock.eval(), fast.eval()
    with torch.no_grad():
        ids = data["input_ids"][:1, :8]
        words = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert fast.generate(input_ids=ids, **words).tolist() == stock.generate(input_ids=ids, **words).tolist()


def test_what_it_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"train\.speed=stock"):
        Finetune(torch.nn.Linear(2, 2), None)
