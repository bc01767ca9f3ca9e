"""Refusals of the command line in Chinese: no English sentence is left."""

import json
import re

import pytest

from recipe.cli import main as front
from recipe.cli import words as scripts
from recipe.core import data_source, overrides, translation
from recipe.core.errors import HostLacks, InputWrong, NotFetched, reason
from support.chinese import english
from support.command import ROOT, recipe, runner

REFUSED = {
    "plna": "没有 'plna' 这条命令。你是不是想输入 plan？运行 `just help` 查看全部。",
    "plan --foo": "plan 没有 --foo 这个选项。你是不是想输入 --force？运行 `just plan --help` 查看全部。",
    "plan --recipe": "--recipe 后面要写配方名。用法：just plan [OPTIONS] [RECIPE] [KEY=VALUE]...",
    "plan tiny --png": "--png 后面要写值。用法：just plan",
    "plan tiny --force=1": "plan：选项 '--force' 后面不能写值。",
    "plan tiny train.lr=1 train.lr=2": "train.lr 写了两次：train.lr=1 和 train.lr=2。保留一个。",
    "plan coach system=You are kind": '多余的词：are kind。含空格的文本要加引号：system="You are kind" 用法：',
    "export vlm tiny": "没有 vlm 这个目标。你是不是想输入 vllm？可选：gguf、lmdeploy、ollama、",
    "image bild": "没有 bild 这个动作。你是不是想输入 build？可选：",
    "export": "缺少 TARGET。用法：just export",
    "plan tiny train.lr＝1": "train.lr＝1：＝ 是中文输入法打出的全角符号，改成半角的 =。",
    "watch tiny train.lr=1": "train.lr=1：watch 不接受设置",
    "plan tinny": "没有配方 'tinny'。你是不是想输入 tiny？自带的有：coach、demo、tiny、tutorial；也可以写",
    "plan mine.toml": "没有配方文件 mine.toml。自带的配方：",
    "plan data/none.xlsx": "没有数据文件 data/none.xlsx。现有的文件（data）：",
    "plan nowhere/none.xlsx": "没有数据文件 nowhere/none.xlsx，也没有目录 nowhere。",
    "plan ./": ". 不能给运行命名。",
    "reproduce data/mine.xlsx": "这条命令用教程自己的表格重做教程。用你的表格训练：just merge data/mine.xlsx",
    "plan tiny train.lr=high": "覆盖项 train.lr=high：train.lr：应为数字（",
    "plan tiny train.epochs=3": "覆盖项 train.epochs=3：train.epochs：没有这个设置；你可能想写 train.max_epochs。",
    "plan tiny train.optimizer=3": "没有这个设置；它属于其他训练框架，这里没有对应的设置。",
    "plan tiny qqzz=3": "没有这个设置；可用的有 ",
    "plan tiny train.max_epochs=0": "train.max_epochs：不能小于 1（现在是 0）。",
    "plan tiny train.lr=2": "train.lr：不能大于 0.01（现在是 2）。",
    "plan tiny train.timeout=0.0": "train.timeout：应大于 0（现在是 0.0）。",
    "plan tiny train.speed=fats": "train.speed：应为以下之一：stock、fast、small、auto；你可能想写 fast（",
    "plan tiny train.guard=maybe": "train.guard：应为 true 或 false（现在是 'maybe'）。",
    "plan tiny data.files=[]": "data.files：至少要有 1 项",
    "plan tiny train.evaluation_freq=x": "train.evaluation_freq：应为整数，或应为数字（现在是 'x'）。",
    "plan tiny export.repo=mine": "export.repo：格式应为 ^",
    "plan tiny train=3": "train：",
    "plan tiny train.lr.x=3": "覆盖项",
    "plan tiny data.files=[1": "覆盖项 'data.files=[1'：值不是有效的 TOML（",
    "plan tiny data.files=~/a.xlsx": "这里的 ~ 不会展开。写成 /",
    "plan tiny =3": "覆盖项 '=3'：写成 key=value，例如 train.max_epochs=5。",
    "plan data/workplace.xlsx data.files=b.xlsx": "data/workplace.xlsx 和 data.files=b.xlsx：数据只写一处。",
    "plan tiny system=你是……": "data.system：'你是……' 只是占位的文字。",
    "plan tiny --output=": "--output= 是空的：写一个存放结果的目录。",
    "preview tiny first": "'first' 不是对话的编号。用法：just preview [recipe] [row]",
    "chat tiny model=best": "chat：'--model' 的值无效：'best' 不是 'base', 'adapter', 'merged' 之一。",
    "chat tiny": "tiny 中还没有训练结果，而 chat 自己不训练。可以和底座模型对话：model=base。训练命令：just merge tiny",
    "new mine": "new：缺少选项 '--from'。",
    "new tiny --from coach": "tiny 是自带的配方。换一个名字。",
    "new a.b --from coach": "'a.b' 不能作配方名：",
    "presets qwertz": "没有哪个预设的名称、系列、方法、模板或数据与 'qwertz' 相符。",
    "plan tiny train.dtype=fp32 train.method=qlora": '需要 train.method = "lora" 或 "full"',
    "plan tiny merge.weights=[1,2]": "merge.weights 有 2 个数，而适配器有 1 个",
    'plan tiny train.evaluation_inputs=[""]': "应为整数（现在是 ['']），或有一段文本为空（现在是 ''）。",
}


@pytest.fixture(autouse=True)
def chinese():
    with translation.use("zh"):
        yield


def test_what_counts_as_english():
    assert english("plan has no option")
    assert not english("`just plan --help`，train.lr=high，output/a b，'not one of these', just merge data/mine.xlsx")


@pytest.mark.parametrize("line", REFUSED)
def test_a_refusal_is_chinese(line, tmp_path, capsys):
    given = line.split(" ")
    output = [] if {"--output=", "image", "presets", "new"} & set(given) else ["--output", str(tmp_path / "out")]
    given[1:1] = output
    code = scripts.main(given)
    checked = capsys.readouterr().err
    done = runner().invoke(front.cli, given)
    assert done.exit_code == 2, done.output
    for said in (done.stderr, *[checked] * (code == 2)):
        assert not english(said), said
    assert REFUSED[line] in (checked if code == 2 else done.stderr)


def test_what_the_system_says():
    for error, said in (
        (OSError(28, "No space left on device", "output/x"), "磁盘空间不足"),
        (PermissionError(13, "Permission denied"), "没有权限"),
        (OSError("nothing that has a number"), "nothing that has a number"),
    ):
        assert reason(error) == said
    assert translation.stored(str(OSError(13, "Permission denied", "a b"))) == "没有权限（错误号 13）：'a b'"


def test_what_stops_a_command(tmp_path, monkeypatch):
    for error, code, said in (
        (OSError(28, "No space left on device", "output/x"), HostLacks.code, "磁盘空间不足：output/x。之前"),
        (NotFetched("model"), 75, "模型还没有下载：现在在能联网的容器里下载。"),
        (NotFetched("model", "visual encoder"), 75, "视觉编码器还没有下载："),
        (KeyboardInterrupt(), 130, "已停止：再运行同一条命令，会从最后一个检查点继续（如果有）。"),
        (KeyError("x"), 1, "出现意外错误：KeyError: 'x'。报告问题时附上详情："),
    ):

        def fails(*_given, error=error):
            raise error

        monkeypatch.setattr("recipe.cli.stages.load", fails)
        done = runner().invoke(front.cli, ["plan", "tiny", "--output", str(tmp_path)])
        assert done.exit_code == code
        assert said in done.stderr


def test_a_recipe_file_is_refused_by_line(tmp_path):
    path = tmp_path / "mine.toml"
    high = 'base = "x"\n[data]\nfiles = "a.xlsx"\n[train]\nlr = "high"\n'
    for text, said in (
        (high, f"{path} 第 5 行：train.lr：应为数字（现在是 'high'）。"),
        ("base = \n", f"{path} 不是有效的 TOML：无效的值（第 1 行第 8 列）。字符串加引号，列表加方括号。"),
        (b'base = "\xff"', f"无法读取配方文件 {path}：位置 8 的字节 0xff 不是 UTF-8（起始字节无效）。"),
    ):  # fmt: skip
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        done = runner().invoke(front.cli, ["plan", str(path), "--output", str(tmp_path)])
        assert (done.exit_code, done.stderr.startswith(said)) == (2, True), done.stderr
        assert not english(done.stderr)


def test_a_price_is_all_that_a_report_takes():
    for word, said in (
        ("train.lr=3", "train.lr=3：已完成的运行不能再改，报告只接受 plan.price_per_hour=…。"),
        ("plan.price_per_hour=x", "覆盖项 plan.price_per_hour=x：应为数字（现在是 'x'）。"),
    ):
        with pytest.raises(InputWrong) as caught:
            overrides.price([word])
        assert str(caught.value) == said


def test_a_folder_that_belongs_to_other_data_is_refused(tmp_path):
    data_source.remember(tmp_path / "out/workplace", {"data": "data/other.xlsx"})
    done = runner().invoke(front.cli, ["plan", "data/workplace.xlsx", "--output", str(tmp_path / "out")])
    assert f"{tmp_path}/out/workplace 里是 data/other.xlsx 的运行，不是 data/workplace.xlsx 的。" in done.stderr


def test_files_and_facts_for_programs_are_english(tmp_path, monkeypatch):
    from recipe.cli import presets

    facts = dict(scripts.facts("plan", ["tiny", "train.lr=1e-4"]))
    assert json.loads(facts["values"])["train"]["lr"] == 1e-4
    assert presets.as_tsv(presets.rows()) == (ROOT / "docs/presets.tsv").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    made = presets.write_recipe("mine", "internlm2_chat_7b_qlora_oasst1_e3").read_text(encoding="utf-8")
    assert made.isascii() or not re.search("[\u4e00-\u9fff]", made)


def test_the_language_is_that_of_the_environment():
    for given, said in (
        ({"RECIPE_LANG": "", "LC_ALL": "zh_CN.UTF-8"}, "没有配方"),
        ({"RECIPE_LANG": "en", "LC_ALL": "zh_CN.UTF-8"}, "There is no recipe"),
    ):
        assert said in recipe("plan", "nothing", **given).stderr
