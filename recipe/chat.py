"""Asks a model folder: the recipe's evaluation questions beside the base, one question, or a conversation."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from . import model, talker
from .stages import Run, key_of, output_digest
from .talker import Talker, template

SAMPLED = 2  # evaluation questions asked after a merge


def questions(run: Run) -> List[str]:
    from mmengine.config import Config

    return list(Config.fromfile(str(run.config)).evaluation_inputs)


def reads(run: Run) -> Dict[str, Any]:
    return {
        "merged": output_digest(run, "merge", "merged"),
        "base": model.fingerprint(model.folder(run)),
        "questions": questions(run)[:SAMPLED],
        "system": run.settings.data.system,
        "code": [key_of({"file": Path(file)}) for file in (__file__, talker.__file__)],
    }


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Write samples.json: evaluation questions with the base's and the merged model's answers."""
    asked = questions(run)[:SAMPLED]
    answers = {}
    for name, place in (("base", model.folder(run)), ("merged", run.merged)):
        talker = Talker(place, template(run))
        answers[name] = [talker.answer(run.settings.data.system, [], question) for question in asked]
    samples = [
        {
            "question": question,
            "base": before[0],
            "base_ended": before[1],
            "merged": after[0],
            "merged_ended": after[1],
        }
        for question, before, after in zip(asked, answers["base"], answers["merged"])
    ]
    (out / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {"samples": samples}


def talk(run: Run, question: Optional[str]) -> None:
    """Answer `question`, or every line of a pipe, or hold a conversation at the terminal until Ctrl-D."""
    from transformers import TextStreamer

    talker = Talker(run.merged, template(run))
    system = run.settings.data.system

    def answer(turns: List[Tuple[str, str]], asked: str) -> str:
        # A streamer of its own for each answer: an interrupted one would print the next prompt.
        streamer = TextStreamer(talker.tokenizer, skip_prompt=True, skip_special_tokens=True)
        return talker.answer(system, turns, asked, streamer)[0]

    if question is not None:
        answer([], question)
        return
    if not sys.stdin.isatty():
        for line in filter(None, map(str.strip, sys.stdin)):
            answer([], line)
        return
    print("Ask; an empty line begins a new conversation, Ctrl-D ends.")
    turns: List[Tuple[str, str]] = []
    while True:
        try:
            asked = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not asked:
            turns = []
            continue
        try:
            turns.append((asked, answer(turns, asked)))
        except KeyboardInterrupt:  # stops the answer, not the program
            print()
