"""InternLM2 is loaded with our code: whatever a hub's folder holds beside it is never run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipe.base_model import architecture, model_code
from recipe.core import settings
from recipe.xtuner import config
from support.command import ROOT, recipe
from support.hub_checks import AT_HUGGING_FACE
from support.hub_code import TODAY

# On a CPU, with data that are here, and short: what coach.toml says of model and learning stays.
SMALL = (
    *('data.files=["data/workplace.xlsx"]', 'data.url=""', 'data.sha256=""', "train.method=lora", "train.dtype=fp32"),
    *("train.speed=stock", 'train.deepspeed=""', "train.max_length=256", "train.max_epochs=1", "train.save_steps=0.9"),
    *("train.evaluation_max_new_tokens=4", 'train.evaluation_inputs=["怎么办？"]', "lora.r=4"),
)


TODAYS_TOKENIZER = {"add_bos_token": True, "add_eos_token": False, "decode_with_prefix_space": False}


def todays(files, bomb):
    """The files of a hub's folder as they are today: newer imports, newer keys, and code that must not run."""
    armed = f"open({str(bomb)!r}, 'w').write('the code of the hub ran')\n"
    newer = "from transformers.cache_utils import Cache, DynamicCache, StaticCache\n"
    settings = json.loads(files["config.json"])
    settings["auto_map"]["AutoModelForSequenceClassification"] = "modeling_internlm2.InternLM2ForSequenceClassification"
    tokenizer = json.loads(files["tokenizer_config.json"])
    tokenizer["auto_map"] = {
        "AutoTokenizer": [
            "tokenization_internlm2.InternLM2Tokenizer",
            "tokenization_internlm2_fast.InternLM2TokenizerFast",
        ]
    }
    code = {f"{name}.py": (armed + newer).encode() for name in (*architecture.CODE, "tokenization_internlm2_fast")}
    return {
        **files,
        **code,
        "config.json": json.dumps({**settings, **TODAY}).encode(),
        "tokenizer_config.json": json.dumps({**tokenizer, **TODAYS_TOKENIZER}).encode(),
    }


@pytest.fixture
def bomb(tmp_path):
    return tmp_path / "ran"


@pytest.fixture
def folder(tiny, tmp_path, bomb):
    """A base folder with today's code and keys."""
    place = tmp_path / "hub" / "internlm2-chat-7b"
    place.mkdir(parents=True)
    for name, body in todays(tiny, bomb).items():
        (place / name).write_bytes(body)
    return place


def test_the_bomb_would_go_off(folder, bomb):
    """By transformers' own way, which every stage took before."""
    load = f"AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True)"
    code = f"from transformers import AutoTokenizer; {load}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(ROOT))
    assert "StaticCache" in done.stderr
    assert bomb.is_file()


def test_train_with_nothing_set(server, tiny, tmp_path, bomb):
    """ModelScope's default model, in today's layout; then the merge and the evaluation, by the merged folder."""
    done, base = train("merge", server, todays(tiny, bomb), tmp_path)
    assert "loaded with this project's code" in done.stdout
    figures = json.loads((tmp_path / "output/coach/run.json").read_text())["stages"]["model"]["figures"]
    assert (figures["code"], figures["listed_by"]) == ("this project's", "its client")
    assert (figures["source"], figures["revision"]) == ("modelscope", "master")
    assert "eval " in done.stdout
    check_merged(tmp_path / "output/coach/merged", base)
    assert not bomb.exists()


def test_train_from_hugging_face_takes_the_pinned_commit(server, tiny, tmp_path, bomb):
    """Where the code alone is newer than this stack; named by nothing but the hub."""
    chosen = settings.load("coach", [AT_HUGGING_FACE])[1].model
    assert (chosen.id, chosen.revision) == ("internlm/internlm2-chat-7b", "5b50661e5ba16c9ded1047a51e394280b3b9bda1")
    files = todays(tiny, bomb)
    files.update({name: tiny[name] for name in ("config.json", "tokenizer_config.json")})
    server.names.update({chosen.revision: 1})
    train("train", server, files, tmp_path, AT_HUGGING_FACE)
    figures = json.loads((tmp_path / "output/coach/run.json").read_text())["stages"]["model"]["figures"]
    assert (figures["source"], figures["revision"]) == ("huggingface", chosen.revision)
    assert not bomb.exists()


def train(command, server, files, tmp_path, *overrides):
    """(the finished `just` COMMAND coach, the base's folder), with `files` at the hub as the recipe's model."""
    server.id = settings.load("coach", overrides)[1].model.id
    server.push(files, "master")
    (tmp_path / "data").symlink_to(ROOT / "data")
    done = recipe(command, "coach", *SMALL, *overrides, "--force", cwd=tmp_path, RECIPE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    base = tmp_path / "models" / server.id
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == files  # beside, untouched
    return done, base


def check_merged(merged, base):
    """The merged folder holds our code, named in its settings, and keeps everything else of the base's settings."""
    assert {path.name for path in merged.glob("*.py")} == {f"{name}.py" for name in architecture.CODE}
    for path in model_code.FILES:
        assert (merged / path.name).read_bytes() == path.read_bytes()
    after, before = (json.loads((place / "config.json").read_text()) for place in (merged, base))
    assert after["auto_map"] == architecture.AUTO_MAP
    assert (after["architectures"], after["model_type"]) == (["InternLM2ForCausalLM"], "internlm2")
    assert {key: value for key, value in after.items() if key != "auto_map"} == {
        key: value for key, value in before.items() if key != "auto_map"
    }
    told = json.loads((merged / "tokenizer_config.json").read_text())
    assert told["auto_map"] == architecture.TOKENIZER_MAP
    assert set(TODAYS_TOKENIZER) <= set(told)


def test_newer_keys_change_no_logit(folder, run_of_demo, bomb):
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        one, other = (model_code.load_model(place).eval()(ids).logits for place in (folder, run_of_demo))
    assert torch.equal(one, other)
    assert not bomb.exists()


def test_bare_xtuner_train_loads_our_code(folder, tmp_path, bomb):
    """`xtuner train` alone runs the tutorial's rendered config, which names none of our hooks."""
    rows = [{"conversation": [{"system": "甲", "input": "压力很大", "output": "先深呼吸。"}]} for _ in range(8)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False))
    overrides = ("train.method=lora", "train.dtype=fp32", "train.max_length=64", "train.batch_size=1", "lora.r=2")
    more = ("train.max_epochs=1", "train.map_num_proc=1", "train.warmup_ratio=0.5", "train.evaluation_inputs=['嗨']")
    limit = "train.evaluation_max_new_tokens=2"
    _, chosen = settings.load("tutorial", [*overrides, *more, limit])
    text = config.render(chosen, str(folder), str(tmp_path / "rows.json"), {})
    assert "trust_remote_code" not in text
    (tmp_path / "config.py").write_text(text)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # what docker/runtime/host puts beside, too
    done = subprocess.run(
        [str(Path(sys.executable).with_name("xtuner")), "train", str(tmp_path / "config.py"), "--work-dir", "work"],
        cwd=str(tmp_path), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert list((tmp_path / "work").glob("*.pth")), done.stdout[-3000:] + done.stderr[-3000:]
    assert "dispatch internlm2 attn forward" in done.stdout + done.stderr
    assert "replace internlm2 rope" in done.stdout + done.stderr
    assert not bomb.exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_holds_code_is_not_run(tiny, tmp_path, bomb):
    """Weights as .bin are pickles; transformers 4.36 loads them with what they call."""
    place = tmp_path / "model"
    place.mkdir()
    for name, body in tiny.items():
        if "safetensors" not in name:
            (place / name).write_bytes(body)
    torch.save({"model.norm.weight": Bomb(str(bomb))}, str(place / "pytorch_model.bin"))
    with pytest.raises(Exception, match=r"pytorch_model\.bin"):
        model_code.load_model(place)
    assert not bomb.exists()
