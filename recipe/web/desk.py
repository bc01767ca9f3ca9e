"""Where all sessions of the page bring their questions: one thread loads the models, once, and answers in turn.

A question waits as a ticket. Its session reads there how far it is; a stopped one, and one whose tab is closed, ends at
the next word or, while it waits, without being asked.
"""

import contextlib
import dataclasses
import threading
from typing import Any, Callable, ContextManager, Dict, List, NamedTuple, Tuple

from recipe.core.errors import RecipeError
from recipe.core.run import Run
from recipe.inference import chat_model, loading, prompt

PANES = ("base", "tuned")  # in the order in which they answer
Load = Callable[[], Dict[str, "Voice"]]


class Voice(NamedTuple):
    """What answers in a pane, and how one set of weights is made to speak as it."""

    talker: Any
    speaking: Callable[[], ContextManager]


class Gone(Exception):
    """Nobody wants the rest of an answer."""


@dataclasses.dataclass
class Ticket:
    """A question, with what each pane heard before. `said` grows while it is answered; `done` comes last."""

    session: str
    question: str
    system: str
    turns: Dict[str, List[Tuple[str, str]]]
    sampling: Dict[str, Any]  # temperature (0: the likeliest answer), top_p, limit (tokens), seed
    said: Dict[str, str] = dataclasses.field(default_factory=dict)
    marks: Dict[str, str] = dataclasses.field(default_factory=dict)  # pane → "", "stopped", "cut"
    unseen: int = 0  # turns that the model had no room for
    stopped: bool = False
    error: str = ""
    done: bool = False


class Desk:
    """`load` makes the voices of PANES, when first wanted; `present` tells whether a session's tab is open."""

    def __init__(self, load: Load, present: Callable[[str], bool]) -> None:
        self._load, self._present = load, present
        self._voices: Dict[str, Voice] = {}
        self._tickets: List[Ticket] = []
        self._awake = False
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="desk", daemon=True).start()

    @property
    def loaded(self) -> bool:
        return bool(self._voices)

    def wake(self) -> None:
        """Load the models now, not with the first question."""
        with self._changed:
            self._awake = True
            self._changed.notify()

    def take(self, ticket: Ticket) -> None:
        with self._changed:
            self._tickets.append(ticket)
            self._changed.notify()

    def close(self) -> None:
        """End every answer, so that no session waits for one."""
        with self._changed:
            for ticket in self._tickets:
                ticket.stopped = True

    def place(self, ticket: Ticket) -> int:
        """How many are served before `ticket`, the one at work among them."""
        with self._changed:
            before = self._tickets[: self._tickets.index(ticket)] if ticket in self._tickets else []
        return sum(1 for other in before if self._wanted(other))

    def _wanted(self, ticket: Ticket) -> bool:
        return not ticket.stopped and self._present(ticket.session)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tickets or (self._awake and not self._voices))
                ticket = self._tickets[0] if self._tickets else None
                self._awake = False
            try:
                if ticket is None or self._wanted(ticket):
                    self._voices = self._voices or self._load()
                if ticket is not None:
                    self._answer(ticket)
            except RecipeError as error:
                self._fail(ticket, str(error))
            except Exception as error:  # whatever it is, the next in the queue is served
                self._fail(ticket, f"{type(error).__name__}: {error}")
            if ticket is not None:
                with self._changed:
                    self._tickets.remove(ticket)
                ticket.done = True

    def _fail(self, ticket: Any, why: str) -> None:
        if ticket is not None:
            ticket.error = why

    def _answer(self, ticket: Ticket) -> None:
        for pane in PANES:
            if not self._wanted(ticket):
                break
            voice = self._voices[pane]
            with contextlib.suppress(Gone), voice.speaking():
                self._speak(ticket, pane, voice.talker)
        if not self._wanted(ticket):
            ticket.marks.update({pane: "stopped" for pane in PANES if pane not in ticket.marks})

    def _speak(self, ticket: Ticket, pane: str, voice: Any) -> None:
        import torch

        how, turns = ticket.sampling, ticket.turns[pane]
        fitting = voice.fit_history(ticket.system, turns, ticket.question, how["limit"])
        ticket.unseen = max(ticket.unseen, len(turns) - len(fitting))
        drawn = {"do_sample": True, "temperature": how["temperature"], "top_p": how["top_p"], "top_k": 0}
        torch.manual_seed(how["seed"])
        ticket.said[pane] = ""
        answer = voice.answer(
            ticket.system, fitting, ticket.question, self._streamer(ticket, pane, voice.tokenizer), how["limit"],
            drawn if how["temperature"] else None,
        )  # fmt: skip
        ticket.said[pane] = answer.text
        ticket.marks[pane] = "" if answer.ended else "cut"

    def _streamer(self, ticket: Ticket, pane: str, tokenizer: Any) -> Any:
        from transformers import TextStreamer

        wanted = self._wanted

        class Streamer(TextStreamer):
            def put(self, value: Any) -> None:
                if not wanted(ticket):
                    raise Gone
                super().put(value)

            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                ticket.said[pane] += text

        return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def load(run: Run, which: str) -> Dict[str, Voice]:
    """Base and tuned voice of a run. `which`: adapter (one set of weights serves both), merged (two), "": the adapter
    if it is there. Raises InputWrong where there is no such model, HostLacks where two find no room.
    """
    found = loading.find_model(run, which or ("adapter" if run.adapter.is_dir() else ""))
    template = prompt.template(run)
    if found.adapter:
        one = chat_model.ChatModel(found.folder, template, found.adapter)
        return {"base": Voice(one, one.model.disable_adapter), "tuned": Voice(one, contextlib.nullcontext)}
    base = loading.find_model(run, "base")
    return {
        "base": Voice(chat_model.ChatModel(base.folder, template), contextlib.nullcontext),
        "tuned": Voice(chat_model.ChatModel(found.folder, template), contextlib.nullcontext),
    }
