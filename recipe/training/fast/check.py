"""Compares the fast step with XTuner's own, and a recorded step with the fast step, before a run uses them.

On an excerpt of the first batch, it compares the loss, every layer's output and gradients (given that layer's input in
XTuner's model), and all LoRA gradients of the whole step. A recording is replayed with other inputs and other LoRA
weights than it was recorded with.

During a comparison fixed noise is added to the LoRA weights (B starts at zero, which hides A) and dropout is off (the
two steps draw it differently). Afterwards weights and random states are restored bit for bit.
"""

import contextlib
import json
import math
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.logging import MessageHub, print_log
from torch import nn

from recipe.training.fast import layers
from recipe.training.fast.verdict import LAYER_INPUT, LAYER_OUTPUT, MARK

MESSAGE_KEY = "recipe_fast_step"  # in mmengine's message hub, which is saved in checkpoints
NOISE = 0.01


class Tolerance(NamedTuple):
    """Largest relative differences; of tensors, by their norm. Two unrelated tensors differ by 1.4."""

    loss: float
    layer: float  # of a layer's output, or of one of its gradients, for the same input
    step: float  # of all LoRA gradients of the step together


# In fp32 both sides compute alike; the tests hold 1e-5 of the largest value.
FP32_TOLERANCE = Tolerance(1e-4, 1e-3, 1e-2)
# In bf16 the gradients of one to eight layers differ from fp32 by 1.4 to 2.9 %, XTuner's as well as ours
# (docs/en/speed.md). A single matrix may differ several times as much; a wrong weight makes 100 % and more. Over 32
# layers of random weights rounding grows to 19 %, and changes the loss of 1,024 tokens by up to 0.13 %, of 64 by 0.5 %.
HALF_TOLERANCE = Tolerance(0.02, 0.2, 0.5)
# A replay runs the recorded kernels. With deterministic training it repeats the step bit for bit. Otherwise flash
# attention sums gradients in any order, and through the layers that grows to some percent.
REPLAY_TOLERANCE = Tolerance(1e-3, 0.1, 0.1)


def compare_with_stock(model: Any, data: Dict[str, Any]) -> Dict[str, Any]:
    """Compare on an excerpt of `data`. Figures: passed, the differences and their tolerances, seconds.

    64 tokens for `small`, otherwise 512: so few that XTuner's own step, with checkpointing, needs less memory than
    training.
    """
    began = time.monotonic()
    piece = select_excerpt(data, *((1, 64) if model.small else (2, 256)))
    tolerance = FP32_TOLERANCE if model.compute_dtype() == torch.float32 else HALF_TOLERANCE
    figures: Dict[str, Any] = {"compared": "against_stock", "passed": False}
    with _restoring_state(model), _perturbed_lora(model):
        try:
            found = _fast_step(model, piece)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it is, XTuner's own step may work
            figures["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            figures.update(_compare(model, piece, found, tolerance))
    figures.update(
        rows=len(piece["input_ids"]), tokens=piece["input_ids"].shape[1], tolerance=tolerance._asdict(),
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    return figures


class ReplayCheck:
    """Results of the step for inputs and weights other than the recorded ones, to compare a replay with.

    Create it before the recording: afterwards the step's memory would be needed twice.
    """

    def __init__(self, model: Any, inputs: Tuple[torch.Tensor, ...]) -> None:
        self.model, began = model, time.monotonic()
        x, cos, sin, labels = inputs
        ignored = labels == layers.IGNORE_INDEX
        if bool(ignored[:, 1:].all()):  # the loss of no token is nan
            ignored = torch.zeros_like(ignored)
        others = torch.where(ignored, labels, (labels + 1) % model.causal_lm().output.weight.shape[0])
        self.inputs = (x.detach().flip(1), cos, sin, others)
        with _restoring_state(model), _perturbed_lora(model):
            loss = model.step(*self.inputs)
            self.loss = float(loss.detach())
            self.gradients = [one.cpu() for one in torch.autograd.grad(loss, model.lora_parameters())]
        self.seconds = time.monotonic() - began

    def compare(self, recorded: Any) -> Dict[str, Any]:
        began = time.monotonic()
        with _perturbed_lora(self.model):
            loss = float(recorded.replay(self.inputs))
            worst = WorstDifference()
            for name, got, wanted in zip(self.model.parameter_names(), recorded.gradients, self.gradients):
                worst.add(name, got, wanted)
        difference = abs(loss - self.loss) / abs(self.loss)
        self.seconds += time.monotonic() - began
        return {
            "compared": "recording",
            "passed": difference <= REPLAY_TOLERANCE.loss and worst.difference <= REPLAY_TOLERANCE.layer,
            "loss": loss, "step_loss": self.loss, "loss_difference": difference,
            "gradient_difference": worst.difference, "worst": worst.where,
            "tolerance": {"loss": REPLAY_TOLERANCE.loss, "gradient": REPLAY_TOLERANCE.layer},
            "seconds": round(self.seconds, 2),
        }  # fmt: skip


class WorstDifference:
    """The largest of several relative differences, and where it is."""

    def __init__(self) -> None:
        self.difference, self.where = 0.0, ""

    def add(self, where: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
        found = float(relative_difference(got, wanted))
        is_worse = not found <= self.difference and not math.isnan(self.difference)  # NaN is the worst
        if is_worse or not self.where:
            self.difference, self.where = found, where


def relative_difference(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Norm of the difference over the norm of `wanted`; 0 if both are zero."""
    got, wanted = got.float(), wanted.to(got.device).float()
    apart = (got - wanted).norm()
    return torch.where(apart == 0, apart, apart / wanted.norm())


def select_excerpt(data: Dict[str, Any], rows: int, tokens: int) -> Dict[str, torch.Tensor]:
    """`rows` rows of at most `tokens` tokens around the batch's first token with a loss."""
    ids, labels = data["input_ids"], data["labels"]
    learned = labels[:, 1:] != layers.IGNORE_INDEX
    row = int(learned.any(1).long().argmax())
    begin = max(0, min(int(learned[row].long().argmax()) - tokens // 2, ids.shape[1] - tokens))
    window = slice(begin, begin + tokens)
    chosen = [
        row,
        *(n for n in range(len(ids)) if n != row and bool((labels[n, window][1:] != layers.IGNORE_INDEX).any())),
    ]
    mask = data.get("attention_mask")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    piece = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    piece = {name: one[chosen[:rows], window] for name, one in piece.items()}
    if not bool(learned.any()):  # no token of this batch has a loss: use them all
        piece["labels"] = torch.where(piece["attention_mask"].bool(), piece["input_ids"], piece["labels"])
    return piece


def passed_on_all_ranks(passed: bool, device: torch.device) -> bool:
    """Whether every rank passed."""
    if get_world_size() == 1:
        return passed
    failed = torch.tensor(int(not passed), device=device)
    all_reduce(failed, "max")
    return not failed.item()


def log_figures(figures: Dict[str, Any]) -> None:
    """Write one line to the trainer's log, from which run.json and the report take it."""
    if _is_training():
        plain = {k: _rounded(v) if isinstance(v, float) else v for k, v in figures.items()}
        print_log(MARK + json.dumps(plain, ensure_ascii=False), logger="current")


def _rounded(value: float) -> Optional[float]:
    """Rounded to four digits; None for nan and inf, which JSON lacks."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def record_failure(what: str) -> None:
    """Note in the checkpoints that `what` failed, so that a resumed run trains the way it began."""
    if _is_training():
        MessageHub.get_current_instance().update_info(f"{MESSAGE_KEY}_{what}", "failed")


def has_failed(what: str) -> bool:
    """Whether `what` failed before the checkpoint that this run resumes from."""
    return _is_training() and MessageHub.get_current_instance().get_info(f"{MESSAGE_KEY}_{what}") is not None


def _is_training() -> bool:
    """Whether mmengine's runner calls the model, rather than a test or `just bench`."""
    return MessageHub.get_current_instance().get_info("iter") is not None


def _fast_step(model: Any, piece: Dict[str, Any]) -> Tuple[float, List[torch.Tensor]]:
    """The fast step's loss and LoRA gradients, the latter in host memory to leave the card to XTuner's step."""
    with torch.autocast(piece["input_ids"].device.type, enabled=False):
        loss = model.step(*model.step_inputs(piece))
        found = torch.autograd.grad(loss * model.loss_scale(), model.lora_parameters())
    return float(loss.detach()), [one.cpu() for one in found]


def _compare(
    model: Any, piece: Dict[str, Any], found: Tuple[float, List[torch.Tensor]], tolerance: Tolerance
) -> Dict[str, Any]:
    """Run XTuner's forward and backward passes and compare the fast step's results with theirs."""
    scale, parameters = model.loss_scale(), model.lora_parameters()
    with _observed_layers(model) as seen, recomputing(model):
        torch.clear_autocast_cache()
        loss = model.stock_loss(piece)
        torch.clear_autocast_cache()  # else recomputing reuses casts without gradients
        (loss * scale).backward()
        torch.clear_autocast_cache()
    wanted = float(loss.detach())
    for one in parameters:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    apart = torch.stack(
        [(got.to(one.device).float() - one.grad.float()).norm() for got, one in zip(found[1], parameters)]
    )
    whole = torch.stack([one.grad.float().norm() for one in parameters])
    worst = _compare_layers(model, piece, seen)
    figures: Dict[str, Any] = {
        "loss": found[0], "stock_loss": wanted, "loss_difference": abs(found[0] - wanted) / abs(wanted),
        "layer_difference": worst.difference, "worst": worst.where,
        "step_difference": float(apart.norm() / whole.norm()),
    }  # fmt: skip
    differences = [figures[f"{name}_difference"] for name in tolerance._fields]
    return {"passed": all(one <= most for one, most in zip(differences, tolerance)), **figures}


def _compare_layers(model: Any, piece: Dict[str, Any], seen: List[Dict[str, torch.Tensor]]) -> WorstDifference:
    """Compare each layer by itself, given its input and its output's gradient in XTuner's model."""
    worst, names, real = WorstDifference(), iter(model.parameter_names()), piece["attention_mask"].bool()
    with torch.autocast(piece["input_ids"].device.type, enabled=False):
        like, cos, sin, _ = model.step_inputs(piece)
        for number, (layer, held) in enumerate(zip(model.fast_layers(), seen)):
            x = held["x"].to(like.dtype).requires_grad_()
            out = model.run_layer(layer, x, cos, sin)
            parameters = layer.parameters()
            of_x, *gradients = torch.autograd.grad(out, (x, *parameters), held["gradient"].to(out.dtype))
            # Without padding, whose output is never read
            worst.add(LAYER_OUTPUT.format(layer=number + 1), out.detach()[real], held["y"][real])
            if number:
                worst.add(LAYER_INPUT.format(layer=number + 1), of_x, seen[number - 1]["gradient"])
            for got, one in zip(gradients, parameters):
                worst.add(next(names), got, one.grad)
    return worst


@contextlib.contextmanager
def _observed_layers(model: Any) -> Iterator[List[Dict[str, torch.Tensor]]]:
    """Collects input x, output y and the gradient of y of each decoder layer of XTuner's model."""
    modules = model.causal_lm().model.layers
    seen: List[Dict[str, torch.Tensor]] = [{} for _ in modules]

    def observe(held: Dict[str, torch.Tensor], words: Any, more: Any, out: Any) -> None:
        y = out[0] if isinstance(out, (tuple, list)) else out
        if y.requires_grad:
            held["x"], held["y"] = (words[0] if words else more["hidden_states"]).detach(), y.detach()
            y.register_hook(lambda gradient: held.update(gradient=gradient.detach()))

    hooks = [
        module.register_forward_hook(
            lambda _, words, more, out, held=held: observe(held, words, more, out), with_kwargs=True
        )
        for module, held in zip(modules, seen)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def recomputing(model: Any) -> Iterator[None]:
    """Use XTuner's own gradient checkpointing."""
    hook = start_recomputing(model)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        hook.remove()


def start_recomputing(model: Any) -> Any:
    """Switch on XTuner's gradient checkpointing, which needs embeddings with gradients; returns the hook for that."""
    model.gradient_checkpointing_enable()
    return model.causal_lm().model.tok_embeddings.register_forward_hook(lambda _, words, out: out.requires_grad_())


@contextlib.contextmanager
def _restoring_state(model: Any) -> Iterator[None]:
    """Switch off dropout; restore random states, and leave no gradients behind."""
    devices = [torch.cuda.current_device()] if model.lora_parameters()[0].is_cuda else []
    dropouts = [one for one in model.modules() if isinstance(one, nn.Dropout) and one.training]
    linears = [(one, one.dropout) for layer in model.fast_layers() for one in layer.linears]
    with torch.random.fork_rng(devices), torch.enable_grad(), detached_parameters(model.lora_modules()):
        try:
            for dropout in dropouts:
                dropout.training = False
            for linear, _ in linears:
                linear.dropout = 0.0
            yield
        finally:
            for dropout in dropouts:
                dropout.training = True
            for linear, share in linears:
                linear.dropout = share
    if devices:
        torch.cuda.empty_cache()  # training allocates blocks of other sizes


@contextlib.contextmanager
def _perturbed_lora(model: Any) -> Iterator[None]:
    """Add fixed noise as large as the weights to the LoRA weights; restore them bit for bit."""
    weights = [one.weight for one in model.lora_modules()]
    held = [one.detach().to("cpu", copy=True) for one in weights]
    generator = torch.Generator(weights[0].device).manual_seed(0)
    with torch.no_grad():
        for one in weights:
            noise = torch.randn(one.shape, generator=generator, device=one.device)
            one.add_((noise * (NOISE + one.float().abs().mean())).to(one.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for one, before in zip(weights, held):
                one.copy_(before)


@contextlib.contextmanager
def detached_parameters(modules: List[Any]) -> Iterator[None]:
    """Give the modules other parameters that share their weights' memory.

    DeepSpeed ties the original ones to the stream on which it first used them, and a recording cannot wait for another
    stream. Its hooks do not see the gradients of these.
    """
    held = [one.weight for one in modules]
    try:
        for one in modules:
            one._parameters["weight"] = nn.Parameter(one.weight.detach())
        yield
    finally:
        for one, weight in zip(modules, held):
            one._parameters["weight"] = weight
