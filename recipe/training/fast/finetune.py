"""XTuner's SupervisedFinetune with another training step; everything else (evaluation, checkpoints) is XTuner's.

Named by the rendered config: `model = dict(type='recipe.training.fast.finetune.Finetune', …)`.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.runner import load_checkpoint
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from xtuner.model import SupervisedFinetune

from recipe.training.fast import attention, check, layers, nf4

# Tokens an iteration up to which a card waits for Python: below it the step is recorded and played again.
MAX_GRAPH_TOKENS = 4096
EAGER_STEPS = 2  # steps of one shape after which it is recorded: the first compile what is played


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
        attention.restrict_kernels(deterministic=False)
        self.small, self.graph = small, graph and not small
        # XTuner's own checkpointing off: it is for its forward, which only evaluation uses here.
        super().__init__(llm, lora, peft_model, False, use_varlen_attn)
        self.checkpointed = use_activation_checkpointing
        self._recorded: Dict[Tuple[int, ...], Any] = {}
        self.checked: Dict[str, Any] = {}  # what the comparison with XTuner's own step found, once it was made
        self.stock = False  # whether XTuner's own step is taken, because ours was found to differ

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
        self._layers = [[layers.DecoderLayer(one) for one in self._causal().model.layers]]

    def _causal(self) -> Any:
        return self.llm.get_base_model()

    def compute_loss(self, data: Dict[str, Any], data_samples: Any = None) -> Dict[str, torch.Tensor]:
        """{"loss": mean cross-entropy} of input_ids and labels, (batch, tokens), padded on the right if at all."""
        if not (self.training and torch.is_grad_enabled()):
            return super().compute_loss(data, data_samples)
        if not self.checked:
            self._check(data)
        if self.stock:
            return super().compute_loss(data, data_samples)
        with torch.autocast(data["input_ids"].device.type, enabled=False):
            inputs = self.step_inputs(data)
            recorded = self._record(inputs) if self._can_use_graph(inputs[0]) else None
            if recorded is not None:
                return {"loss": _ReplayedStep.apply(recorded, inputs, *self.lora_parameters())}
            return {"loss": self.step(*inputs)}

    def _check(self, data: Dict[str, Any]) -> None:
        """Compare with XTuner's own step; take that from now on, recomputing, where the two differ."""
        self.checked = check.compare_with_stock(self, data)
        passed = check.passed_on_all_ranks(self.checked["passed"], data["input_ids"].device)
        if check.has_failed("step"):
            self.checked.update(passed=False, error="found when this run began")
        elif not passed and self.checked["passed"]:
            self.checked.update(passed=False, error="found by another rank")
        check.log_figures(self.checked)
        if self.graph and check.has_failed("recording"):
            self.graph = False
            check.log_figures({"compared": "recording", "passed": False, "error": "found when this run began"})
        if not self.checked["passed"]:
            check.record_failure("step")
            self.stock = True
            check.start_recomputing(self)

    def step_inputs(self, data: Dict[str, Any]) -> Tuple[torch.Tensor, ...]:
        """What `step` takes: embeddings, the rotary positions' cosines and sines, labels."""
        ids, model = data["input_ids"], self._causal().model
        x = model.tok_embeddings(ids)
        like = x.new_empty(1, 1, ids.shape[1], model.layers[0].attention.head_dim)
        cos, sin = model.layers[0].attention.rotary_emb(like, seq_len=ids.shape[1])
        return x, cos.to(x.dtype), sin.to(x.dtype), data["labels"]

    def stock_loss(self, data: Dict[str, Any]) -> torch.Tensor:
        """The loss by XTuner's own forward pass."""
        return super().compute_loss(data)["loss"]

    def compute_dtype(self) -> torch.dtype:
        """The type that is computed in: the frozen weights' own."""
        return self.embeddings().weight.dtype

    def loss_scale(self) -> float:
        """For gradients outside of training's own loss scaling, which fp16 needs."""
        return 1024.0 if self.compute_dtype() == torch.float16 else 1.0

    def embeddings(self) -> Any:
        return self._causal().model.tok_embeddings

    def vocabulary(self) -> int:
        return int(self._causal().output.weight.shape[0])

    def stock_layers(self) -> List[Any]:
        """The decoder layers of XTuner's model."""
        return list(self._causal().model.layers)

    def fast_layers(self) -> List[layers.DecoderLayer]:
        return self._layers[0]

    def parameter_names(self) -> List[str]:
        """What `trained` holds, in words."""
        return [
            f"layer {number + 1}, {name} {half}"
            for number, layer in enumerate(self._layers[0])
            for name, linear in layer.named()
            for half in "AB"[: 2 * bool(linear.pair)]
        ]

    def lora_parameters(self) -> List[torch.Tensor]:
        """The LoRA weights, in the order of the layers."""
        return [one for layer in self._layers[0] for one in layer.parameters()]

    def lora_modules(self) -> List[Any]:
        """The modules of these weights."""
        return [one for layer in self._layers[0] for linear in layer.linears for one in linear.pair]

    def step(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss from embeddings x (batch, tokens, hidden)."""
        causal = self._causal()
        for layer in self._layers[0]:
            x = self.run_layer(layer, x, cos, sin)
        size = layers.LOGITS_BYTES // 4 if self.small else layers.LOGITS_BYTES
        return layers.cross_entropy(layers.kernels.rms_norm(x, causal.model.norm), causal.output.weight, labels, size)

    def run_layer(
        self, layer: layers.DecoderLayer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        if self.checkpointed:
            return layers.RecomputedLayer.apply(layer, not self.small, x, cos, sin, *layer.parameters())
        return layer(x, cos, sin)

    def _can_use_graph(self, x: torch.Tensor) -> bool:
        return (
            self.graph
            and x.is_cuda
            and x.dtype == torch.bfloat16  # fp16 scales its loss before the backward pass, which is recorded too
            and x.shape[0] * x.shape[1] <= MAX_GRAPH_TOKENS
            and not self._layers[0][0].has_dropout()
            and not self._graph_obstacle()
        )

    def _graph_obstacle(self) -> str:
        """Why these frozen weights must not be read by a CUDA graph, said once; "" where they may."""
        weights = (linear.base.weight for layer in self._layers[0] for linear in layer.linears)
        why = next(filter(None, map(nf4.graph_obstacle, weights)), "")
        if why:
            self.graph = False
            check.log_figures({"compared": "recording", "passed": False, "error": why})
        return why

    def _record(self, inputs: Tuple[torch.Tensor, ...]) -> Any:
        """The recorded step for inputs of this shape; None for a shape that came too seldom yet, or for a second one
        (rows that are not packed have many: each recording holds memory).
        """
        shape = tuple(inputs[0].shape)
        seen = self._recorded.get(shape, 0)
        if not isinstance(seen, int):
            return seen
        if not all(isinstance(one, int) for one in self._recorded.values()):
            return None
        self._recorded[shape] = seen + 1
        if seen < EAGER_STEPS:
            return None
        replay = check.ReplayCheck(self, inputs)
        recorded = _RecordedStep(self, inputs)
        found = replay.compare(recorded)
        check.log_figures(found)
        if not found["passed"]:
            check.record_failure("recording")
            self.graph = False
            return None
        self._recorded[shape] = recorded
        return recorded


class _RecordedStep:
    """Loss and LoRA gradients of one step as a CUDA graph, with the memory that it reads and writes."""

    def __init__(self, model: Finetune, inputs: Tuple[torch.Tensor, ...]) -> None:
        self.inputs = [one.detach().clone() for one in inputs]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # streams share no memory: what was freed here would be held twice
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with check.detached_parameters(model.lora_modules()), torch.enable_grad():
            parameters = model.lora_parameters()
            with torch.cuda.stream(side):
                torch.autograd.grad(model.step(*self.inputs), parameters)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            with torch.cuda.graph(self.graph):
                self.loss = model.step(*self.inputs)
                self.gradients = list(torch.autograd.grad(self.loss, parameters))
        self.loss = self.loss.detach()

    def replay(self, inputs: Tuple[torch.Tensor, ...]) -> torch.Tensor:
        for held, given in zip(self.inputs, inputs):
            held.copy_(given)
        self.graph.replay()
        return self.loss.clone()


class _ReplayedStep(torch.autograd.Function):
    """A played step: its gradients are there with its loss."""

    @staticmethod
    def forward(ctx, recorded, inputs, *parameters):
        ctx.recorded = recorded
        return recorded.replay(inputs)

    @staticmethod
    def backward(ctx, grad):
        scaled = torch._foreach_mul(ctx.recorded.gradients, grad)
        return (None, None, *scaled)
