"""Whether a prompt fits the model's positions and the free memory: said before anything is allocated."""

from typing import Any

from recipe.core.errors import InputWrong
from recipe.core.translation import _


def check_prompt(config: Any, tokens: int, value_bytes: int, free: float) -> None:
    """Raise InputWrong for a prompt of so many tokens that is longer than the positions or the memory allow."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and tokens >= positions:
        raise InputWrong(
            _(
                "The question is too long: {tokens:,} tokens with its system prompt and template, and "
                "the model has {positions:,} positions for question and answer. Shorten it.",
                tokens=tokens,
                positions=positions,
            )
        )
    needed = prompt_bytes(config, tokens, value_bytes)
    if needed > free:
        raise InputWrong(
            _(
                "The question is too long for the memory: its {tokens:,} tokens need {needed:.1f} GB "
                "beside the model, and {free:.1f} GB are free. Shorten it.",
                tokens=tokens,
                needed=needed / 1e9,
                free=free / 1e9,
            )
        )


def prompt_bytes(config: Any, tokens: int, value_bytes: int) -> float:
    """Bytes that a prompt takes: its keys and values, its logits, and one layer's attention weights.

    Our InternLM2 and transformers' models of its time compute all of them at once.
    """
    heads, layers, hidden = (
        int(getattr(config, name, 0) or 0) for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    groups = getattr(config, "num_key_value_heads", None) or heads
    kept = 2.0 * tokens * layers * hidden * groups / max(1, heads) * value_bytes
    logits = float(tokens) * (getattr(config, "vocab_size", 0) or 0) * (value_bytes + 4)
    weights = float(tokens) ** 2 * heads * (value_bytes + 4)
    return kept + logits + weights
