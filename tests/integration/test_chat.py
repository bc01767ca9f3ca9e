"""Talking to the models: at a terminal, which a pseudo-terminal stands in for, and through a pipe."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from recipe.core import settings
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.run import Run
from recipe.inference import chat_model, loading
from recipe.inference import terminal as chat
from support.command import ROOT, recipe, refused

QUESTION = "面试前特别紧张，怎么调整？"


@pytest.fixture(scope="module")
def run(demo):
    run = Run("tiny", settings.load("tiny")[1], ROOT, demo[1].parent)
    with run.open():
        run.use_trained_settings()
    return run


@pytest.fixture(scope="module")
def answered(demo):
    """What the merged model says to QUESTION."""
    samples = json.loads((demo[1] / "samples.json").read_text(encoding="utf-8"))
    return next(sample["merged"] for sample in samples if sample["question"] == QUESTION)


class Terminal:
    """`python -m recipe chat …` on a terminal of its own."""

    def __init__(self, *words):
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.pid, self.file = pty.fork()
        if not self.pid:
            os.chdir(str(ROOT))
            environment = {**os.environ, "PYTHONPATH": paths, "TERM": "dumb", "LANG": "C.UTF-8", "NO_COLOR": "1"}
            os.execve(sys.executable, [sys.executable, "-m", "recipe", "chat", *map(str, words)], environment)
        self.seen = b""

    def until(self, pattern, seconds=90):
        """What came up to and with `pattern`."""
        deadline = time.time() + seconds
        while not re.search(pattern, self.seen.decode("utf-8", "replace")):
            assert time.time() < deadline, self.seen.decode("utf-8", "replace")
            if select.select([self.file], [], [], 1)[0]:
                self.seen += os.read(self.file, 4096)
        said, self.seen = self.seen.decode("utf-8", "replace"), b""
        return said

    def type(self, line):
        os.write(self.file, line.encode("utf-8"))

    def interrupt(self):
        """Ctrl-C, and what came until the next line was taken.

        Python's readline misses a signal between prompt and waiting, for which no hand is quick enough; then the next
        line is lost to it.
        """
        self.type("\x03")
        time.sleep(0.3)
        self.type("/x\n")
        said = self.until(r"\n> $")
        self.type("/y\n")
        return said + self.until(r"/y is not a command[^>]*\n> $")

    def end(self):
        """Its exit code, after Ctrl-D."""
        self.type("\x04")
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.file)
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)

    def kill(self):
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except OSError:
            pass  # it has ended


@pytest.fixture
def terminal():
    started = []

    def start(*words):
        started.append(Terminal(*words))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_a_conversation_at_a_terminal(terminal, demo, run, tmp_path):
    """The base, whose answers are long: Ctrl-C ends its answer, and what was said can be edited and kept."""
    at = terminal("tiny", "model=base", "--output", demo[1].parent)
    said = at.until(r"\n> $")
    assert "base model of tiny, fp32 on cpu" in said
    assert "iterations" not in said
    for _ in range(5):  # so small a model may be quicker than the key
        at.type("你好\n")
        at.until(r"你好\r\n.*?\w{4}")  # it has begun to answer
        if "(stopped; /undo removes it)" in at.interrupt():
            break
        at.type("/clear\n")
        at.until(r"a new conversation[^>]*\n> $")
    else:
        pytest.fail("Ctrl-C stopped none of five answers")
    at.type("not this")
    at.interrupt()  # at the prompt: takes the line back, and does not end the program
    at.type("/system\n")
    assert f"({run.settings.data.system})" in at.until(r"\n> $")
    at.type(f"/save {tmp_path / 'said.jsonl'}\n")
    assert "(1 turn saved to " in at.until(r"\n> $")
    first, *_ = json.loads((tmp_path / "said.jsonl").read_text(encoding="utf-8"))["conversation"]
    assert (first["system"], first["input"]) == (run.settings.data.system, "你好")
    assert len(first["output"]) >= 4
    at.type(f"/save {tmp_path / 'said.jsonl'}\n")
    assert "exists" in at.until(r"\n> $")
    at.type("/undo\n")
    assert "(removed: 你好)" in at.until(r"\n> $")
    at.type("\x1b[A\n")  # arrow up: what was typed last
    assert "There is no question yet." in at.until(r"\n> $")
    at.type("/nothing\n")
    assert "/nothing is not a command. Commands: /undo, /retry, /clear, /system, /save, /help" in at.until(r"\n> $")
    at.type("/help\n")
    assert "Ctrl-C" in at.until(r"\n> $")
    assert at.end() == 0


@pytest.mark.skipif(not shutil.which("just"), reason="just is not on the PATH: start the tests through it")
def test_a_pipe_gets_answers_alone(demo, answered):
    """As it is typed: through just and the runtime; each line a question by itself."""
    done = subprocess.run(
        ["just", "chat", "tiny", "--output", str(demo[1].parent)], cwd=str(ROOT), input=f"{QUESTION}\n\n{QUESTION}\n",
        env={**os.environ, "RUNTIME": "host"}, capture_output=True, text=True,
        encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [answered, answered]


def test_the_adapter_on_its_base_says_what_the_merged_model_says(run, answered, capsys):
    chat.talk(run, QUESTION, "adapter")
    assert capsys.readouterr().out.strip() == answered


def test_turns_and_commands(run, capsys):
    """History reaches the model, /retry draws another answer, /system changes what it is told."""
    model = chat_model.ChatModel(run.merged, chat.template(run))
    asked = []
    told = model.prompt
    model.prompt = lambda system, turns, question: (
        asked.append((system, list(turns), question)) or told(system, turns, question)
    )
    talk = chat.Conversation(model, "甲")
    talk.handle("早")
    talk.handle("然后呢？")
    (_, first), (_, second) = talk.turns
    assert asked[-1] == ("甲", [("早", first)], "然后呢？")
    drawn = set()
    for _ in range(3):
        talk.handle("/retry")
        assert asked[-1] == ("甲", [("早", first)], "然后呢？")
        drawn.add(talk.turns[1][1])
    assert len(talk.turns) == 2
    assert drawn != {second}
    talk.handle("/undo")
    assert talk.turns == [("早", first)]
    talk.handle("/system 乙")
    talk.handle("/clear")
    talk.handle("早")
    assert asked[-1] == ("乙", [], "早")
    talk.handle("/clear")
    for line, said in (
        ("/undo", "There is no question"),
        ("/retry", "There is no question"),
        ("/save x", "give a file name"),
    ):
        with pytest.raises(InputWrong, match=said):
            talk.handle(line)
    # More than the model has positions for: the first turns go.
    model.model.config.max_position_embeddings = 400
    long = [(f"问{number}", "答" * 20) for number in range(20)]
    kept = model.fit_history("甲", long, "早", 100)
    assert 0 < len(kept) < 20
    assert kept == long[-len(kept) :]
    assert len(model.tokenizer(told("甲", kept, "早"))["input_ids"]) <= 300
    assert len(model.tokenizer(told("甲", long[-len(kept) - 1 :], "早"))["input_ids"]) > 300
    capsys.readouterr()


def test_which_model_is_meant(run, tmp_path):
    assert loading.find_model(run)[:3] == ("merged", run.merged, None)
    assert loading.find_model(run, "adapter").adapter == run.adapter
    assert loading.find_model(run, "base").folder.name.startswith("tiny-internlm2-")
    stages = {name: dict(entry) for name, entry in run.manifest["stages"].items()}
    stages["adapter"]["finished"] = "2999-01-01T00:00:00+0000"  # trained again since it was merged
    newer = Run("tiny", run.settings, run.root, run.output, manifest={"stages": stages})
    assert loading.find_model(newer).kind == "adapter"
    with pytest.raises(InputWrong, match=r"no adapter model .* just train tiny"):
        loading.find_model(Run("tiny", run.settings, run.root, tmp_path))
    done = recipe("chat", "tiny", "model=best", "--output", run.output)
    refused(done, 2, "--model", "'best'", "base", "adapter", "merged")


def test_precision_by_what_fits(run, monkeypatch, tmp_path):
    """On a GPU 16 bits, 4 if 16 do not fit, else an error; on the CPU fp32, or bf16 if memory is short."""
    import torch

    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}', encoding="utf-8")
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.truncate(15_500_000_000)  # a file of nothing, as long as the 7B model's weights
    assert loading.choose_precision(run.merged) == "fp32"
    for free, kind in ((64e9, "fp32"), (20e9, "bf16")):
        monkeypatch.setattr(loading, "available_memory", lambda free=free: free)
        assert loading.choose_precision(tmp_path) == kind
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for free, new, kind in ((24e9, True, "bf16"), (24e9, False, "fp16"), (16e9, True, "nf4"), (8e9, True, "nf4")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (int(free), 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda new=new: (8, 0) if new else (7, 5))
        assert loading.choose_precision(tmp_path) == kind
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(6e9), 0))
    with pytest.raises(HostLacks, match=r"even in 4 bits, but 6\.0 GB are free"):
        loading.choose_precision(tmp_path)
