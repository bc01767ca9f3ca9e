"""Asks a model folder: the recipe's evaluation questions beside the base, one question, or a conversation."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from . import libraries, model
from .stages import Run

SAMPLED = 2  # evaluation questions asked after a merge
MAX_NEW_TOKENS = 300


class Talker:
    """A loaded model folder with its tokenizer, chat template and stop tokens."""

    def __init__(self, place: Path, template: Any) -> None:
        libraries.load()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(place), trust_remote_code=True)
        cuda = torch.cuda.is_available()
        self.model = AutoModelForCausalLM.from_pretrained(
            str(place), trust_remote_code=True, torch_dtype="auto" if cuda else torch.float32
        ).eval()
        if cuda:
            self.model = self.model.cuda()
        self.template = template
        stops = self.model.generation_config.eos_token_id
        self.stops = set(stops if isinstance(stops, list) else [stops])
        for word in template.get("STOP_WORDS", []):
            self.stops.update(self.tokenizer.encode(word, add_special_tokens=False)[-1:])

    def prompt(self, system: str, turns: List[Tuple[str, str]], question: str) -> str:
        """The conversation so far in the model's chat template, ready for the next answer."""
        parts = [self.template.SYSTEM.format(system=system)] if system else []
        for number, (asked, answered) in enumerate([*turns, (question, "")], start=1):
            parts.append(self.template.INSTRUCTION.format(input=asked, round=number))
            if number <= len(turns):
                parts.append(answered + self.template.get("SUFFIX", "") + self.template.get("SEP", ""))
        return "".join(parts)

    def answer(
        self,
        system: str,
        turns: List[Tuple[str, str]],
        question: str,
        streamer: Any = None,
        limit: int = MAX_NEW_TOKENS,
    ) -> Tuple[str, bool]:
        """Greedy answer to `question`; also whether it ended by itself (a stop token) within `limit` tokens."""
        import torch

        ids = self.tokenizer(self.prompt(system, turns, question), return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            made = self.model.generate(
                **ids, do_sample=False, max_new_tokens=limit, streamer=streamer, eos_token_id=sorted(self.stops),
                pad_token_id=self.tokenizer.pad_token_id,
            )[0, ids["input_ids"].shape[1] :].tolist()  # fmt: skip
        ended = bool(made) and made[-1] in self.stops
        return self.tokenizer.decode(made[:-1] if ended else made, skip_special_tokens=True).strip(), ended


def template(run: Run) -> Any:
    """The recipe's chat template, XTuner's own."""
    from mmengine.config import Config

    return Config.fromfile(str(run.config)).prompt_template


def questions(run: Run) -> List[str]:
    from mmengine.config import Config

    return list(Config.fromfile(str(run.config)).evaluation_inputs)


def reads(run: Run) -> Dict[str, Any]:
    return {
        "merged": run.merged,
        "base": model.fingerprint(model.folder(run)),
        "questions": questions(run)[:SAMPLED],
        "system": run.settings.data.system,
        "code": Path(__file__),
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
