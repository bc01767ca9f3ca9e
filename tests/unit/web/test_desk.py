"""The queue in front of the model."""

import contextlib
import threading
import time
import types

import pytest

from recipe.core.errors import HostLacks
from recipe.inference import chat_model
from recipe.web import desk

# --- the desk ---


class Voice:
    """Says its question back, letter by letter, when it is allowed to."""

    def __init__(self):
        self.letters = threading.Semaphore(0)
        self.tokenizer = None
        self.asked = []

    def fitting(self, system, turns, question, limit):
        return turns[-1:]

    def answer(self, system, turns, question, streamer, limit, sampling):
        self.asked.append((question, sampling))
        if question == "bad":
            raise RuntimeError("out of memory")
        for letter in question[:limit]:
            assert self.letters.acquire(timeout=10)
            streamer.put(letter)
        return chat_model.Answer(question[:limit], len(question) <= limit)


@pytest.fixture
def counter(monkeypatch):
    """(desk, its voice, sessions that are there, how often it was loaded)"""
    voice, there, loads = Voice(), {"a", "b", "c"}, []

    def load():
        loads.append(1)
        return {pane: desk.Voice(voice, contextlib.nullcontext) for pane in desk.PANES}

    made = desk.Desk(load, there.__contains__)

    def streamer(ticket, pane, tokenizer):
        def put(letter):
            if not made._wanted(ticket):
                raise desk.Gone
            ticket.said[pane] += letter

        return types.SimpleNamespace(put=put)

    monkeypatch.setattr(made, "_streamer", streamer)
    return types.SimpleNamespace(desk=made, voice=voice, there=there, loads=loads)


def ticket(counter, session, question, **more):
    how = {"temperature": 0.0, "top_p": 0.8, "limit": 50, "seed": 0, **more}
    made = desk.Ticket(session, question, "", {pane: [("x", "y"), ("z", "w")] for pane in desk.PANES}, how)
    counter.desk.take(made)
    return made


def wait(condition):
    deadline = time.time() + 10
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def test_in_turn_and_only_ones_own_is_stopped(counter):
    first, second, third = (ticket(counter, name, name * 3) for name in "abc")
    wait(lambda: counter.voice.asked)
    assert [counter.desk.place(one) for one in (first, second, third)] == [0, 1, 2]
    counter.voice.letters.release()
    wait(lambda: first.said.get("base") == "a")
    first.stopped = True
    counter.there.remove("b")  # closed its tab: is asked nothing
    assert counter.desk.place(third) == 0
    for _ in range(7):
        counter.voice.letters.release()
    wait(lambda: third.done)
    assert [question for question, _ in counter.voice.asked] == ["aaa", "ccc", "ccc"]
    assert (first.said, first.marks) == ({"base": "a"}, {"base": "stopped", "tuned": "stopped"})
    assert (second.done, second.said) == (True, {})
    assert (third.said, third.marks) == ({"base": "ccc", "tuned": "ccc"}, {"base": "", "tuned": ""})
    assert third.unseen == 1
    assert counter.loads == [1]


def test_a_failed_answer_is_told_and_the_next_is_served(counter):
    bad, cut = ticket(counter, "a", "bad"), ticket(counter, "b", "long", limit=2, temperature=0.7)
    for _ in range(4):
        counter.voice.letters.release()
    wait(lambda: cut.done)
    assert bad.done
    assert bad.error == "RuntimeError: out of memory"
    assert (cut.said["tuned"], cut.marks["tuned"]) == ("lo", "cut")
    assert counter.voice.asked[-1][1] == {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 0}


def test_a_model_that_cannot_be_loaded_is_tried_again():
    tried = []

    def load():
        tried.append(1)
        raise HostLacks("The model takes 7.4 GB of GPU memory")

    made = desk.Desk(load, lambda session: True)
    for n in (1, 2):
        one = ticket(types.SimpleNamespace(desk=made), "a", "?")
        wait(lambda one=one: one.done)
        assert one.error == "The model takes 7.4 GB of GPU memory"
        assert len(tried) == n
