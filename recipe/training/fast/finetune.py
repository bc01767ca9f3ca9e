"""XTuner's SupervisedFinetune with a faster training step; evaluation and checkpoints stay XTuner's.

The rendered config names it: `model = dict(type='recipe.training.fast.finetune.Finetune', …)`.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.runner import load_checkpoint
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from xtuner.model import SupervisedFinetune

from recipe.training.fast import attention, check, layers, nf4
from recipe.training.fast.verdict import FOUND_BEFORE, FOUND_BY_OTHER, LAYER_WEIGHT

# Tokens per iteration up to which the card waits for Python, so that recording the step pays.
MAX_GRAPH_TOKENS = 4096
EAGER_STEPS = 2  # steps of one shape before it is recorded: the first ones compile its kernels


class HostEmbedding(nn.Module):
    """Token embeddings that stay in host memory; only the rows that are looked up go to the card."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        # In a list, so that it is not a parameter and does not move to the card with the model.
        self.table = [embedding.weight.detach().cpu()]

    @property
    def weight(self) -> torch.Tensor:
        return self.table[0]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids.cpu(), self.weight).to(ids.device)


class Finetune(SupervisedFinetune):
    """`small`: least memory (embeddings in host memory, no dequantized weight is kept, no graph). `graph`: use a CUDA
    graph for steps of the same shape, in bf16 and without dropout.

    Frozen weights keep the dtype they were loaded in, which is also the compute dtype. LoRA is fp32, unless DeepSpeed
    makes it bf16: its optimizer then holds fp32 copies.
    """

    llm: Any

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
        # XTuner's own checkpointing stays off: it applies to its forward pass, which only evaluation uses here.
        super().__init__(llm, lora, peft_model, False, use_varlen_attn)
        self.checkpointed = use_activation_checkpointing
        self._recorded: Dict[Tuple[int, ...], Any] = {}
        self.checked: Dict[str, Any] = {}  # figures of the comparison with XTuner's own step
        self.stock = False  # whether XTuner's own step is used, because ours differs

    def _prepare_for_lora(self, peft_model: Optional[str] = None, use_activation_checkpointing: bool = True) -> None:
        """Like XTuner's, without casting frozen weights to fp32."""
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
        # In a list, so that they are not submodules: they view modules that the model already has.
        self._layers = [[layers.DecoderLayer(one) for one in self.causal_lm().model.layers]]

    def causal_lm(self) -> Any:
        """InternLM2ForCausalLM without PEFT's wrapper."""
        return self.llm.get_base_model()

    def compute_loss(self, data: Dict[str, Any], data_samples: Any = None) -> Dict[str, torch.Tensor]:
        """{"loss": mean cross-entropy} of input_ids and labels, both (batch, tokens) and padded on the right."""
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
        """Compare with XTuner's own step; if they differ, use that one from now on, with checkpointing."""
        self.checked = check.compare_with_stock(self, data)
        passed = check.passed_on_all_ranks(self.checked["passed"], data["input_ids"].device)
        if check.has_failed("step"):
            self.checked.update(passed=False, error=FOUND_BEFORE)
        elif not passed and self.checked["passed"]:
            self.checked.update(passed=False, error=FOUND_BY_OTHER)
        check.log_figures(self.checked)
        if self.graph and check.has_failed("recording"):
            self.graph = False
            check.log_figures({"compared": "recording", "passed": False, "error": FOUND_BEFORE})
        if not self.checked["passed"]:
            check.record_failure("step")
            self.stock = True
            check.start_recomputing(self)

    def step_inputs(self, data: Dict[str, Any]) -> Tuple[torch.Tensor, ...]:
        """The arguments of `step`: embeddings, cosines and sines of the rotary embedding, labels."""
        ids, model = data["input_ids"], self.causal_lm().model
        x = model.tok_embeddings(ids)
        like = x.new_empty(1, 1, ids.shape[1], model.layers[0].attention.head_dim)
        cos, sin = model.layers[0].attention.rotary_emb(like, seq_len=ids.shape[1])
        return x, cos.to(x.dtype), sin.to(x.dtype), data["labels"]

    def stock_loss(self, data: Dict[str, Any]) -> torch.Tensor:
        """The loss from XTuner's own forward pass."""
        return super().compute_loss(data)["loss"]

    def compute_dtype(self) -> torch.dtype:
        """The frozen weights' dtype."""
        return self.causal_lm().model.tok_embeddings.weight.dtype

    def loss_scale(self) -> float:
        """Loss scale of the comparison, which runs outside of training's own loss scaling."""
        return 1024.0 if self.compute_dtype() == torch.float16 else 1.0

    def fast_layers(self) -> List[layers.DecoderLayer]:
        return self._layers[0]

    def parameter_names(self) -> List[str]:
        """Readable names of `lora_parameters`."""
        return [
            LAYER_WEIGHT.format(layer=number + 1, weight=f"{name} {half}")
            for number, layer in enumerate(self._layers[0])
            for name, linear in layer.named()
            for half in "AB"[: 2 * bool(linear.pair)]
        ]

    def lora_parameters(self) -> List[torch.Tensor]:
        """The LoRA weights in the order of the layers."""
        return [one for layer in self._layers[0] for one in layer.parameters()]

    def lora_modules(self) -> List[Any]:
        """The modules of `lora_parameters`."""
        return [one for layer in self._layers[0] for linear in layer.linears for one in linear.pair]

    def step(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss from embeddings x (batch, tokens, hidden)."""
        llm = self.causal_lm()
        for layer in self._layers[0]:
            x = self.run_layer(layer, x, cos, sin)
        size = layers.LOGITS_BYTES // 4 if self.small else layers.LOGITS_BYTES
        return layers.cross_entropy(layers.kernels.rms_norm(x, llm.model.norm), llm.output.weight, labels, size)

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
            and x.dtype
            == torch.bfloat16  # fp16 scales the loss before the backward pass, which is part of the recording
            and x.shape[0] * x.shape[1] <= MAX_GRAPH_TOKENS
            and not self._layers[0][0].has_dropout()
            and not self._graph_obstacle()
        )

    def _graph_obstacle(self) -> str:
        """Why a CUDA graph cannot read these frozen weights (logged once); "" if it can."""
        weights = (linear.base.weight for layer in self._layers[0] for linear in layer.linears)
        why = next(filter(None, map(nf4.graph_obstacle, weights)), "")
        if why:
            self.graph = False
            check.log_figures({"compared": "recording", "passed": False, "error": why})
        return why

    def _record(self, inputs: Tuple[torch.Tensor, ...]) -> Any:
        """The recorded step for inputs of this shape; None until a shape has come often enough, and for a second shape
        (rows that are not packed have many, and each recording holds memory).
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
    """One step as a CUDA graph, with the memory that holds its inputs, loss and LoRA gradients."""

    def __init__(self, model: Finetune, inputs: Tuple[torch.Tensor, ...]) -> None:
        self.inputs = [one.detach().clone() for one in inputs]
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()  # another stream cannot reuse freed memory, so it would be allocated twice
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
    """Replays a recorded step. The replay computes loss and gradients at once; backward only scales the gradients."""

    @staticmethod
    def forward(ctx, recorded, inputs, *parameters):
        ctx.recorded = recorded
        return recorded.replay(inputs)

    @staticmethod
    def backward(ctx, grad):
        scaled = torch._foreach_mul(ctx.recorded.gradients, grad)
        return (None, None, *scaled)
