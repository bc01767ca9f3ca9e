"""Exported models ask as they were trained."""

import pytest

from recipe.core.errors import InputWrong
from recipe.xtuner import preset_editor, preset_facts


@pytest.mark.parametrize("name", preset_facts.templates())
def test_chat_and_engines_ask_as_training_did(name):
    """Two turns by XTuner's template_map_fn, as text, beside what chat asks and what the exported template makes."""
    from recipe.export import merged
    from recipe.inference import chat_model

    template = xtuners(name)
    tokens = merged._Tokens("</s>", "<s>")
    text = ""
    for number, (asked, said) in enumerate((("一", "二"), ("三", "")), start=1):  # encode_fn's order, XTuner 0.1.14
        if number == 1 or not template.get("SUFFIX_AS_EOS", False):
            text += "<s>"
        text += template.SYSTEM.format(system="甲") if number == 1 else ""
        text += template.INSTRUCTION.format(input=asked, round=number)
        if said:
            text += said + template.get("SUFFIX", "")
            text += "" if template.get("SUFFIX_AS_EOS", False) else "</s>"
            text += template.get("SEP", "")
    asked = chat_model.ChatModel.prompt(merged._PromptBuilder(template, tokens), "甲", [("一", "二")], "三")
    assert "<s>" + asked == text
    if name == "chatglm2":
        with pytest.raises(InputWrong, match="numbers its turns"):
            merged.to_jinja(template, "</s>", "<s>")
        return
    jinja = merged.to_jinja(template, "</s>", "<s>")
    assert merged._prompts_match(jinja, template, {"eos_token": "</s>", "bos_token": {"content": "<s>"}})


def xtuners(name):
    """A chat template of XTuner, by its source: importing XTuner would take ten seconds."""
    text = (preset_editor.folder().parent / "utils" / "templates.py").read_text(encoding="utf-8")
    held = {}
    exec(compile(text, "templates.py", "exec"), held)
    return held["PROMPT_TEMPLATE"][name]
