"""The queue in front of the model."""

import contextlib
import threading
import time
import types

import pytest

from recipe.core import translation
from recipe.core.errors import HostLacks
from recipe.inference import chat_model
from recipe.web import inference_queue


class EchoModel:
    """Says its question back, letter by letter, when it is allowed to."""

    def __init__(self):
        self.letters = threading.Semaphore(0)
        self.tokenizer = None
        self.asked = []

    def fit_history(self, system, turns, question, limit):
        return turns[-1:]

    def answer(self, system, turns, question, streamer, limit, sampling):
        self.asked.append((question, sampling))
        if question == "bad":
            raise RuntimeError("out of memory")
        for letter in question[:limit]:
            assert self.letters.acquire(timeout=60)
            streamer.put(letter)
        return chat_model.Answer(question[:limit], len(question) <= limit)


@pytest.fixture
def served(monkeypatch):
    """(queue, its model, connected sessions, how often it was loaded)"""
    model, connected, loads = EchoModel(), {"a", "b", "c"}, []

    def load():
        loads.append(1)
        return {pane: inference_queue.PaneModel(model, contextlib.nullcontext) for pane in inference_queue.PANES}

    made = inference_queue.InferenceQueue(load, connected.__contains__)

    def streamer(request, pane, tokenizer):
        def put(letter):
            if not made._is_active(request):
                raise inference_queue.Cancelled
            request.answers[pane] += letter

        return types.SimpleNamespace(put=put)

    monkeypatch.setattr(made, "_streamer", streamer)
    return types.SimpleNamespace(queue=made, model=model, connected=connected, loads=loads)


def submit(served, session, question, **more):
    sampling = {"temperature": 0.0, "top_p": 0.8, "limit": 50, "seed": 0, **more}
    made = inference_queue.Request(
        session, question, "", {pane: [("x", "y"), ("z", "w")] for pane in inference_queue.PANES}, sampling
    )
    served.queue.submit(made)
    return made


def wait(condition):
    deadline = time.time() + 60  # the first answer imports torch
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


def test_in_turn_and_only_ones_own_is_stopped(served):
    first, second, third = (submit(served, name, name * 3) for name in "abc")
    wait(lambda: served.model.asked)
    assert [served.queue.position(one) for one in (first, second, third)] == [0, 1, 2]
    served.model.letters.release()
    wait(lambda: first.answers.get("base") == "a")
    first.stopped = True
    served.connected.remove("b")  # closed its tab: is asked nothing
    assert served.queue.position(third) == 0
    for _ in range(7):
        served.model.letters.release()
    wait(lambda: third.done)
    assert [question for question, _ in served.model.asked] == ["aaa", "ccc", "ccc"]
    assert (first.answers, first.endings) == ({"base": "a"}, {"base": "stopped", "tuned": "stopped"})
    assert (second.done, second.answers) == (True, {})
    assert (third.answers, third.endings) == ({"base": "ccc", "tuned": "ccc"}, {"base": "", "tuned": ""})
    assert third.dropped_turns == 1
    assert served.loads == [1]


def test_a_failed_answer_is_told_and_the_next_is_served(served):
    bad, cut = submit(served, "a", "bad"), submit(served, "b", "long", limit=2, temperature=0.7)
    for _ in range(4):
        served.model.letters.release()
    wait(lambda: cut.done)
    assert bad.done
    assert bad.error == "RuntimeError: out of memory"
    assert (cut.answers["tuned"], cut.endings["tuned"]) == ("lo", "cut")
    assert served.model.asked[-1][1] == {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 0}


def test_a_model_that_cannot_be_loaded_is_tried_again():
    tried = []

    def load():
        tried.append(1)
        raise HostLacks("The model takes 7.4 GB of GPU memory")

    made = inference_queue.InferenceQueue(load, lambda session: True)
    for n in (1, 2):
        one = submit(types.SimpleNamespace(queue=made), "a", "?")
        wait(lambda one=one: one.done)
        assert one.error == "The model takes 7.4 GB of GPU memory"
        assert len(tried) == n


def test_an_error_is_in_the_language_of_who_asked(served, monkeypatch):
    def load():
        raise HostLacks(translation._("There is no plan yet."))

    monkeypatch.setattr(served.queue, "_load", load)
    requests = {language: inference_queue.Request("a", "q", "", {}, {}, language) for language in ("en", "zh_CN")}
    for request in requests.values():
        served.queue.submit(request)
    wait(lambda: all(request.done for request in requests.values()))
    assert [request.error for request in requests.values()] == ["There is no plan yet.", "还没有计划。"]
