"""Compares the fast step with XTuner's own, and a recorded step with the step itself, before a run trusts either.

The first training batch is compared on a short piece of it: the loss, every layer's output and gradients given what
that layer gets in XTuner's model, and all LoRA gradients of the whole step. A recording is replayed on other inputs
than it was made with and after the LoRA weights changed.

LoRA's weights are moved by fixed noise meanwhile (B starts at zero, which hides A) and put back bit for bit; dropout is
off, since the two draw differently; random states are restored; gradients go to parameters of the check's own.
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
from recipe.training.fast.verdict import MARK

REMEMBERED = "recipe_fast_step"  # in mmengine's message hub, which checkpoints hold
NOISE = 0.01


class Tolerance(NamedTuple):
    """Largest differences, relative, of tensors by their norm. An unrelated tensor of the same size is at 1.4."""

    loss: float
    layer: float  # of a layer's output, or one of its gradients, from the same input
    step: float  # of all LoRA gradients of the whole step together


# Both sides compute alike in fp32; the project's tests hold 1e-5 of the largest value.
FP32 = Tolerance(1e-4, 1e-3, 1e-2)
# In bf16 one to eight layers' gradients are 1.4 to 2.9 % off fp32, XTuner's as well as ours (docs/en/speed.md): one
# matrix may be several times that, a wrong weight is 100 % and more. Through 32 layers of random weights rounding grows
# to 19 %, and moves the loss of 1,024 tokens by up to 0.13 %, of 64 tokens by four times that.
HALF = Tolerance(0.02, 0.2, 0.5)
# A replay runs the kernels that were recorded. Where training is deterministic it repeats the step bit for bit; else
# flash attention sums its gradients in any order, which every layer hands on: some percent.
REPLAY = Tolerance(1e-3, 0.1, 0.1)


def against_stock(model: Any, data: Dict[str, Any]) -> Dict[str, Any]:
    """Compare on a piece of `data`. Figures: passed, the differences and their tolerances, seconds.

    At most 64 tokens for `small`, 512 else: XTuner's own step, recomputing, then takes less than training does.
    """
    began = time.monotonic()
    piece = excerpt(data, *((1, 64) if model.small else (2, 256)))
    tolerance = FP32 if model.compute_dtype() == torch.float32 else HALF
    figures: Dict[str, Any] = {"compared": "against_stock", "passed": False}
    with _undisturbed(model), _moved(model):
        try:
            found = _fast(model, piece)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it is, XTuner's own step may do
            figures["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            figures.update(_compare(model, piece, found, tolerance))
    figures.update(
        rows=len(piece["input_ids"]), tokens=piece["input_ids"].shape[1], tolerance=tolerance._asdict(),
        seconds=round(time.monotonic() - began, 2),
    )  # fmt: skip
    return figures


class Replay:
    """What the step gives for other inputs and weights than it is recorded with; `compare` asks the recording for it.

    Computed before the recording is made: afterwards the step's memory would be held twice.
    """

    def __init__(self, model: Any, inputs: Tuple[torch.Tensor, ...]) -> None:
        self.model, began = model, time.monotonic()
        x, cos, sin, labels = inputs
        ignored = labels == layers.IGNORED
        if bool(ignored[:, 1:].all()):  # a loss of nothing is no number
            ignored = torch.zeros_like(ignored)
        others = torch.where(ignored, labels, (labels + 1) % model.vocabulary())
        self.inputs = (x.detach().flip(1), cos, sin, others)
        with _undisturbed(model), _moved(model):
            loss = model.step(*self.inputs)
            self.loss = float(loss.detach())
            self.gradients = [one.cpu() for one in torch.autograd.grad(loss, model.trained())]
        self.seconds = time.monotonic() - began

    def compare(self, recorded: Any) -> Dict[str, Any]:
        began = time.monotonic()
        with _moved(self.model):
            loss = float(recorded.play(self.inputs))
            worst = Worst()
            for name, got, wanted in zip(self.model.names(), recorded.gradients, self.gradients):
                worst.add(name, got, wanted)
        difference = abs(loss - self.loss) / abs(self.loss)
        self.seconds += time.monotonic() - began
        return {
            "compared": "recording",
            "passed": difference <= REPLAY.loss and worst.difference <= REPLAY.layer,
            "loss": loss, "step_loss": self.loss, "loss_difference": difference,
            "gradient_difference": worst.difference, "worst": worst.where,
            "tolerance": {"loss": REPLAY.loss, "gradient": REPLAY.layer}, "seconds": round(self.seconds, 2),
        }  # fmt: skip


class Worst:
    """The largest of several relative differences, and where it was."""

    def __init__(self) -> None:
        self.difference, self.where = 0.0, ""

    def add(self, where: str, got: torch.Tensor, wanted: torch.Tensor) -> None:
        found = float(difference(got, wanted))
        is_worse = not found <= self.difference and not math.isnan(self.difference)  # NaN is the worst
        if is_worse or not self.where:
            self.difference, self.where = found, where


def difference(got: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Norm of the difference over the norm of `wanted`; 0 where both are zero."""
    got, wanted = got.float(), wanted.to(got.device).float()
    apart = (got - wanted).norm()
    return torch.where(apart == 0, apart, apart / wanted.norm())


def excerpt(data: Dict[str, Any], rows: int, tokens: int) -> Dict[str, torch.Tensor]:
    """`rows` rows of at most `tokens` tokens, from half of that before the first one that is learned."""
    ids, labels = data["input_ids"], data["labels"]
    learned = labels[:, 1:] != layers.IGNORED
    row = int(learned.any(1).long().argmax())
    begin = max(0, min(int(learned[row].long().argmax()) - tokens // 2, ids.shape[1] - tokens))
    window = slice(begin, begin + tokens)
    chosen = [row, *(n for n in range(len(ids)) if n != row and bool((labels[n, window][1:] != layers.IGNORED).any()))]
    mask = data.get("attention_mask")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    piece = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    piece = {name: one[chosen[:rows], window] for name, one in piece.items()}
    if not bool(learned.any()):  # nothing of this batch is learned: then its own tokens
        piece["labels"] = torch.where(piece["attention_mask"].bool(), piece["input_ids"], piece["labels"])
    return piece


def agreed(passed: bool, device: torch.device) -> bool:
    """Whether it passed on every rank."""
    if get_world_size() == 1:
        return passed
    failed = torch.tensor(int(not passed), device=device)
    all_reduce(failed, "max")
    return not failed.item()


def say(figures: Dict[str, Any]) -> None:
    """One line in the trainer's log, from which run.json and the report have it."""
    if _is_training():
        plain = {k: _plain(v) if isinstance(v, float) else v for k, v in figures.items()}
        print_log(MARK + json.dumps(plain, ensure_ascii=False), logger="current")


def _plain(value: float) -> Optional[float]:
    """Four digits of it; None where JSON has no number for it."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def remember(what: str) -> None:
    """Note in the checkpoints that `what` failed: a run that goes on from one keeps the path that it was on."""
    if _is_training():
        MessageHub.get_current_instance().update_info(f"{REMEMBERED}_{what}", "failed")


def has_failed(what: str) -> bool:
    """Whether `what` failed before the checkpoint that this run goes on from."""
    return _is_training() and MessageHub.get_current_instance().get_info(f"{REMEMBERED}_{what}") is not None


def _is_training() -> bool:
    """Whether mmengine's runner drives the model, and not a test or `just bench`."""
    return MessageHub.get_current_instance().get_info("iter") is not None


def _fast(model: Any, piece: Dict[str, Any]) -> Tuple[float, List[torch.Tensor]]:
    """The fast step's loss and LoRA gradients; these in the machine's memory, for the other step's need as much."""
    with torch.autocast(piece["input_ids"].device.type, enabled=False):
        loss = model.step(*model.step_inputs(piece))
        found = torch.autograd.grad(loss * model.loss_scale(), model.trained())
    return float(loss.detach()), [one.cpu() for one in found]


def _compare(
    model: Any, piece: Dict[str, Any], found: Tuple[float, List[torch.Tensor]], tolerance: Tolerance
) -> Dict[str, Any]:
    """XTuner's forward and backward passes, and how far the fast ones are from them."""
    scale, parameters = model.loss_scale(), model.trained()
    with _observed(model) as seen, recomputing(model):
        torch.clear_autocast_cache()
        loss = model.stock_loss(piece)
        torch.clear_autocast_cache()  # weights that a pass without gradients cast have none when recomputed
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
    figures = {
        "loss": found[0], "stock_loss": wanted, "loss_difference": abs(found[0] - wanted) / abs(wanted),
        "layer_difference": worst.difference, "worst": worst.where,
        "step_difference": float(apart.norm() / whole.norm()),
    }  # fmt: skip
    differences = [figures[f"{name}_difference"] for name in tolerance._fields]
    return {"passed": all(one <= most for one, most in zip(differences, tolerance)), **figures}


def _compare_layers(model: Any, piece: Dict[str, Any], seen: List[Dict[str, torch.Tensor]]) -> Worst:
    """Each layer given its input and its output's gradient in XTuner's model: nothing of one layer moves another."""
    worst, names, real = Worst(), iter(model.names()), piece["attention_mask"].bool()
    with torch.autocast(piece["input_ids"].device.type, enabled=False):
        like, cos, sin, _ = model.step_inputs(piece)
        for number, (layer, held) in enumerate(zip(model.fast_layers(), seen)):
            x = held["x"].to(like.dtype).requires_grad_()
            out = model.run_layer(layer, x, cos, sin)
            parameters = layer.parameters()
            of_x, *gradients = torch.autograd.grad(out, (x, *parameters), held["gradient"].to(out.dtype))
            worst.add(f"layer {number + 1}, output", out.detach()[real], held["y"][real])  # padding's is never read
            if number:
                worst.add(f"layer {number + 1}, input's gradient", of_x, seen[number - 1]["gradient"])
            for got, one in zip(gradients, parameters):
                worst.add(next(names), got, one.grad)
    return worst


@contextlib.contextmanager
def _observed(model: Any) -> Iterator[List[Dict[str, torch.Tensor]]]:
    """Of each decoder layer of XTuner's model: input x, output y and y's gradient, as they come by."""
    modules = model.stock_layers()
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
    """XTuner's forward pass with its own gradient checkpointing."""
    hook = start_recomputing(model)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        hook.remove()


def start_recomputing(model: Any) -> Any:
    """Switch XTuner's gradient checkpointing on, for which embeddings must have gradients; returns the hook."""
    model.gradient_checkpointing_enable()
    return model.embeddings().register_forward_hook(lambda _, words, out: out.requires_grad_())


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Nothing is left of what happens inside: no random number drawn, no gradient, no dropout meanwhile."""
    devices = [torch.cuda.current_device()] if model.trained()[0].is_cuda else []
    dropouts = [one for one in model.modules() if isinstance(one, nn.Dropout) and one.training]
    linears = [(one, one.dropout) for layer in model.fast_layers() for one in layer.linears]
    with torch.random.fork_rng(devices), torch.enable_grad(), fresh(model.pairs()):
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
        torch.cuda.empty_cache()  # training's own pieces of memory have other sizes


@contextlib.contextmanager
def _moved(model: Any) -> Iterator[None]:
    """LoRA's weights moved by fixed noise as large as they are; put back bit for bit."""
    weights = [one.weight for one in model.pairs()]
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
def fresh(modules: List[Any]) -> Iterator[None]:
    """The modules' weights as other parameters of the same memory. Theirs are tied to the stream on which DeepSpeed
    first looked at them, and what waits for another stream cannot be recorded; nor do its hooks see these gradients.
    """
    held = [one.weight for one in modules]
    try:
        for one in modules:
            one._parameters["weight"] = nn.Parameter(one.weight.detach())
        yield
    finally:
        for one, weight in zip(modules, held):
            one._parameters["weight"] = weight
