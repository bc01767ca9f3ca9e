"""Batches of questions."""

import random

from recipe.inference import chat_model


def test_batches_hold_no_more_than_they_may():
    chance = random.Random(0)
    lengths = [chance.randrange(1, 3000) for _ in range(200)]
    batches = list(chat_model._batches(lengths, 8))
    assert sorted(number for batch in batches for number in batch) == list(range(200))
    for batch in batches:
        assert len(batch) <= 8
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= chat_model.MAX_BATCH_TOKENS
