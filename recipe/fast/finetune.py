"""XTuner's SupervisedFinetune with another training step; everything else (evaluation, checkpoints) is XTuner's.

Named by the rendered config: `model = dict(type='recipe.fast.finetune.Finetune', …)`.
"""

import contextlib
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from mmengine.runner import load_checkpoint
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from xtuner.model import SupervisedFinetune

from . import layers

# Tokens an iteration up to which a card waits for Python: below it the step is recorded and played again.
GRAPHED = 4096
SEEN = 2  # steps of one shape after which it is recorded: the first compile what is played


class HostEmbedding(nn.Module):
    """Token embeddings that stay in the machine's memory; what is looked up is handed to the card."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        # No parameter: what moves the model to the card leaves it behind.
        self.table = [embedding.weight.detach().cpu()]

    @property
    def weight(self) -> torch.Tensor:
        return self.table[0]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids.cpu(), self.weight).to(ids.device)


class Finetune(SupervisedFinetune):
    """`small`: least memory (embeddings stay in the machine's, no weight is kept laid out, no graph). `graph`: a CUDA
    graph for steps of the same shape, in bf16 and without dropout. Frozen weights keep the type they were loaded in,
    which is reckoned in; LoRA is fp32 unless DeepSpeed makes it bf16, whose optimizer then holds fp32 copies.
    """

    def __init__(
        self,
        llm: Any,
        lora: Any = None,
        peft_model: Optional[str] = None,
        use_activation_checkpointing: bool = True,
        use_varlen_attn: bool = False,
        small: bool = False,
        graph: bool = True,
    ) -> None:
        if use_varlen_attn or lora is None:
            raise ValueError("train.speed=fast trains LoRA, without use_varlen_attn: train.speed=stock")
        nn.Module.__init__(self)
        self.small, self.graph = small, graph and not small
        # XTuner's own checkpointing off: it is for its forward, which only evaluation uses here.
        super().__init__(llm, lora, peft_model, False, use_varlen_attn)
        self.checkpointed = use_activation_checkpointing
        self._recorded: Dict[Tuple[int, ...], Any] = {}

    def _prepare_for_lora(self, peft_model: Optional[str] = None, use_activation_checkpointing: bool = True) -> None:
        """XTuner's, without casting frozen weights to fp32: they are only read."""
        if type(self.llm).__name__ != "InternLM2ForCausalLM":
            raise ValueError(f"train.speed=fast knows InternLM2, not {type(self.llm).__name__}: train.speed=stock")
        self.llm.requires_grad_(False)
        if self.small:
            self.llm.model.tok_embeddings = HostEmbedding(self.llm.model.tok_embeddings)
        self.llm = get_peft_model(self.llm, self.lora)
        for parameter in self.llm.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if peft_model is not None:
            load_checkpoint(self, peft_model)
        # Not a submodule: the same modules seen once more.
        self._layers = [[layers.Layer(one) for one in self._causal().model.layers]]

    def _causal(self) -> Any:
        return self.llm.get_base_model()

    def compute_loss(self, data: Dict[str, Any], data_samples: Any = None) -> Dict[str, torch.Tensor]:
        """{"loss": mean cross-entropy} of input_ids and labels, (batch, tokens), padded on the right if at all."""
        if not (self.training and torch.is_grad_enabled()):
            return super().compute_loss(data, data_samples)
        ids, labels = data["input_ids"], data["labels"]
        model = self._causal().model
        with torch.autocast(ids.device.type, enabled=False):
            x = model.tok_embeddings(ids)
            like = x.new_empty(1, 1, ids.shape[1], model.layers[0].attention.head_dim)
            cos, sin = model.layers[0].attention.rotary_emb(like, seq_len=ids.shape[1])
            inputs = (x, cos.to(x.dtype), sin.to(x.dtype), labels)
            recorded = self._record(inputs) if self._may_be_recorded(x) else None
            if recorded is not None:
                return {"loss": _Played.apply(recorded, inputs, *self.trained())}
            return {"loss": self.step(*inputs)}

    def trained(self) -> List[torch.Tensor]:
        """The LoRA weights, in the order of the layers."""
        return [one for layer in self._layers[0] for one in layer.parameters()]

    def pairs(self) -> List[Any]:
        """The modules of these weights."""
        return [one for layer in self._layers[0] for linear in layer.linears for one in linear.pair]

    def step(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss from embeddings x (batch, tokens, hidden)."""
        causal = self._causal()
        for layer in self._layers[0]:
            if self.checkpointed:
                x = layers.Recomputed.apply(layer, not self.small, x, cos, sin, *layer.parameters())
            else:
                x = layer(x, cos, sin)
        size = layers.LOGITS // 4 if self.small else layers.LOGITS
        return layers.loss(layers.kernels.rms_norm(x, causal.model.norm), causal.output.weight, labels, size)

    def _may_be_recorded(self, x: torch.Tensor) -> bool:
        return (
            self.graph
            and x.is_cuda
            and x.dtype == torch.bfloat16  # fp16 scales its loss before the backward pass, which is recorded too
            and x.shape[0] * x.shape[1] <= GRAPHED
            and not self._layers[0][0].has_dropout()
        )

    def _record(self, inputs: Tuple[torch.Tensor, ...]) -> Any:
        """The recorded step for inputs of this shape; None for a shape that came too seldom yet, or for a second one
        (rows that are not packed have many: each recording holds memory).
        """
        shape = tuple(inputs[0].shape)
        seen = self._recorded.get(shape, 0)
        if isinstance(seen, _Recorded):
            return seen
        if any(isinstance(one, _Recorded) for one in self._recorded.values()):
            return None
        self._recorded[shape] = seen + 1
        if seen < SEEN:
            return None
        self._recorded[shape] = _Recorded(self, inputs)
        return self._recorded[shape]


@contextlib.contextmanager
def _fresh(modules: List[Any]) -> Iterator[None]:
    """The modules' weights as other parameters of the same memory. Theirs are tied to the stream on which DeepSpeed
    first looked at them, and what waits for another stream cannot be recorded.
    """
    held = [one.weight for one in modules]
    try:
        for one in modules:
            one._parameters["weight"] = torch.nn.Parameter(one.weight.detach())
        yield
    finally:
        for one, weight in zip(modules, held):
            one._parameters["weight"] = weight


class _Recorded:
    """Loss and LoRA gradients of one step as a CUDA graph, with the memory that it reads and writes."""

    def __init__(self, model: Finetune, inputs: Tuple[torch.Tensor, ...]) -> None:
        self.inputs = [one.detach().clone() for one in inputs]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # streams share no memory: what was freed here would be held twice
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with _fresh(model.pairs()), torch.enable_grad():
            parameters = model.trained()
            with torch.cuda.stream(side):
                torch.autograd.grad(model.step(*self.inputs), parameters)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            with torch.cuda.graph(self.graph):
                self.loss = model.step(*self.inputs)
                self.gradients = list(torch.autograd.grad(self.loss, parameters))
        self.loss = self.loss.detach()

    def play(self, inputs: Tuple[torch.Tensor, ...]) -> torch.Tensor:
        for held, given in zip(self.inputs, inputs):
            held.copy_(given)
        self.graph.replay()
        return self.loss.clone()


class _Played(torch.autograd.Function):
    """A played step: its gradients are there with its loss."""

    @staticmethod
    def forward(ctx, recorded, inputs, *parameters):
        ctx.recorded = recorded
        return recorded.play(inputs)

    @staticmethod
    def backward(ctx, grad):
        scaled = torch._foreach_mul(ctx.recorded.gradients, grad)
        return (None, None, *scaled)
