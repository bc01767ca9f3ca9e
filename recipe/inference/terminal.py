"""Chat at the terminal: a conversation, one question, or a question per line of a pipe."""

import codecs
import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import click

from recipe.base_model.tokenizer import load as load_tokenizer
from recipe.core.errors import InputWrong, reason
from recipe.core.run import Run
from recipe.core.translation import _, listed, mark, ngettext
from recipe.inference import loading
from recipe.inference.chat_model import ChatModel
from recipe.inference.prompt import template

SAMPLE_QUESTIONS = 2  # asked after a merge

MAX_NEW_TOKENS = 512  # of an answer in a conversation

RETRY_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.8}


def questions(run: Run) -> List[str]:
    from mmengine.config import Config

    return list(Config.fromfile(str(run.config)).evaluation_inputs)


class Conversation:
    """A conversation with one model; `handle` takes a line as typed."""

    def __init__(self, model: ChatModel, system: str) -> None:
        self.model, self.system = model, system
        self.turns: List[Tuple[str, str]] = []

    def ask(self, question: str, sampling: Optional[Dict[str, Any]] = None) -> None:
        """Print the answer as it is generated and keep it; Ctrl-C cuts it short."""
        history = self.model.fit_history(self.system, self.turns, question, MAX_NEW_TOKENS)
        if len(history) < len(self.turns):
            note(
                _(
                    "(the model sees the last {seen} of {turns} turns; more do not fit)",
                    seen=len(history),
                    turns=len(self.turns),
                )
            )
        streamer = answer_printer(self.model.tokenizer)
        try:
            ended = self.model.answer(self.system, history, question, streamer, MAX_NEW_TOKENS, sampling).ended
            if not ended:
                note(_("(cut at {tokens} tokens)", tokens=MAX_NEW_TOKENS))
        except KeyboardInterrupt:  # stops the answer, not the program
            print()
            note(_("(stopped; /undo removes it)"))
        self.turns.append((question, streamer.text.strip()))

    def handle(self, line: str) -> None:
        """Run a command or ask a question. Raises InputWrong for an unknown or impossible command."""
        word, _blank, rest = line.partition(" ")
        if not word.startswith("/"):
            self.ask(line)
        elif word in COMMANDS:
            COMMANDS[word][0](self, rest.strip())
        else:
            raise InputWrong(_("{word} is not a command. Commands: {commands}", word=word, commands=listed(COMMANDS)))

    def undo(self, _rest: str = "") -> None:
        if not self.turns:
            raise InputWrong(_("There is no question yet."))
        question, _answer = self.turns.pop()
        note(_("(removed: {question})", question=question))

    def retry(self, _rest: str) -> None:
        if not self.turns:
            raise InputWrong(_("There is no question yet."))
        self.ask(self.turns.pop()[0], RETRY_SAMPLING)

    def clear(self, _rest: str) -> None:
        self.turns = []
        note(_("(a new conversation)"))

    def set_system(self, text: str) -> None:
        self.system = text or self.system
        note(f"({self.system})" if self.system else _("(no system prompt)"))

    def save(self, name: str) -> None:
        """Write a line of dataset.jsonl, which can be corrected and trained on."""
        if not name or not self.turns:
            raise InputWrong(_("/save FILE saves the conversation: give a file name, and ask something first."))
        first = {"system": self.system} if self.system else {}
        turns = [{"input": question, "output": answer} for question, answer in self.turns]
        line = json.dumps({"conversation": [{**first, **turns[0]}, *turns[1:]]}, ensure_ascii=False)
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except FileExistsError:
            raise InputWrong(_("{file} exists. Choose another name.", file=name))
        except OSError as error:
            raise InputWrong(
                _("Cannot write {file} ({error}). Choose a path below output/.", file=name, error=reason(error))
            )
        note(ngettext("({n} turn saved to {file})", "({n} turns saved to {file})", len(turns), file=name))

    def help(self, _rest: str) -> None:
        for name, (_command, description) in COMMANDS.items():
            print(f"  {name:14} {_(description)}")
        description = _("stops an answer; Ctrl-D ends the chat; arrow up recalls earlier lines")
        print(f"  {'Ctrl-C':14} {description}")


COMMANDS: Dict[str, Tuple[Callable[[Conversation, str], None], str]] = {
    "/undo": (Conversation.undo, mark("removes the last question and its answer")),
    "/retry": (Conversation.retry, mark("asks the last question again with sampling")),
    "/clear": (Conversation.clear, mark("starts a new conversation")),
    "/system": (Conversation.set_system, mark("shows the system prompt; /system TEXT changes it")),
    "/save": (Conversation.save, mark("/save FILE saves the conversation as a line of dataset.jsonl")),
    "/help": (Conversation.help, mark("shows this list")),
}


def note(text: str) -> None:
    """Print to stderr, so that a pipe receives only answers."""
    click.secho(text, dim=True, err=True)


def answer_printer(tokenizer: Any) -> Any:
    """Streamer that prints one answer and collects it in `text`. Not reusable: an interrupted one keeps a remainder."""
    from recipe.inference.streamer import AnswerStreamer

    class Printer(AnswerStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            super().on_finalized_text(text, stream_end)

    return Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def talk(run: Run, question: Optional[str], which: str = "", image: str = "") -> None:
    """Answer `question`, or each line of a pipe on its own, or hold a conversation until Ctrl-D.

    `which`: base, adapter or merged; by default the tuned model. `image`: a file to talk about. Raises InputWrong.
    """
    files = loading.find_model(run, which)
    place = run.root / image if image else None
    if place and not files.vision:
        if which == "base":
            raise InputWrong(_("image={image}: the base model has no projector. Leave image= out.", image=image))
        raise InputWrong(
            _("image={image}: {name} was not trained on images. Leave image= out.", image=image, name=run.name)
        )
    if place and not place.is_file():
        raise InputWrong(_("image={image} does not exist.", image=image))
    chat_template = template(run)
    with loading.explain_load_errors(run, files):
        model = ChatModel(
            files.folder, chat_template, files.adapter, tokenizer=load_tokenizer(run.settings, files.folder),
            vision=files.vision, image=place,
        )  # fmt: skip
    conversation = Conversation(model, run.settings.data.system)
    if question is not None or not sys.stdin.isatty():
        lines = [question] if question is not None else piped_lines()
        for line in filter(None, map(str.strip, lines)):
            conversation.turns = []
            conversation.ask(line)
        return
    with contextlib.suppress(ImportError):  # arrow keys; the history is not saved
        import readline  # noqa: F401
    note(
        _(
            "{model} of {name}, {precision} on {device}. /help lists commands, Ctrl-D ends.",
            model=_(loading.KINDS[files.kind]),
            name=run.name,
            precision=model.precision,
            device=model.model.device.type,
        )
    )
    while True:
        try:
            read_lines(conversation)
        except KeyboardInterrupt:  # at the prompt it discards the line
            print()
        except EOFError:
            print()
            return


def piped_lines() -> Iterator[str]:
    """Lines of standard input in UTF-8, GB18030 (Chinese Windows) or UTF-16 (PowerShell). Raises InputWrong."""
    stream = sys.stdin.buffer
    first = stream.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 0 in first:
        yield from _decode_utf16(first + stream.read()).splitlines()
        return
    for number, line in enumerate(itertools.chain([first], stream), start=1):
        for encoding in ("utf-8-sig", "gb18030"):
            with contextlib.suppress(UnicodeDecodeError):
                yield line.decode(encoding)
                break
        else:
            raise InputWrong(
                _("Line {number} of standard input is neither UTF-8 nor GB18030. Convert it to UTF-8.", number=number)
            )


def _decode_utf16(data: bytes) -> str:
    """UTF-16 by its mark, else in the order of bytes that gives ASCII for line ends. Raises InputWrong."""
    encoding = "utf-16"
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16-le" if data.find(b"\n\0") % 2 == 0 or data[1:2] == b"\0" else "utf-16-be"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise InputWrong(_("Standard input holds NUL bytes and is not UTF-16. Convert it to UTF-8."))


def read_lines(conversation: Conversation) -> None:
    """Read lines until EOFError or KeyboardInterrupt."""
    while True:
        line = input("> ").strip()
        try:
            if line:
                conversation.handle(line)
        except InputWrong as error:
            note(str(error))
