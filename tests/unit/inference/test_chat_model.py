"""Batches of questions, and who answers them."""

import random

import pytest
import torch
from mmengine.config import ConfigDict

from recipe.core import imports
from recipe.inference import chat_model, limits

imports.load()

from recipe.inference import decoding  # noqa: E402
from support.tiny_model import TEXTS, make  # noqa: E402


def test_batches_hold_no_more_than_they_may():
    chance = random.Random(0)
    lengths = [chance.randrange(1, 3000) for _ in range(200)]
    batches = list(chat_model._batches(lengths, 8))
    assert sorted(number for batch in batches for number in batch) == list(range(200))
    for batch in batches:
        assert len(batch) <= 8
        assert len(batch) == 1 or len(batch) * max(lengths[number] for number in batch) <= chat_model.MAX_BATCH_TOKENS


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    make(folder, TEXTS)
    template = ConfigDict(SYSTEM="[SYS]{system}\n", INSTRUCTION="<|user|>{input}\n<|bot|>", STOP_WORDS=["天再"])
    return chat_model.ChatModel(folder, template)


def test_turns_that_do_not_fit_the_memory_are_left_out(chat, monkeypatch):
    turns = [("问题" * 40, "回答" * 40)] * 6
    asked = [len(chat.tokenizer(chat.prompt("", turns[number:], "好吗？"))["input_ids"]) for number in range(7)]
    for kept in (6, 2, 0):
        room = limits.prompt_bytes(chat.model.config, asked[6 - kept], 4)
        monkeypatch.setattr(chat_model, "free_memory", lambda room=room: room)
        assert chat.fit_history("", turns, "好吗？", 20) == turns[6 - kept :]
        chat.answer("", turns[6 - kept :], "好吗？", limit=1)


def test_a_cpus_answers_are_left_to_transformers(chat):
    assert chat.decoder is None


def test_the_decoder_answers_as_generate_does(chat, monkeypatch):
    from transformers import TextStreamer

    class Printed(TextStreamer):
        def __init__(self):
            super().__init__(chat.tokenizer, skip_prompt=True)
            self.texts = []

        def on_finalized_text(self, text, stream_end=False):
            self.texts.append(text)

    def answers():
        printed = Printed()
        prompts = [chat.prompt("教练", [], question) for question in ("想辞职", "总是焦虑，怎么办？", "睡不着")]
        torch.manual_seed(0)
        found = [chat.answer("", [], "怕开会发言", printed, 20, {"do_sample": True, "top_k": 0})]
        return found + chat.answer_batch(prompts, 20, 2), printed.texts

    expected = answers()
    monkeypatch.setattr(chat, "decoder", decoding.Decoder(chat.model))
    monkeypatch.setattr(chat.model, "generate", None)
    assert answers() == expected


def test_an_answer_can_be_stopped_and_the_next_one_is_whole(chat, monkeypatch):
    class Impatient:
        def put(self, value):
            if value.dim() == 1:
                raise Stopped

    whole = chat.answer("", [], "想辞职", limit=8)
    monkeypatch.setattr(chat, "decoder", decoding.Decoder(chat.model))
    with pytest.raises(Stopped):
        chat.answer("", [], "睡不着", Impatient(), 8)
    assert chat.answer("", [], "想辞职", limit=8) == whole


def test_a_decoder_that_differs_is_not_asked(chat, monkeypatch, capsys):
    whole = chat.answer("", [], "想辞职", limit=8)
    monkeypatch.setattr(chat, "decoder", decoding.Decoder(chat.model))
    monkeypatch.setattr(decoding.Decoder, "fault", lambda *_: "its logits differ")
    assert chat.answer("", [], "想辞职", limit=8) == whole
    assert chat.decoder is None
    assert "its logits differ" in capsys.readouterr().err
