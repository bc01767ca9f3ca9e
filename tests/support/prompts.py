"""Prompts whose answers are compared with those of an engine."""

import types

from recipe.inference import terminal
from recipe.intake import dataset
from support.command import ROOT

SYSTEM = "你是一位有心理学背景的职场教练。"


# ---- GGUF and llama.cpp


def prompts(template):
    """Prompts as text: chat with and without a system prompt, two turns, bare Chinese, bare English."""
    asked = [question for question, _ in pairs()]
    talker = types.SimpleNamespace(template=template)
    return [
        *(terminal.ChatModel.prompt(talker, system, [], question) for question in asked[:6] for system in (SYSTEM, "")),
        terminal.ChatModel.prompt(talker, SYSTEM, [(asked[0], "好的。")], asked[1]),
        "职场焦虑",
        "Hello,  world!\n\n1234",
    ]


def pairs():
    return [(turns[0]["input"], turns[0]["output"]) for turns in dataset.sample(ROOT / "data/workplace.xlsx")]
