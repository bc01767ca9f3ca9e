"""The fast way against XTuner's own model: the same loss, the same gradients, the same training; in the trainer too."""

import contextlib
import copy
import hashlib
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, recipe
from mmengine.config import Config

from recipe.base_model.tiny.configuration_internlm2 import InternLM2Config
from recipe.base_model.tiny.modeling_internlm2 import InternLM2ForCausalLM, additive_mask
from recipe.core import imports, measurements, settings
from recipe.core.errors import InputWrong
from recipe.training import bench
from recipe.xtuner import config, step_choice

imports.load()

from peft import LoraConfig  # noqa: E402
from xtuner.model import SupervisedFinetune  # noqa: E402

from recipe.training.fast import check  # noqa: E402
from recipe.training.fast.finetune import Finetune, HostEmbedding  # noqa: E402

TARGETS = ["wqkv", "wo", "w1", "w2", "w3"]
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


def models(dropout=0.0, **more):
    """(stock, fast): the same frozen weights and the same LoRA, no entry of it zero."""
    sizes = dict(vocab_size=300, hidden_size=64, intermediate_size=112, num_hidden_layers=3)
    llm = InternLM2ForCausalLM(InternLM2Config(**sizes, num_attention_heads=8, num_key_value_heads=2))
    with torch.no_grad():
        for one in llm.parameters():
            one.copy_(1 + torch.randn_like(one) / 5 if one.dim() == 1 else torch.randn_like(one) / one.shape[-1] ** 0.5)
    made = [
        kind(copy.deepcopy(llm), LoraConfig(r=8, lora_alpha=16, lora_dropout=dropout, target_modules=TARGETS), **words)
        for kind, words in ((SupervisedFinetune, {}), (Finetune, more))
    ]
    with torch.no_grad():
        for a, b in zip(*(trained(one).values() for one in made)):
            b.copy_(a.copy_(torch.randn_like(a) / 8))
    return [one.train() for one in made]


def trained(model):
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def batch(rows=3, tokens=40, padded=False):
    """Questions not learned; padded as XTuner's collate function pads."""
    ids = torch.randint(3, 300, (rows, tokens))
    labels = ids.clone()
    for row in range(rows):
        labels[row, : int(torch.randint(1, tokens // 2, ()))] = -100
        if padded and row:
            end = int(torch.randint(tokens // 2, tokens, ()))
            ids[row, end:], labels[row, end:] = 0, -100
    return dict(input_ids=ids, attention_mask=ids.ne(0), labels=labels)


def loss_and_gradients(model, data):
    for one in model.parameters():
        one.grad = None
    loss = model(data, mode="loss")["loss"]
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in trained(model).items()}


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


def rendered(*overrides):
    text = config.render(settings.load("coach", overrides)[1], "models/base", "dataset.jsonl", {})
    return Config.fromstring(text, file_format=".py")


def test_speed_is_named_by_the_config(monkeypatch):
    card = dict(name="NVIDIA H100", memory_mib=81559, capability="9.0")
    monkeypatch.setattr(step_choice, "gpus", lambda: [card])
    cfg = rendered()
    assert cfg.model.type == "recipe.training.fast.finetune.Finetune"
    assert sorted(cfg.model.lora.target_modules) == sorted(TARGETS)  # not the output head, as XTuner's own
    assert cfg.model.lora.lora_dropout == 0
    assert rendered("train.speed=stock").model.type.__name__ == "SupervisedFinetune"
    assert rendered("train.speed=fast", "lora.lora_dropout=0.1").model.lora.lora_dropout == 0.1
    card.update(capability="7.5")
    assert rendered().model.type.__name__ == "SupervisedFinetune"
    card.update(capability="8.6", memory_mib=81559)
    assert rendered("gpus=2").model.type.__name__ == "SupervisedFinetune"
    assert rendered("gpus=2", "train.speed=fast").model.graph is False
    with pytest.raises(InputWrong, match=r"without ZeRO-3.*train\.speed=stock"):
        rendered("train.speed=fast", "train.method=lora", "train.deepspeed=deepspeed_zero3")
    card.update(memory_mib=8188)
    cfg = rendered()
    assert cfg.model.small is True
    assert cfg.optim_wrapper.optimizer.type == "bitsandbytes.optim.AdamW8bit"


BENCH = """
import json, sys
from pathlib import Path
from recipe.core import settings
from recipe.training import bench
bench.TIMED_STEPS = bench.WARMUP_STEPS = 1
said = []
found = bench.run(settings.load("demo", ["train.max_length=32"])[1], Path(sys.argv[1]), said.append)
print(json.dumps([found, said]))
"""


def test_bench_measures_and_plan_reckons_with_it(tmp_path, monkeypatch):
    """In a process of its own, as it runs: what it compares depends on what a process has set in PyTorch."""
    done = subprocess.run(
        [sys.executable, "-c", BENCH, str(tmp_path)], cwd=str(ROOT), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found, said = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "bench.json").read_text(encoding="utf-8")) == found
    assert [entry["way"] for entry in found["tiny"]] == ["stock", "fast", "kept", "small"], said
    assert all(entry["seconds"] > 0 and entry["floor"] > 0 for entry in found["tiny"])
    assert found["ceilings"]["matmul"] > 1e8
    assert found["measurement"] == []  # nothing of the tiny model is taken for the 7B model's
    assert len(said) == 6
    card = "NVIDIA GeForce RTX 4090"
    plan = dict(batch_size=2, max_length=512, iterations=10, way="fast")
    assert measurements.estimate(plan, card, 0)["seconds"] is None
    own = {"card": card, "way": "fast", "batch_size": 1, "max_length": 512, "seconds": 2.5, "memory_mib": 9000}
    (tmp_path / "bench.json").write_text(json.dumps({"measurement": [{**own, "source": "just bench"}]}))
    monkeypatch.setattr(measurements, "BENCH", tmp_path / "bench.json")
    reckoned = measurements.estimate(plan, card, 0)
    assert reckoned["seconds"] == 50
    assert reckoned["source"] == "just bench"
    assert 9000 < reckoned["memory_mib"] < 12_000
    with pytest.raises(InputWrong, match="InternLM2-7B"):
        bench.run(settings.load("demo", ["base=llama2_7b_chat_qlora_medical_e1"])[1], tmp_path, said.append)


def test_the_floor_counts_what_must_be_done():
    """By hand for one layer: products of 2·tokens·out·in, twice, and all but the last once more; the head twice."""
    sizes = {**bench.SHAPES_TINY, "num_hidden_layers": 1, "vocab_size": 10}
    matrices = [(384, 256), (256, 256), (704, 256), (704, 256), (256, 704)]
    assert bench.matrix_shapes(sizes) == matrices
    numbers = sum(out * inner for out, inner in matrices)
    ceilings = {"matmul": 1e9, "layout": 1e-3}
    assert bench.step_floor(sizes, ceilings, 5, False) == pytest.approx(2 * 5 * (2 * numbers + 2 * 2560) / 1e9 + 2e-3)
    more = bench.step_floor(sizes, ceilings, 5, True) - bench.step_floor(sizes, ceilings, 5, False)
    assert more == pytest.approx(2 * 5 * (numbers - 704 * 256) / 1e9)


def test_the_layout_of_weights_is_timed_without_pythons_waiting(monkeypatch):
    """As a CUDA graph: what is recorded once is replayed, and a replay's time divided. Here the card is made up."""
    done = []

    class Graph:
        def replay(self):
            done.append("replay")
            time.sleep(0.02)

    @contextlib.contextmanager
    def record(graph):
        done.append("record")
        yield
        done.append("recorded")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    took = bench.graph_seconds(lambda: done.append("work"), 20)
    assert done[:2] == ["work", "wait"]
    assert done[2:24] == ["record", *["work"] * 20, "recorded"]
    assert done[24:] == ["replay"] * (bench.WARMUP_STEPS + bench.TIMED_STEPS)
    assert 0.001 <= took < 0.005
    steps = iter([0.0, 10.0, 13.0, 20.0, 22.0])  # of a clock: the warm-up begins, then two steps
    monkeypatch.setattr(bench, "WARMUP_STEPS", 1)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(steps)))
    assert bench.time_calls(lambda: None, 2) == [3.0, 2.0]


def test_the_trainer_takes_it_saves_it_and_goes_on(tmp_path):
    """The demo, fast: to its end, and once more from the checkpoint at its middle: the same adapter, byte for byte."""
    words = ("demo", "train.speed=fast", "train.max_epochs=1", "train.save_steps=0.5", "train.evaluation_freq=0.5",
             "train.evaluation_max_new_tokens=2", "--output", tmp_path)  # fmt: skip
    sums, resumed = [], 0
    for _ in range(2):
        done = recipe("train", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        folder = tmp_path / "demo"
        sums.append(hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest())
        figures = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]
        assert figures["train"]["figures"]["resumed_from"] == resumed
        compared = figures["train"]["figures"]["fast_step"]["against_stock"]
        assert compared["passed"]
        assert compared["seconds"] < 0.1 * figures["train"]["seconds"]
        checkpoints = sorted(folder.glob("checkpoints/*/iter_*.pth"), key=lambda path: int(path.stem[5:]))
        checkpoints[-1].unlink()
        resumed = int(checkpoints[0].stem[5:])
    assert sums[0] == sums[1]
    assert sorted(figures["adapter"]["figures"]["targets"]) == sorted(TARGETS)
