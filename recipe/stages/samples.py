"""Samples stage: the evaluation's questions asked of base and merged model."""

import json
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import folder
from recipe.base_model.tokenizer import load as load_tokenizer
from recipe.core.hashing import source
from recipe.core.run import Run
from recipe.core.stage import Stage, output_digest
from recipe.core.translation import ngettext
from recipe.inference import chat_model
from recipe.inference.chat_model import ChatModel
from recipe.inference.evaluate import FAST_STEP, answer_limit
from recipe.inference.prompt import template
from recipe.inference.terminal import SAMPLE_QUESTIONS, questions


def inputs(run: Run) -> Dict[str, Any]:
    return {
        "merged": output_digest(run, "merge", "merged"),
        "base": folder.fingerprint(folder.folder(run)),
        "questions": questions(run)[:SAMPLE_QUESTIONS],
        "system": run.settings.data.system,
        "max_new_tokens": answer_limit(run.settings),
        "code": source(Path(__file__), Path(chat_model.__file__).parent, FAST_STEP),
    }


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Write samples.json: evaluation questions with the base's and the merged model's answers."""
    asked, limit = questions(run)[:SAMPLE_QUESTIONS], answer_limit(run.settings)
    answers = {}
    for name, place in (("base", folder.folder(run)), ("merged", run.merged)):
        model = ChatModel(place, template(run), tokenizer=load_tokenizer(run.settings, place))
        prompts = [model.prompt(run.settings.data.system, [], question) for question in asked]
        answers[name] = model.answer_batch(prompts, limit, len(prompts))
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
    (output / "samples.json").write_text(json.dumps(samples, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return {"samples": samples}


def summary(figures: Dict[str, Any]) -> str:
    return ngettext(
        "{n} question asked of base and merged model",
        "{n} questions asked of base and merged model",
        len(figures["samples"]),
    )


STAGE = Stage("chat", inputs, make, summary, outputs=("samples.json",))
