"""Edits of a preset keep everything else; DeepSpeed's settings are filled in."""

import json

import pytest

from recipe.core.errors import InputWrong
from recipe.xtuner import preset_editor
from support.presets import PRESET, rendered


def test_the_difference_is_shown_as_lines():
    text = rendered("tutorial", intervals={"evaluation_freq": 500})
    diff = preset_editor.difference(preset_editor.source(PRESET), text, "a", "b")
    assert "-max_length = 2048\n+max_length = 512\n" in diff
    assert "-    dataset_map_fn=oasst1_map_fn,\n+    dataset_map_fn=None,\n" in diff
    comments = [line for line in preset_editor.source(PRESET).splitlines() if line.lstrip().startswith("#")]
    assert [line for line in text.splitlines() if line.lstrip().startswith("#")] == comments


def test_edits_keep_everything_else_byte_for_byte():
    source = "# 头\na = dict(b=1,  # keep\n         c=dict(d='中文', e=2))\nz = [dict(k=1), 2]\n"
    assert preset_editor.edit(source, {"a.c.d": "'新'"}) == source.replace("'中文'", "'新'")
    assert preset_editor.edit(source, {"a.c.e": None}) == source.replace(", e=2", "")
    assert preset_editor.edit(source, {"a.b": None}) == source.replace("b=1,  # keep\n         ", "")
    assert preset_editor.edit(source, {"z.0.k": "7"}) == source.replace("k=1", "k=7")
    assert preset_editor.edit(source, {"z": "3"}) == source.replace("[dict(k=1), 2]", "3")
    added = preset_editor.edit(source, {"a.c.f": "5"})
    assert eval(added.split("a = ")[1].split("\nz")[0], {}) == {"b": 1, "c": {"d": "中文", "e": 2, "f": 5}}
    with pytest.raises(KeyError, match="no nothing"):
        preset_editor.edit(source, {"nothing": "1"})
    with pytest.raises(KeyError):
        preset_editor.edit(source, {"a.b.c": "1"})


def test_a_preset_can_be_edited_to_itself():
    source = preset_editor.source(PRESET)
    assert preset_editor.edit(source, {"max_length": "2048", "model.lora.r": "64"}) == source


def test_a_deepspeed_file_of_the_users_own(tmp_path):
    """Its "auto" is filled too; what else it says holds, but not against the recipe."""
    own = tmp_path / "mine.json"
    own.write_text('{"bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 1, "overlap_comm": true}}')
    made = json.loads(preset_editor.deepspeed_text(str(own), "bf16"))
    assert (made["bf16"]["enabled"], made["fp16"]["enabled"]) == (True, False)
    assert made["zero_optimization"]["overlap_comm"] is True
    own.write_text('{"fp16": {"enabled": true}}')
    with pytest.raises(InputWrong, match=r"mine.json has fp16 on, the recipe trains in bf16: make them equal"):
        preset_editor.deepspeed_text(str(own), "bf16")
    for text in ("[]", "{", '{"fp16": true}'):
        own.write_text(text)
        with pytest.raises(InputWrong, match=r"mine.json is not a DeepSpeed configuration"):
            preset_editor.deepspeed_text(str(own), "fp16")


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"])
def test_zero_1_and_2_do_not_sum_gradients_while_they_are_made(stage):
    name = f"deepspeed_{stage}"
    shipped = json.loads(preset_editor.deepspeed_text(name, ""))
    made = json.loads(preset_editor.deepspeed_text(name, "fp32"))
    assert shipped["zero_optimization"]["overlap_comm"] is True
    assert made["zero_optimization"]["overlap_comm"] == ("zero3" in stage)
    for found in (shipped, made):
        for part in ("fp16", "bf16"):
            del found[part]["enabled"]
        del found["zero_optimization"]["overlap_comm"]
    assert made == shipped
