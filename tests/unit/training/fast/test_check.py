"""The comparison of the fast step with XTuner's own and with its recording: what is wrong is caught and not used."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub

from recipe.core import translation
from recipe.training.fast import check, finetune, layers, nf4, verdict
from support.fast_step import batch, loss_and_gradients, models, trained


@pytest.fixture
def running():
    """As inside mmengine's runner: what is said and remembered."""
    hub = MessageHub.get_instance("a run")
    hub.update_info("iter", 0)
    yield hub
    del MessageHub._instance_dict["a run"]


def same(got, wanted):
    (loss, gradients), (other, others) = got, wanted
    return torch.equal(loss, other) and all(torch.equal(one, others[name]) for name, one in gradients.items())


def swapped(plain):
    """A wrong layout: the two values of every byte change places."""
    return lambda self, dtype: plain(self, dtype).reshape(-1, 2).flip(1).reshape(plain(self, dtype).shape)


def neighbours(model, plain):
    """What bitsandbytes 0.43 gives in a replay: the weight of this shape that was laid out last."""
    last = {tuple(one.base.weight.shape): one.base.weight for layer in model.fast_layers() for one in layer.linears}
    return lambda self, dtype: last[tuple(self.base.weight.shape)].to(dtype)


@pytest.mark.parametrize("more", [{}, {"small": True}, {"use_activation_checkpointing": False}], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_it_passes_and_training_is_the_same_with_it(more, padded):
    """Same random numbers, weights, gradients and loss, dropout among them, as without the comparison."""
    _, compared = models(dropout=0.3, **more)
    alone, data = copy.deepcopy(compared), batch(padded=padded)
    alone.checked = {"passed": True}
    found = []
    for model in (compared, alone):
        torch.manual_seed(7)
        found.append((loss_and_gradients(model, data), torch.get_rng_state()))
    assert same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert all(torch.equal(a, b) for a, b in zip(compared.parameters(), alone.parameters()))
    figures = compared.checked
    assert figures["passed"], figures
    assert 0 < figures["layer_difference"] < figures["tolerance"]["layer"] / 10
    assert not compared.llm.is_gradient_checkpointing


def test_a_piece_of_the_batch_is_compared_in_which_something_is_learned():
    data = batch(rows=3, tokens=400)
    data["labels"][0] = data["labels"][1, :350] = -100
    piece = check.select_excerpt(data, 2, 64)
    assert {tuple(one.shape) for one in piece.values()} == {(2, 64)}
    assert (piece["labels"] != -100).any(1).all()
    data["labels"][:] = -100
    assert (check.select_excerpt(data, 1, 64)["labels"] != -100).all()


def planted_layout(monkeypatch, model):
    monkeypatch.setattr(layers.LoraLinear, "weight", swapped(layers.LoraLinear.weight))


def planted_stale_weight(monkeypatch, model):
    """One matrix of one layer is read as its neighbour's."""
    lora = model.fast_layers()[1].w3
    monkeypatch.setattr(lora, "weight", lambda dtype: model.fast_layers()[2].w3.base.weight.to(dtype))


def planted_gradient(monkeypatch, model):
    """Half of one matrix's gradient is missing; loss and outputs are right."""
    backward = layers._Linear.backward

    def wrong(ctx, grad):
        found = list(backward(ctx, grad))
        if ctx.lora is model.fast_layers()[0].wo:
            found[3] = found[3] / 2
        return tuple(found)

    monkeypatch.setattr(layers._Linear, "backward", staticmethod(wrong))


def planted_error(monkeypatch, model):
    monkeypatch.setattr(model, "step", lambda *inputs: torch.zeros(2) @ torch.zeros(3))


@pytest.mark.parametrize("plant", [planted_layout, planted_stale_weight, planted_gradient, planted_error])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
def test_a_wrong_step_is_caught_and_xtuners_own_taken(monkeypatch, running, plant, checkpointed):
    logged = []
    monkeypatch.setattr(check, "print_log", lambda line, logger: logged.append(line))
    stock, fast = models(use_activation_checkpointing=checkpointed)
    plant(monkeypatch, fast)
    data = batch()
    found = loss_and_gradients(fast, data)
    assert fast.stock
    assert not fast.checked["passed"]
    assert same(found, loss_and_gradients(stock, data))
    assert fast.llm.is_gradient_checkpointing  # a stock step that keeps everything may not fit
    assert len(logged) == 1
    assert "XTuner's own" in verdict.failure_message(verdict.parse_line(logged[0]))
    assert logged[0].isascii()


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        (
            {"compared": "recording", "passed": False, "error": verdict.FOUND_BEFORE},
            "快速训练步没有录制成 CUDA Graph：在这次运行开始时发现。",
        ),
        (
            {"compared": "against_stock", "loss_difference": 0.02, "layer_difference": 1.0, "worst": "layer 3, wqkv A"},
            "快速训练步与 XTuner 自己的训练步不一致，这次运行改用后者：损失相差 2.00%，"
            "最差处（第 3 层的 wqkv A）相差 100.00%。",
        ),
    ],
)
def test_what_was_logged_in_english_is_shown_in_chinese(figures, told):
    with translation.use("zh"):
        assert verdict.failure_message(figures) == told


def test_what_is_no_number_is_the_worst():
    worst = check.WorstDifference()
    for where, got in (("a", 1.5), ("b", float("nan")), ("c", 3.0)):
        worst.add(where, torch.tensor([got]), torch.ones(1))
    assert worst.where == "b"
    assert check.relative_difference(torch.zeros(2), torch.zeros(2)) == 0
    assert check.relative_difference(torch.ones(2), torch.zeros(2)) == float("inf")


def test_all_ranks_take_the_same_step(monkeypatch):
    monkeypatch.setattr(check, "get_world_size", lambda: 2)
    monkeypatch.setattr(check, "all_reduce", lambda tensor, how: tensor.fill_(1))  # the other one's failed
    stock, fast = models()
    data = batch()
    assert same(loss_and_gradients(fast, data), loss_and_gradients(stock, data))


def test_a_resumed_run_keeps_the_step_that_it_began_with(monkeypatch, running):
    """The message hub is what mmengine puts into every checkpoint and takes from it again."""
    with monkeypatch.context() as planted:
        _, fast = models()
        planted_layout(planted, fast)
        loss_and_gradients(fast, batch())
    kept = running.state_dict()
    del MessageHub._instance_dict["a run"]
    hub = MessageHub.get_instance("a run")
    hub.load_state_dict(kept)
    hub.update_info("iter", 5)
    stock, fast = models()
    data = batch()
    assert same(loss_and_gradients(fast, data), loss_and_gradients(stock, data))
    assert fast.stock


class Recording:
    """Stands for a CUDA graph of the step: replays by computing the step again, right unless a test plants a fault."""

    def __init__(self, model, inputs):
        self.model, self.inputs, self.gradients = model, [one.detach().clone() for one in inputs], None

    def replay(self, inputs):
        self.inputs = inputs
        return self._run()

    def _run(self):
        with check.detached_parameters(self.model.lora_modules()), torch.enable_grad():
            loss = self.model.step(*self.inputs)
            self.gradients = list(torch.autograd.grad(loss, self.model.lora_parameters()))
        return loss.detach()


class StaleInputs(Recording):
    def replay(self, inputs):
        return self._run()


class StaleLabels(Recording):
    def replay(self, inputs):
        self.inputs = (*inputs[:3], self.inputs[3])
        return self._run()


class StaleLora(Recording):
    """Reads LoRA's weights as they were when it was recorded."""

    def __init__(self, model, inputs):
        super().__init__(model, inputs)
        self.held = [one.weight.detach().clone() for one in model.lora_modules()]

    def _run(self):
        now = [one.weight.detach().clone() for one in self.model.lora_modules()]
        self._put(self.held)
        try:
            return super()._run()
        finally:
            self._put(now)

    def _put(self, values):
        for one, value in zip(self.model.lora_modules(), values):
            one.weight.data.copy_(value)


class StaleWeight(Recording):
    """Reads the weight that was laid out last, as bitsandbytes 0.43 does in a replay."""

    def _run(self):
        plain = layers.LoraLinear.weight
        layers.LoraLinear.weight = neighbours(self.model, plain)
        try:
            return super()._run()
        finally:
            layers.LoraLinear.weight = plain


class OneStaleGradient(Recording):
    def _run(self):
        loss = super()._run()
        self.gradients[7] = torch.ones_like(self.gradients[7])
        return loss


@pytest.mark.parametrize("kind", [Recording, StaleInputs, StaleLabels, StaleLora, StaleWeight, OneStaleGradient])
def test_a_wrong_replay_is_caught_and_the_step_not_recorded(monkeypatch, running, kind):
    made = []
    monkeypatch.setattr(finetune, "_RecordedStep", lambda *words: made.append(kind(*words)) or made[-1])
    monkeypatch.setattr(finetune.Finetune, "_can_use_graph", lambda self, x: self.graph)
    said = []
    monkeypatch.setattr(check, "log_figures", said.append)
    _, fast = models(use_activation_checkpointing=True)
    alone = copy.deepcopy(fast)
    alone.graph, alone.checked = False, {"passed": True}
    for number in range(finetune.EAGER_STEPS + 3):
        data = batch(rows=2)
        before = [one.detach().clone() for one in fast.lora_parameters()]
        assert same(loss_and_gradients(fast, data), loss_and_gradients(alone, data)), number
        assert all(map(torch.equal, before, fast.lora_parameters()))
        for model in (fast, alone):
            with torch.no_grad():
                for one in trained(model).values():
                    one.add_(0.01 * one.grad)
    assert len(made) == 1
    stock, recording = said
    assert stock["passed"]
    assert recording["passed"] == fast.graph == (kind is Recording), recording
    assert check.has_failed("recording") == (kind is not Recording)
    told = verdict.summary({one["compared"]: one for one in said})
    assert ("not recorded" in told) == (kind is not Recording)


def test_a_replay_is_compared_where_a_batch_has_nothing_to_learn():
    _, fast = models()
    data = batch()
    data["labels"][:] = -100
    found = check.ReplayCheck(fast, fast.step_inputs(data)).compare(Recording(fast, fast.step_inputs(data)))
    assert found["passed"]
    assert found["gradient_difference"] == 0


def test_a_step_that_may_not_be_recorded_says_why_once(monkeypatch, running):
    said = []
    monkeypatch.setattr(check, "log_figures", said.append)
    monkeypatch.setattr(nf4, "graph_obstacle", lambda weight: "bitsandbytes is too old")
    _, fast = models()
    x = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(2, 512))
    assert not fast._can_use_graph(x)
    assert not fast._can_use_graph(x)
    assert [one["error"] for one in said] == ["bitsandbytes is too old"]
