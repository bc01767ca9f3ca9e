"""Asks a model: the recipe's evaluation questions beside the base, one question, or a conversation at the terminal."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import click

from recipe.base_model.tokenizer import load as load_tokenizer
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.inference import loading
from recipe.inference.chat_model import Talker
from recipe.inference.prompt import template

SAMPLED = 2  # evaluation questions asked after a merge

LONGEST = 512  # tokens of an answer in a conversation

DRAWN = {"do_sample": True, "temperature": 0.8, "top_p": 0.8}  # for an answer that shall be another one


def questions(run: Run) -> List[str]:
    from mmengine.config import Config

    return list(Config.fromfile(str(run.config)).evaluation_inputs)


class Conversation:
    """What was said so far with one model; `Conversation.do` takes a line as it was typed."""

    def __init__(self, voice: Talker, system: str) -> None:
        self.voice, self.system = voice, system
        self.turns: List[Tuple[str, str]] = []

    def ask(self, question: str, sampling: Optional[Dict[str, Any]] = None) -> None:
        """Print the answer as it comes, and keep it; Ctrl-C ends it early."""
        fitting = self.voice.fitting(self.system, self.turns, question, LONGEST)
        if len(fitting) < len(self.turns):
            note(f"(the model sees the last {len(fitting)} of {len(self.turns)} turns: more do not fit)")
        said = printer(self.voice.tokenizer)
        try:
            ended = self.voice.answer(self.system, fitting, question, said, LONGEST, sampling).ended
            if not ended:
                note(f"(cut at {LONGEST} tokens)")
        except KeyboardInterrupt:  # stops the answer, not the program
            print()
            note("(stopped; /undo takes it back)")
        self.turns.append((question, said.text.strip()))

    def do(self, line: str) -> None:
        """A command, or a question. Raises InputWrong for a command that cannot be done."""
        word, _, rest = line.partition(" ")
        if not word.startswith("/"):
            self.ask(line)
        elif word in COMMANDS:
            COMMANDS[word][0](self, rest.strip())
        else:
            raise InputWrong(f"{word} is no command. {', '.join(COMMANDS)}")

    def undo(self, _: str = "") -> None:
        if not self.turns:
            raise InputWrong("Nothing was asked yet.")
        question, _ = self.turns.pop()
        note(f"(taken back: {question})")

    def retry(self, _: str) -> None:
        if not self.turns:
            raise InputWrong("Nothing was asked yet.")
        self.ask(self.turns.pop()[0], DRAWN)

    def clear(self, _: str) -> None:
        self.turns = []
        note("(a new conversation)")

    def prompt(self, text: str) -> None:
        self.system = text or self.system
        note(f"({self.system or 'no system prompt'})")

    def save(self, name: str) -> None:
        """As a line of dataset.jsonl: corrected, it can be trained on."""
        if not name or not self.turns:
            raise InputWrong("/save FILE writes the conversation, when there is one.")
        first = {"system": self.system} if self.system else {}
        turns = [{"input": question, "output": answer} for question, answer in self.turns]
        line = json.dumps({"conversation": [{**first, **turns[0]}, *turns[1:]]}, ensure_ascii=False)
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except FileExistsError:
            raise InputWrong(f"{name} is there already: another name.")
        except OSError as error:
            raise InputWrong(f"{name} cannot be written ({error.strerror}): a place below output/ can.")
        note(f"({len(turns)} turns in {name})")

    def help(self, _: str) -> None:
        for name, (_, what) in COMMANDS.items():
            print(f"  {name:14} {what}")
        print("  Ctrl-C         stops an answer; Ctrl-D ends; arrow up: what you typed before")


COMMANDS: Dict[str, Tuple[Callable[[Conversation, str], None], str]] = {
    "/undo": (Conversation.undo, "takes the last question and its answer back"),
    "/retry": (Conversation.retry, "asks it again; the answer is drawn, not the likeliest one"),
    "/clear": (Conversation.clear, "begins a new conversation"),
    "/system": (Conversation.prompt, "shows the system prompt; /system TEXT sets another"),
    "/save": (Conversation.save, "/save FILE writes the conversation as a line of dataset.jsonl"),
    "/help": (Conversation.help, "this"),
}


def note(text: str) -> None:
    """What is not the model's: on the other stream, so that a pipe gets answers alone."""
    click.secho(text, dim=True, err=True)


def printer(tokenizer: Any) -> Any:
    """Prints an answer as it comes, and keeps it as `text`. One for each: an interrupted one holds a rest."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        text = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            super().on_finalized_text(text, stream_end)

    return Printer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def talk(run: Run, question: Optional[str], which: str = "", image: str = "") -> None:
    """Answer `question`, or every line of a pipe by itself, or hold a conversation at the terminal until Ctrl-D.

    `which`: base, adapter or merged; by default the tuned one that is there. `image`: a file that it is all about.
    Raises InputWrong.
    """
    found = loading.find(run, which)
    place = run.root / image if image else None
    if place and not found.eyes:
        what = "the base has no projector" if which == "base" else f"{run.name} was not trained on images"
        raise InputWrong(f"image={image}: {what}, so it sees none.")
    if place and not place.is_file():
        raise InputWrong(f"image={image}: there is no such file.")
    asking = template(run)
    with loading.loading(run, found):
        voice = Talker(
            found.place, asking, found.adapter, tokenizer=load_tokenizer(run.settings, found.place),
            eyes=found.eyes, image=place,
        )  # fmt: skip
    conversation = Conversation(voice, run.settings.data.system)
    if question is not None or not sys.stdin.isatty():
        asked = [question] if question is not None else piped_lines()
        for line in filter(None, map(str.strip, asked)):
            conversation.turns = []
            conversation.ask(line)
        return
    with contextlib.suppress(ImportError):  # arrow keys; nothing typed is kept when the program ends
        import readline  # noqa: F401
    note(f"{found.what} model of {run.name}, {voice.kind} on {voice.model.device.type}. /help: commands, Ctrl-D ends.")
    while True:
        try:
            hold(conversation)
        except KeyboardInterrupt:  # at the prompt it takes back what was typed
            print()
        except EOFError:
            print()
            return


def piped_lines() -> Iterator[str]:
    """Lines of standard input: UTF-8, or GB18030 as Chinese Windows writes. Raises InputWrong."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(sys.stdin, start=1):
        try:
            yield line.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError:
            try:
                yield line.encode("utf-8", "surrogateescape").decode("gb18030")
            except UnicodeDecodeError:
                raise InputWrong(f"Line {number} of standard input is neither UTF-8 nor GB18030. Convert it to UTF-8.")


def hold(conversation: Conversation) -> None:
    """Take lines for ever. Raises EOFError, KeyboardInterrupt."""
    while True:
        line = input("> ").strip()
        try:
            if line:
                conversation.do(line)
        except InputWrong as error:
            note(str(error))
