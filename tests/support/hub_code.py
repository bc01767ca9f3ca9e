"""A hub's InternLM2 folder with today's code and keys."""

# What InternLM2's folders hold since the middle of 2024, on top of what they held before.
TODAY = {
    "attn_implementation": "eager", "pretraining_tp": 1, "transformers_version": "4.41.0",
    "rope_scaling": {"type": "dynamic", "factor": 2.0}, "attention_dropout": 0.0, "sliding_window": None,
}  # fmt: skip
