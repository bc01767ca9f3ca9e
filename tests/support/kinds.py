"""Data sets of plain texts and of conversations with tools."""

import json

from recipe.core import settings
from recipe.core.run import Run
from recipe.stages import data
from support.command import ROOT

SAID = [
    {
        "from": "system",
        "value": '可用的工具：{"name": "weather", "description": "查天气", "paths": [{"parameters": [{"name": "city", '
        '"description": "城市"}]}]}',
    },
    {"from": "user", "value": "北京今天的天气？"},
    {
        "from": "assistant",
        "value": '我查一下。<|startofthink|>```JSON\n{"api_name": "weather", "parameters": {"city": "北京"}}```'
        '<|endofthink|><|startofexec|>```JSON\n{"weather": "晴"}```<|endofexec|>今天晴。',
    },
    {"from": "user", "value": "谢谢"},
    {"from": "assistant", "value": "不客气。"},
]


def run_of(tmp_path, kind, files, **more):
    _, found = settings.load("tiny", [f"data.kind={kind}", f"data.files={json.dumps(files)}", "data.eval_share=0"])
    for key, value in more.items():
        found = settings.replace(found, key.replace("__", "."), value)
    run = Run("tiny", found, ROOT, tmp_path / "output")
    run.folder.mkdir(parents=True, exist_ok=True)
    return run


def read(run):
    figures = data.make(run, run.folder)
    return figures, [json.loads(line)["conversation"] for line in run.dataset.read_text("utf-8").splitlines()]
