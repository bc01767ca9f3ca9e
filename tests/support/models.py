"""Tiny models in the forms that tests need."""


def sharded(place, layers):
    """A tiny InternLM2 in several shards, made in `place`; returns that."""
    from recipe.base_model import tiny

    tiny.make(
        place, ["压力很大，怎么办？ hello world"] * 9, vocab_size=700, hidden_size=64, layers=layers, heads=4,
        kv_heads=2, intermediate_size=128, max_shard_size="130KB",
    )  # fmt: skip
    return place
