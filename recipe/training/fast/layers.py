"""InternLM2's decoder layer and loss for training with LoRA: frozen weights get no gradients."""

from typing import Any, Iterable, List, Tuple

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import get_device_states, set_device_states

from recipe.training.fast import kernels, nf4

IGNORE_INDEX = -100  # label of a token without loss
LOGITS_BYTES = 1 << 28  # bytes of fp32 logits at a time


class LoraLinear:
    """A view of one of PEFT's LoRA layers: the frozen layer, A (r, in), B (out, r), scale and dropout.

    A frozen layer without LoRA works too: it has no A and B.
    """

    def __init__(self, layer: Any, name: str = "default") -> None:
        self.base = getattr(layer, "base_layer", layer)
        self.scale, self.dropout = 1.0, 0.0
        self.pair: Tuple[Any, ...] = ()
        if hasattr(layer, "lora_A"):
            self.pair = (layer.lora_A[name], layer.lora_B[name])  # modules, since moving a model replaces weights
            self.scale = float(layer.scaling[name])
            self.dropout = float(getattr(layer.lora_dropout[name], "p", 0.0))

    def parameters(self) -> List[torch.Tensor]:
        return [one.weight for one in self.pair]

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The frozen weight, dequantized: (out, in)."""
        weight = self.base.weight
        return nf4.dequantize(weight, dtype) if nf4.is_quantized(weight) else weight.to(dtype)

    def __call__(self, x: torch.Tensor, keep: bool = False, unread: bool = False) -> torch.Tensor:
        """x (…, in) → (…, out).

        `keep`: keep the dequantized weight until the backward pass. `unread`: nobody reads the result, so only what the
        backward pass needs is computed (the last product of a recomputed layer).
        """
        dropped = F.dropout(x, self.dropout) if self.dropout and self.pair else None
        a, b = self.parameters() if self.pair else (None, None)
        return _Linear.apply(x, dropped, a, b, self, keep, unread)


class _Linear(torch.autograd.Function):
    """x·Wᵀ + s·(d·Aᵀ)·Bᵀ, with d = dropout(x). W is dequantized for each product and freed afterwards."""

    @staticmethod
    def forward(ctx, x, dropped, a, b, lora, keep, unread):
        ctx.lora, ctx.shape, ctx.kept = lora, x.shape, None
        flat = x.reshape(-1, x.shape[-1])
        source = flat if dropped is None else dropped.reshape(flat.shape)
        if unread:
            out = flat.new_empty(flat.shape[0], lora.base.out_features)
        else:
            weight = lora.weight(x.dtype)
            out = flat @ weight.t()
            ctx.kept = weight if keep else None
            if lora.base.bias is not None:
                out += lora.base.bias.to(x.dtype)
        if a is not None:
            low = source @ a.to(x.dtype).t()
            if not unread:
                out.addmm_(low, b.to(x.dtype).t(), alpha=lora.scale)
            ctx.save_for_backward(source, a, b, low)
        ctx.dropped = dropped is not None
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        lora = ctx.lora
        flat = grad.reshape(-1, grad.shape[-1])
        of_x = of_dropped = of_a = of_b = None
        if ctx.needs_input_grad[0]:
            weight = ctx.kept if ctx.kept is not None else lora.weight(grad.dtype)
            of_x = flat @ weight
            ctx.kept = None
            del weight
        if lora.pair:
            source, a, b, low = ctx.saved_tensors
            of_low = (flat @ b.to(grad.dtype)).mul_(lora.scale)
            of_b = (flat.t() @ low).mul_(lora.scale).to(b.dtype)
            of_a = (of_low.t() @ source).to(a.dtype)
            if ctx.dropped:
                of_dropped = (of_low @ a.to(grad.dtype)).view(ctx.shape)
            elif of_x is not None:
                of_x.addmm_(of_low, a.to(grad.dtype))
        return None if of_x is None else of_x.view(ctx.shape), of_dropped, of_a, of_b, None, None, None


class DecoderLayer:
    """A view of the model's decoder layer; a call computes what the module computes, with gradients only for LoRA."""

    def __init__(self, module: Any) -> None:
        attention, mlp = module.attention, module.feed_forward
        self.norms = module.attention_norm, module.ffn_norm
        self.heads, self.kv_heads, self.head_dim = (
            attention.num_heads,
            attention.num_key_value_heads,
            attention.head_dim,
        )
        self.wqkv, self.wo = LoraLinear(attention.wqkv), LoraLinear(attention.wo)
        self.w1, self.w3, self.w2 = LoraLinear(mlp.w1), LoraLinear(mlp.w3), LoraLinear(mlp.w2)
        self.linears = [self.wqkv, self.wo, self.w1, self.w3, self.w2]

    def named(self) -> Iterable[Tuple[str, LoraLinear]]:
        return zip(("wqkv", "wo", "w1", "w3", "w2"), self.linears)

    def parameters(self) -> List[torch.Tensor]:
        return [one for linear in self.linears for one in linear.parameters()]

    def has_dropout(self) -> bool:
        return any(linear.dropout for linear in self.linears)

    def __call__(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keep: bool = False, again: bool = False
    ) -> torch.Tensor:
        """x (batch, tokens, hidden) → the same shape; cos, sin (tokens, head_dim).

        `again`: recompute for the backward pass only; the returned value is then undefined. `keep`: see LoraLinear.
        """
        batch, tokens, hidden = x.shape
        mixed = self.wqkv(kernels.rms_norm(x, self.norms[0]), keep)
        # Rows of wqkv: per key-value head its group of queries, then the key, then the value.
        mixed = mixed.view(batch, tokens, self.kv_heads, -1, self.head_dim)
        parts = mixed.split((self.heads // self.kv_heads, 1, 1), dim=3)
        query, key, value = (one.reshape(batch, tokens, -1, self.head_dim).transpose(1, 2) for one in parts)
        query, key = kernels.rotate(query, key, cos, sin)
        seen = kernels.attention(query, key, value).transpose(1, 2).reshape(batch, tokens, hidden)
        x = x + self.wo(seen, keep)
        h = kernels.rms_norm(x, self.norms[1])
        return x + self.w2(kernels.swiglu(self.w1(h, keep), self.w3(h, keep)), keep, unread=again)


class RecomputedLayer(torch.autograd.Function):
    """Gradient checkpointing: saves only the layer's input and recomputes the layer for the backward pass.

    PyTorch's own checkpoint writes to .grad or holds the dequantized weights. This one returns the gradients, so that
    torch.autograd.grad and CUDA graphs work, and skips the last product when it recomputes.
    """

    @staticmethod
    def forward(ctx, layer: DecoderLayer, keep: bool, x, cos, sin, *parameters):
        ctx.layer, ctx.keep, ctx.random = layer, keep, None
        if layer.has_dropout():
            ctx.random = (torch.get_rng_state(), *get_device_states(x))
        ctx.save_for_backward(x, cos, sin)
        return layer(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):
        saved, cos, sin = ctx.saved_tensors
        x = saved.detach().requires_grad_()
        wanted = (x, *ctx.layer.parameters())
        devices = ctx.random[1] if ctx.random else []
        with torch.enable_grad(), torch.random.fork_rng(devices, enabled=ctx.random is not None):
            if ctx.random:
                torch.set_rng_state(ctx.random[0])
                set_device_states(*ctx.random[1:])
            out = ctx.layer(x, cos, sin, ctx.keep, again=True)
        gradients = torch.autograd.grad(out, wanted, grad)
        return (None, None, gradients[0], None, None, *gradients[1:])


class _CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of h·Wᵀ in pieces; each piece's gradient is computed while its logits exist."""

    @staticmethod
    def forward(ctx, h, weight, labels, rows):
        wanted = ctx.needs_input_grad[0]
        learned = labels != IGNORE_INDEX
        share = learned / learned.sum()  # NaN if no token has a loss, like PyTorch's
        total = h.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(h) if wanted else None
        for first in range(0, h.shape[0], rows):
            piece = slice(first, first + rows)
            target = labels[piece].clamp_min(0)[:, None]
            found = F.log_softmax(h[piece] @ weight.t(), dim=-1, dtype=torch.float32)
            total -= (found.gather(1, target)[:, 0] * share[piece]).sum()
            if gradient is not None:
                found.exp_()
                found.scatter_(1, target, found.gather(1, target) - 1)
                torch.mm(found.to(h.dtype), weight, out=gradient[piece])
        ctx.save_for_backward(gradient, share)
        return total

    @staticmethod
    def backward(ctx, grad):
        gradient, share = ctx.saved_tensors
        return (gradient * (share * grad)[:, None]).to(gradient.dtype), None, None, None


def cross_entropy(
    h: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, size: int = LOGITS_BYTES
) -> torch.Tensor:
    """Mean cross-entropy of each next token, in fp32.

    h (batch, tokens, hidden), weight (vocabulary, hidden), labels (batch, tokens); `size`: bytes of logits at a time.
    """
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).reshape(-1)
    rows = max(16, size // (4 * weight.shape[0]))
    return _CrossEntropy.apply(h.reshape(-1, h.shape[-1]), weight, following, rows)
