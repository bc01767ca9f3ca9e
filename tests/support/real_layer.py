"""One decoder layer of the 7B model's real size on tensors without memory, and what it keeps and takes in bf16."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from recipe.training import bench
from recipe.training.fast import layers

HIDDEN, HEADS = bench.SHAPES_7B["hidden_size"], bench.SHAPES_7B["num_attention_heads"]
HALF = torch.bfloat16


def make():
    """The fast step's layer, LoRA of rank 64 on its five products. Call it inside FakeTensorMode."""
    made = [_linear(out, inner) for out, inner in bench.matrix_shapes(bench.SHAPES_7B)]
    norm = SimpleNamespace(weight=torch.ones(HIDDEN, dtype=HALF), variance_epsilon=1e-5)
    attention = SimpleNamespace(
        num_heads=HEADS, num_key_value_heads=bench.SHAPES_7B["num_key_value_heads"], head_dim=HIDDEN // HEADS,
        wqkv=made[0], wo=made[1],
    )  # fmt: skip
    mlp = SimpleNamespace(w1=made[2], w3=made[3], w2=made[4])
    return layers.DecoderLayer(
        SimpleNamespace(attention=attention, feed_forward=mlp, attention_norm=norm, ffn_norm=norm)
    )


def _linear(out, inner, rank=64):
    base = nn.Linear(inner, out, bias=False, dtype=HALF).requires_grad_(False)
    pair = {"lora_A": nn.Linear(inner, rank, bias=False), "lora_B": nn.Linear(rank, out, bias=False)}
    pair = {name: {"default": one} for name, one in pair.items()}
    return SimpleNamespace(base_layer=base, scaling={"default": 0.25}, lora_dropout={"default": nn.Identity()}, **pair)


def inputs(batch, tokens):
    x = torch.empty(batch, tokens, HIDDEN, dtype=HALF, requires_grad=True)
    return (x, *(torch.empty(tokens, HIDDEN // HEADS, dtype=HALF) for _ in "cs"))


def saved_mib(layer, batch, tokens):
    """MiB that autograd saves of one layer, its weights not counted."""
    x, cos, sin = inputs(batch, tokens)
    held, weights = {}, _weights(layer)

    def pack(tensor):
        place = tensor.untyped_storage()
        if place._cdata not in weights:
            held[place._cdata] = place.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, cos, sin)
    return sum(held.values()) / 2**20


def peak_mib(layer, batch, tokens):
    """MiB that one recomputed layer takes at most, forward and backward, its weights and input not counted."""
    given = inputs(batch, tokens)
    with _Peak(_weights(layer)) as peak:
        out = layers.RecomputedLayer.apply(layer, False, *given, *layer.parameters())
        torch.autograd.grad(out, (given[0], *layer.parameters()), torch.empty_like(out))
    return peak.most / 2**20


def _weights(layer):
    return {
        one.untyped_storage()._cdata for linear in layer.linears for one in (linear.base.weight, *linear.parameters())
    }


class _Peak(TorchDispatchMode):
    """Bytes of the tensors that were alive at once."""

    def __init__(self, known):
        super().__init__()
        self.known, self.held, self.most = known, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self.known:
                place = one.untyped_storage()
                self.held[place._cdata] = (StorageWeakRef(place), place.nbytes())
        self.held = {key: entry for key, entry in self.held.items() if not entry[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return made
