"""Text that is passed on while an answer is generated."""

import random

import pytest
import torch

from recipe.base_model import tiny
from recipe.core import imports

imports.load()

from recipe.inference.streamer import KEPT, AnswerStreamer  # noqa: E402
from support.tiny_model import TEXTS  # noqa: E402

ANSWER = "先休息，再慢慢想 。 It is fine , take a break\n第二步：🙂𠀀 don't worry!  两个空格\n\n" * 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    path.write_bytes(tiny.train_pieces(TEXTS, 700))
    return tiny.tokenizer_from_model(path)


@pytest.fixture
def stream(monkeypatch):
    """Function that streams tokens; returns the text, and the most tokens decoded at once."""

    def run(tokenizer, tokens):
        texts, lengths = [], []
        streamer = AnswerStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: texts.append(text)
        decode = tokenizer.decode
        with monkeypatch.context() as patched:
            patched.setattr(tokenizer, "decode", lambda ids, **more: lengths.append(len(ids)) or decode(ids, **more))
            streamer.put(torch.tensor([[1, 2]]))  # the prompt
            for token in tokens:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return "".join(texts), max(lengths)

    return run


def whole(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True)


def test_the_text_is_that_of_all_tokens(tokenizer, stream):
    chance = random.Random(0)
    for length in (1, KEPT, 5 * KEPT, 200):
        tokens = [chance.randrange(3, tokenizer.vocab_size) for _ in range(length)]
        assert stream(tokenizer, tokens)[0] == whole(tokenizer, tokens)


def test_only_the_last_tokens_are_decoded(tokenizer, stream):
    for text in ("压力很大" * 60, "，" * 200, "工作 压力 " * 60):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        found, most = stream(tokenizer, tokens)
        assert len(tokens) > 4 * KEPT
        assert found == whole(tokenizer, tokens)
        assert most <= 3 * KEPT


def test_the_real_tokenizers_text_is_that_of_all_tokens(real_tokenizer, stream):
    tokenizer = tiny.tokenizer_from_model(real_tokenizer)
    chance = random.Random(1)
    for tokens in (
        tokenizer.encode(ANSWER, add_special_tokens=False),
        [chance.randrange(3, tokenizer.vocab_size) for _ in range(300)],
        [chance.randrange(3, 259) for _ in range(300)],  # bytes
    ):
        assert stream(tokenizer, tokens)[0] == whole(tokenizer, tokens)
