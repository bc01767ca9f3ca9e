"""Queues the questions of all sessions: one thread loads the models once and answers the requests in order.

A session polls its request for the answers. A request ends early, at the next token, if the user stops it or closes
the tab; a waiting one is skipped.
"""

import contextlib
import dataclasses
import threading
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Optional, Tuple

from recipe.core import translation
from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.inference import chat_model, loading, prompt

PANES = ("base", "tuned")  # in the order of answering
Load = Callable[[], Dict[str, "PaneModel"]]


class PaneModel(NamedTuple):
    """The model of a pane; `activate` switches shared weights to it."""

    chat_model: Any
    activate: Callable[[], ContextManager]


class Cancelled(Exception):
    """The user stopped the answer or closed the tab."""


@dataclasses.dataclass
class Request:
    """A question with each pane's history. `answers` grows during generation; `done` is set last."""

    session: str
    question: str
    system: str
    history: Dict[str, List[Tuple[str, str]]]
    sampling: Dict[str, Any]  # temperature (0: greedy), top_p, limit (tokens), seed
    language: str = "en"  # of `error`
    answers: Dict[str, str] = dataclasses.field(default_factory=dict)
    endings: Dict[str, str] = dataclasses.field(default_factory=dict)  # pane → "", "stopped", "cut"
    dropped_turns: int = 0  # turns that did not fit into the context
    stopped: bool = False
    error: str = ""
    done: bool = False


class InferenceQueue:
    """`load` loads the models of PANES on first use; `is_connected`: whether a session's tab is open."""

    def __init__(self, load: Load, is_connected: Callable[[str], bool]) -> None:
        self._load, self._is_connected = load, is_connected
        self._models: Dict[str, PaneModel] = {}
        self._requests: List[Request] = []
        self._preload_wanted = False
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, name="inference-queue", daemon=True).start()

    @property
    def loaded(self) -> bool:
        return bool(self._models)

    def preload(self) -> None:
        """Load the models now instead of with the first question."""
        with self._changed:
            self._preload_wanted = True
            self._changed.notify()

    def submit(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify()

    def cancel_all(self) -> None:
        """Stop all requests, so that no session waits."""
        with self._changed:
            for request in self._requests:
                request.stopped = True

    def position(self, request: Request) -> int:
        """The number of active requests before `request`, including the one being answered."""
        with self._changed:
            before = self._requests[: self._requests.index(request)] if request in self._requests else []
        return sum(1 for other in before if self._is_active(other))

    def _is_active(self, request: Request) -> bool:
        return not request.stopped and self._is_connected(request.session)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests or (self._preload_wanted and not self._models))
                request = self._requests[0] if self._requests else None
                self._preload_wanted = False
            with translation.use(request.language) if request else contextlib.nullcontext():
                self._work(request)
            if request is not None:
                with self._changed:
                    self._requests.remove(request)
                request.done = True

    def _work(self, request: Optional[Request]) -> None:
        try:
            if request is None or self._is_active(request):
                self._models = self._models or self._load()
            if request is not None:
                self._answer(request)
        except RecipeError as error:
            self._fail(request, str(error))
        except Exception as error:  # keep serving the queue
            self._fail(request, f"{type(error).__name__}: {error}")

    def _fail(self, request: Any, why: str) -> None:
        if request is not None:
            request.error = why

    def _answer(self, request: Request) -> None:
        for pane in PANES:
            if not self._is_active(request):
                break
            pane_model = self._models[pane]
            with contextlib.suppress(Cancelled), pane_model.activate():
                self._generate(request, pane, pane_model.chat_model)
        if not self._is_active(request):
            request.endings.update({pane: "stopped" for pane in PANES if pane not in request.endings})

    def _generate(self, request: Request, pane: str, model: Any) -> None:
        import torch

        sampling, history = request.sampling, request.history[pane]
        kept = model.fit_history(request.system, history, request.question, sampling["limit"])
        request.dropped_turns = max(request.dropped_turns, len(history) - len(kept))
        generation = {"do_sample": True, "temperature": sampling["temperature"], "top_p": sampling["top_p"], "top_k": 0}
        torch.manual_seed(sampling["seed"])
        request.answers[pane] = ""
        answer = model.answer(
            request.system, kept, request.question, self._streamer(request, pane, model.tokenizer), sampling["limit"],
            generation if sampling["temperature"] else None,
        )  # fmt: skip
        request.answers[pane] = answer.text
        request.endings[pane] = "" if answer.ended else "cut"

    def _streamer(self, request: Request, pane: str, tokenizer: Any) -> Any:
        from recipe.inference.streamer import AnswerStreamer

        is_active = self._is_active

        class Streamer(AnswerStreamer):
            def put(self, value: Any) -> None:
                if not is_active(request):
                    raise Cancelled
                super().put(value)

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                request.answers[pane] += text

        return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def load(run: Run, kind: str) -> Dict[str, PaneModel]:
    """Load base and tuned model. `kind`: adapter (both share one set of weights), merged (two sets), "" (the adapter if
    it exists). Raises InputWrong if the model does not exist, HostLacks if two do not fit into memory.
    """
    found = loading.find_model(run, kind or ("adapter" if run.adapter.is_dir() else ""))
    template = prompt.template(run)
    if found.adapter:
        model = chat_model.ChatModel(found.folder, template, found.adapter)
        return {
            "base": PaneModel(model, model.model.disable_adapter),
            "tuned": PaneModel(model, contextlib.nullcontext),
        }
    base = loading.find_model(run, "base")
    return {
        "base": PaneModel(chat_model.ChatModel(base.folder, template), contextlib.nullcontext),
        "tuned": PaneModel(chat_model.ChatModel(found.folder, template), contextlib.nullcontext),
    }
