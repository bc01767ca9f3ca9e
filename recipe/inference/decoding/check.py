"""Compares the decoder with the model's own forward pass before the first answer: no answer from wrong logits."""

from typing import Any, List

import torch

from recipe.core.translation import _
from recipe.training.fast import nf4

# Largest relative difference of the logits, by their norm; two unrelated ones differ by 1.4. In 16 bits rounding grows
# through the layers, and transformers rounds what 4-bit weights are multiplied with, whatever the model's type.
FP32_TOLERANCE, HALF_TOLERANCE = 0.01, 0.2
TOKENS = 256  # of each prompt that are compared


def find_fault(decoder: Any, prompts: List[List[int]]) -> str:
    """Why the decoder must not answer here; "" if its logits are the model's. Stops recording if that was the fault."""
    prompts = [prompt[-TOKENS:] for prompt in prompts]
    fault = _compare(decoder, prompts)
    if fault and decoder.record:
        decoder.record = False
        decoder.sessions.clear()
        fault = _compare(decoder, prompts)
    return fault


def _compare(decoder: Any, prompts: List[List[int]]) -> str:
    network = decoder.network
    is_exact = network.dtype == torch.float32 and not nf4.is_quantized(network.layers[0].wqkv.base.weight)
    tolerance = FP32_TOLERANCE if is_exact else HALF_TOLERANCE
    with torch.no_grad(), torch.autocast(network.device.type, enabled=False):
        try:
            found = _logits(decoder, prompts)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever it is, transformers may work
            return f"{type(error).__name__}: {error}".splitlines()[0][:300]
        for row, prompt in enumerate(prompts):
            ids = torch.tensor([prompt + prompt[-1:]], device=network.device)
            wanted = network.causal_lm(input_ids=ids, use_cache=False).logits[0, -2:].float()
            difference = float((found[row] - wanted).norm() / wanted.norm())
            if not difference <= tolerance:  # NaN is a fault
                return _(
                    "its logits differ by {difference:.1f} % from those of transformers", difference=100 * difference
                )
    return ""


def _logits(decoder: Any, prompts: List[List[int]]) -> torch.Tensor:
    """After each prompt, and after its last token once more: (rows, 2, vocabulary)."""
    session = decoder.session(len(prompts), max(map(len, prompts)) + 1)
    first = session.read(prompts)
    again = torch.tensor([prompt[-1] for prompt in prompts], device=decoder.network.device)
    return torch.stack([first, session.step(again)], dim=1)
