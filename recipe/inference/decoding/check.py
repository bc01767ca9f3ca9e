"""Compares the decoder with the model's own forward pass before the first answer: no answer from wrong logits."""

from typing import Any, List

import torch

# Largest relative difference of the logits, by their norm; two unrelated ones differ by 1.4. In 16 bits rounding grows
# through the layers, and 4-bit weights are rounded to 16 bits by transformers and not by our kernel.
FP32_TOLERANCE, HALF_TOLERANCE = 1e-3, 0.2


def find_fault(decoder: Any, prompts: List[List[int]]) -> str:
    """Why the decoder must not answer here; "" if its logits for the prompts and a token more are the model's."""
    network = decoder.network
    tolerance = FP32_TOLERANCE if network.dtype == torch.float32 else HALF_TOLERANCE
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
                return f"its logits differ by {100 * difference:.1f} % from those of transformers"
    return ""


def _logits(decoder: Any, prompts: List[List[int]]) -> torch.Tensor:
    """After each prompt, and after its last token once more: (rows, 2, vocabulary)."""
    session = decoder.session(len(prompts), max(map(len, prompts)) + 1)
    first = session.read(prompts)
    again = torch.tensor([prompt[-1] for prompt in prompts], device=decoder.network.device)
    return torch.stack([first, session.step(again)], dim=1)
