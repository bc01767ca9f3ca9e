"""The web page in a real browser, under twenty sessions, and on a training under way."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import websocket
from filelock import FileLock

from recipe.core import files, translation
from recipe.core.errors import InputWrong
from recipe.core.run import Run
from recipe.reporting import pages, run_view
from recipe.web import inference_queue, live, shared
from support.browser import CHROMIUM, browser
from support.command import ROOT, recipe, refused
from support.ports import free_port

SESSIONS = 20


TOKENS = 24  # of an answer, under twenty sessions


TYPED = "这句话不应当写进任何日志，怎么减压？"


class Site:
    """The page of a copy of the demo's run, served by its own process (`address`, `log`). The run stays in the middle
    of its training until `finish` is called.
    """

    def __init__(self, made, place):
        self.folder, self.log = place / "tiny", place / "log"
        shutil.copytree(str(made), str(self.folder), ignore=shutil.ignore_patterns("*.pth", "merged", "report"))
        (self.curves,) = self.folder.glob("checkpoints/*/*/vis_data/scalars.json")
        self.manifest = self.folder / "run.json"
        self._whole = [(path, path.read_text(encoding="utf-8")) for path in (self.curves, self.manifest)]
        (self.folder / "adapter").rename(place / "adapter")
        whole = json.loads(self._whole[1][1])
        names = list(whole["stages"])
        some = {name: whole["stages"][name] for name in names[: names.index("model") + 1]}
        self.manifest.write_text(json.dumps({**whole, "stages": some}), encoding="utf-8")
        self.grow(200)
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}"

    def grow(self, iterations):
        lines = self._whole[0][1].splitlines(keepends=True)
        self.curves.write_text("".join(lines[:iterations]), encoding="utf-8")

    def finish(self):
        if not (self.folder / "adapter").exists():
            (self.folder.parent / "adapter").rename(self.folder / "adapter")
            for path, text in self._whole:
                files.write_text(path, text)

    def __enter__(self):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        environment.pop("WEB_TOKEN", None)
        command = [sys.executable, "-u", "-m", "recipe", "web", str(self.folder), f"port={self._port}"]
        with self.log.open("w") as stream:
            self._process = subprocess.Popen(command, cwd=str(ROOT), env=environment, stdout=stream, stderr=stream)
        deadline = time.time() + 120
        while "Ctrl-C ends it" not in self.log.read_text():
            assert self._process.poll() is None, self.log.read_text()
            assert time.time() < deadline, self.log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        try:
            assert self._process.wait(20) == 0
        finally:
            self._process.kill()


@pytest.fixture(scope="module")
def site(demo, tmp_path_factory):
    with Site(demo[1], tmp_path_factory.mktemp("web")) as made:
        yield made


@pytest.fixture(scope="module")
def axe():
    """axe-core's source: a package carries it (docker/locks/axe.in)."""
    return next(Path(os.environ["AXE"]).glob("*/axe.min.js")).read_text(encoding="utf-8")


def answered(tab, turns):
    tab.until(
        f"document.querySelectorAll('.turn').length == {turns}"
        " && !document.querySelector('[aria-busy=true], [kind=primary]')"
    )


def said(tab):
    """What stands in the boxes: base, tuned, base, tuned …"""
    return tab.run("[...document.querySelectorAll('.said')].map(e => e.textContent)")


def named(tab):
    """What the focus is on, as it is named."""
    return tab.run(
        "(e => e.getAttribute('aria-label') || e.closest('label')?.innerText || e.innerText || e.tagName)"
        "(document.activeElement).trim()"
    )


def accessible(tab, axe):
    """No fault that axe finds, colours included."""
    if not tab.run("!!window.axe"):
        tab.run(axe + ";1")
    tab.until(  # nothing is half faded in
        "document.getAnimations().every(a => a.playState != 'running' || a.effect.getTiming().iterations == Infinity)"
    )
    found = tab.run(
        "axe.run(document, {resultTypes: ['violations']})"
        ".then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html)]))"
    )
    assert found == []


def fits(tab):
    """Nothing reaches beyond the window. While the page is laid out something may: it gets half a minute."""
    tab.until("document.documentElement.scrollWidth <= innerWidth", 30)
    tab.until(
        "[...document.querySelectorAll('section.main *')].every("
        "e => e.getBoundingClientRect().right <= innerWidth + 1)",
        30,
    )


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt-get install chromium)")
def test_a_training_under_way_in_a_browser(site, axe, tmp_path):
    """It moves on by itself, in the same page, and the models are there once they are made."""
    with FileLock(str(site.folder / ".lock")), browser(tmp_path) as open_tab:
        tab = open_tab()
        tab.size(1280, 860)
        tab.go(site.address)
        tab.until("document.body.innerText.includes('There is no adapter model')")
        accessible(tab, axe)
        tab.click("Run", "radio")
        tab.until("document.body.innerText.includes('200 / 792')")
        tab.run("window.same = true")
        site.grow(450)
        tab.until("document.body.innerText.includes('450 / 792')")
        assert tab.run("document.body.innerText.includes('Training is running') && window.same")
        accessible(tab, axe)
        site.finish()
        tab.until("/Trained\\s+.*\\s*792 \\/ 792/s.test(document.body.innerText)")
        tab.click("Talk", "radio")
        tab.until("!!document.querySelector('textarea')")
        assert tab.said == []


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt-get install chromium)")
def test_in_a_browser(site, demo, axe, tmp_path):
    site.finish()
    address, log = site.address, site.log
    samples = json.loads((demo[1] / "samples.json").read_text(encoding="utf-8"))
    with browser(tmp_path) as open_tab:
        tab = open_tab()
        tab.size(1280, 860)
        tab.go(address)
        tab.until("!!document.querySelector('textarea')")
        # Every control is reached by Tab, in the order in which it is read.
        order = []
        for _ in range(12):
            tab.key("Tab", 9)
            if tab.run("document.activeElement.matches('section.main')"):  # the page itself, to scroll it by keys
                continue
            order.append(named(tab))
            if order[-1] == "Ask both models":
                break
        assert order == ["Talk", "English", "Parameters", *[s["question"] for s in samples], "Ask both models"]
        tab.click("Parameters", "expander")
        tab.until("document.querySelectorAll('input[type=number]').length == 4")
        accessible(tab, axe)

        # A sample with one click; words come one after the other; the answers are those of every other way to ask.
        tab.click(samples[0]["question"])
        lengths = set()
        while len(lengths) < 3:
            lengths.add(tab.until("document.querySelector('.said[aria-busy=true]')?.textContent.length"))
        accessible(tab, axe)
        answered(tab, 1)
        base, tuned = said(tab)
        assert tuned == samples[0]["merged"]
        assert base.startswith(pages.clean(samples[0]["base"])[:60])

        # A question that is typed; Enter that ends an input method's word does not send it, Enter does; then Stop.
        tab.run("document.querySelector('textarea').focus()")
        tab.type(TYPED)
        tab.key("Process", 229)
        tab.run(
            "document.querySelector('textarea').dispatchEvent(new KeyboardEvent('keydown', "
            "{key: 'Enter', keyCode: 13, isComposing: true, bubbles: true}))"
        )
        assert tab.run("document.querySelector('textarea').value") == TYPED
        tab.key("Enter", 13, "\r")
        tab.until("document.querySelector('.said[aria-busy=true]')?.textContent.length > 10")
        tab.click("Stop")
        answered(tab, 2)
        assert tab.run("[...document.querySelectorAll('.name small')].map(e => e.innerText)") == ["stopped"] * 2
        stopped = said(tab)[2]
        assert len(stopped) > 10
        assert named(tab) != "BODY"
        time.sleep(0.5)
        assert said(tab)[2] == stopped
        accessible(tab, axe)

        # The third question sees both turns; a click changes the language of all but what was said.
        tab.run("document.querySelector('textarea').focus()")
        tab.type("然后呢？")
        tab.key("Enter", 13, "\r")
        answered(tab, 3)
        before = said(tab)
        tab.click("中文", "radio")
        tab.until("document.documentElement.lang == 'zh-CN'")
        tab.until("[...document.querySelectorAll('button')].some(e => e.innerText == '新对话')")
        assert said(tab) == before
        assert tab.run("document.body.innerText.match(/\\b(Base|Tuned|Copy|stopped|You asked|Parameters)\\b/)") is None

        # Taken along: by the clipboard, and as a file.
        tab.run("navigator.clipboard.writeText = async text => { window.taken = text }")
        tab.click("复制")
        tab.until("document.querySelector('.copied').innerText == '已复制'")
        taken = tab.run("window.taken")
        assert TYPED in taken
        assert all(one in taken for one in before)
        tab.do("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        tab.click("下载")
        file, deadline = tmp_path / "conversation.json", time.time() + 30
        while not file.exists():
            assert time.time() < deadline
            time.sleep(0.05)
        kept = json.loads(file.read_text(encoding="utf-8"))
        assert [turn["question"] for turn in kept["turns"]] == [samples[0]["question"], TYPED, "然后呢？"]
        assert [
            pages.clean(turn[pane]) for turn in kept["turns"] for pane in inference_queue.PANES if pane in turn
        ] == [text for text in before if text]
        assert kept["system"] == "你是一位有心理学背景的职场教练。"

        # On a phone, every page; then the same in English.
        for width, names in ((390, ("对话", "训练", "数据")), (390, ("Talk", "Run", "Data")), (1280, ("Talk", "Run"))):
            tab.size(width, 844, phone=width == 390)
            if names[0] == "Talk":
                tab.click("English", "radio")
            for name, there in zip(names, (".turn", "figure svg", "iframe")):
                tab.click(name, "radio")
                tab.until(f"!!document.querySelector({json.dumps(there)}) && {json.dumps(name)} && "
                          f"!document.querySelector('[data-stale=true]') && "
                          f"!!document.querySelector('textarea') == {json.dumps(there == '.turn')}")  # fmt: skip
                fits(tab)
                accessible(tab, axe)
                tab.picture(tmp_path / f"{width}-{name}.png")
        assert tab.run("document.querySelectorAll('figure svg').length") == 4

        # Nothing was asked of another host, and nothing went wrong.
        assert {re.sub(r"^\w+://", "", url).split("/")[0] for url in tab.asked if not url.startswith("data:")} == {
            address.split("//")[1]
        }
        assert tab.said == []
        tab.click("Talk", "radio")
        tab.click("New chat")
        tab.click(samples[1]["question"])
        answered(tab, 1)
    written = log.read_text()
    for text in (TYPED, samples[0]["question"], samples[0]["merged"], "Traceback"):
        assert text not in written


class Session:
    """A tab without a browser: Streamlit's protocol over a websocket."""

    def __init__(self, address):
        from streamlit.proto.BackMsg_pb2 import BackMsg
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        self._back, self._forward = BackMsg, ForwardMsg
        place = address.replace("http", "ws") + "/_stcore/stream"
        self.socket = websocket.create_connection(
            place, subprotocols=["streamlit"], origin=address, timeout=120, enable_multithread=False
        )
        self.widgets, self.heard = {}, []
        self._send()
        self.until(lambda: "question" in self.widgets, finished=True)

    def _send(self, *states):
        message = self._back()
        message.rerun_script.query_string = ""
        for number, (name, kind, value) in enumerate(states):
            message.rerun_script.widget_states.widgets.add(id=self.widgets[name])
            state = message.rerun_script.widget_states.widgets[number]
            if kind == "string_trigger_value":
                state.string_trigger_value.data = value
            else:
                setattr(state, kind, value)
        self.socket.send_binary(message.SerializeToString())

    def until(self, wanted, finished=False):
        """Read messages until `wanted` is true, and the script has ended if it shall."""
        ended = False
        while not (wanted() and (ended or not finished)):
            message = self._forward()
            message.ParseFromString(self.socket.recv())
            kind = message.WhichOneof("type")
            ended = ended or kind == "script_finished"
            element = message.delta.new_element if kind == "delta" else None
            what = element.WhichOneof("type") if element is not None else None
            if what == "chat_input":
                self.widgets["question"] = element.chat_input.id
            elif what == "button" and element.button.label == "New chat":
                self.widgets["new"] = element.button.id
            elif what == "number_input":
                self.widgets[element.number_input.label] = element.number_input.id
            elif what == "markdown":
                self.heard.append(element.markdown.body)
            assert what != "exception", element

    def ask(self, question, tokens=TOKENS):
        limit = next(name for name in self.widgets if name.startswith(("Maximum", "回答")))
        self._send((limit, "double_value", tokens), ("question", "string_trigger_value", question))

    def press(self, name):
        self.heard = []
        self._send((name, "trigger_value", True))
        self.until(lambda: True, finished=True)

    def answers(self):
        """Both answers, once both are there."""
        found = []

        def whole():
            found[:] = [line for line in self.heard if 'class="turn"' in line and line.count('aria-busy="false"') == 2]
            return found

        self.until(whole)
        self.until(lambda: "new" in self.widgets, finished=True)
        return found[-1]


def test_a_slow_link_keeps_the_page(site):
    """A ping of the server's that waits for seconds ends nothing: this client answers when it next reads."""
    site.finish()
    session = Session(site.address)
    with contextlib.closing(session.socket):
        time.sleep(3)
        session.ask("慢一点也行。")
        assert "慢一点也行。" in session.answers()


def test_twenty_sessions(site):
    """Each gets the answers to its own question, in its turn, and the same as when it is alone."""
    site.finish()
    address, log = site.address, site.log
    questions = [f"第{n}个问题：工作太累了，怎么办？" for n in range(SESSIONS)]
    with contextlib.ExitStack() as stack:
        sessions = [Session(address) for _ in range(SESSIONS + 2)]
        for session in sessions:
            stack.callback(session.socket.close)
        gone = sessions[:2]  # two ask for much, and close their tabs
        for session in gone:
            session.ask("先走一步。", tokens=4096)
        gone[0].until(lambda: any("aria-busy" in line for line in gone[0].heard))
        for session, question in zip(sessions[2:], questions):
            session.ask(question)
        for session in gone:
            session.socket.close()
        heard = {}

        def read(session, question):
            heard[question] = session.answers()

        threads = [threading.Thread(target=read, args=pair) for pair in zip(sessions[2:], questions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        waited = [re.findall(r"Waiting: (\d+) ahead of you", "".join(session.heard)) for session in sessions[2:]]
        alone = {}  # the same again, one after the other
        for session, question in zip(sessions[2:], questions):
            session.press("new")
            session.ask(question)
            alone[question] = session.answers()
    assert len({re.sub(question, "", heard[question]) for question in questions}) > SESSIONS / 2
    for question in questions:
        boxes = re.findall(r'<div class="said"[^>]*>(.*?)</div>', heard[question])
        assert all(boxes)
        assert question in heard[question]
        assert heard[question] == alone[question]
    assert max(int(places[0]) for places in waited if places) > SESSIONS / 2
    assert all([int(n) for n in places] == sorted(map(int, places), reverse=True) for places in waited)
    assert "Traceback" not in log.read_text()


def test_one_set_of_weights_or_two(demo, capfd):
    """The adapter's own base answers for the base; the merged model needs the base beside it. Both say the same."""
    run = run_view.find_run("tiny", ROOT, demo[1].parent)
    question = "面试前特别紧张，怎么调整？"
    heard = {}
    for which in ("", "merged"):
        models = inference_queue.load(run, which)
        assert (models["base"].chat_model is models["tuned"].chat_model) == (which == "")
        for pane, model in models.items():
            with model.activate():
                heard[which, pane] = model.chat_model.answer("", [], question, limit=12).text
    assert heard["", "base"] == heard["merged", "base"] != heard["", "tuned"] == heard["merged", "tuned"]
    with pytest.raises(InputWrong, match="There is no adapter model"):
        inference_queue.load(Run("tiny", run.settings, ROOT, ROOT / "nowhere"), "adapter")
    assert question not in "".join(capfd.readouterr())


def test_refused_at_the_command_line(demo):
    """One clear error each; a busy port is named with another."""
    output = demo[1].parent
    refused(recipe("web", "tiny", "host=0.0.0.0", "--output", output, WEB_TOKEN=""), 2, "there is no token")
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        refused(recipe("web", "tiny", f"port={port}", "--output", output), 3, f"Port {port} of 127.0.0.1", "port=8502")
    refused(recipe("web", "nothing", "--output", output), 2, "There is no run 'nothing'")


# --- the run as it is now ---


def status(language):
    with translation.use(language):
        return live.run_status()


def test_the_run_as_it_is_now(demo, tmp_path, monkeypatch):
    """From a training under way to its end, in both languages; drawn anew only where something has changed."""
    folder = tmp_path / "tiny"
    shutil.copytree(str(demo[1]), str(folder), ignore=shutil.ignore_patterns("*.pth", "merged", "report"))
    path = folder / "run.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    names = list(whole["stages"])
    some = {name: whole["stages"][name] for name in names[: names.index("model") + 1]}
    path.write_text(json.dumps({**whole, "stages": some}), encoding="utf-8")
    (log,) = folder.glob("checkpoints/*/*/vis_data/scalars.json")
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(lines[:300]), encoding="utf-8")
    monkeypatch.setattr(live, "_drawn", {})
    shared.find_run = lambda: run_view.find_run(str(folder), ROOT, ROOT)
    monkeypatch.setattr(live.charts, "draw", lambda charts: [])  # in the browser they are seen
    with FileLock(str(folder / ".lock")):
        found = status("en")
        assert found.is_running
        for text in ("Training is running", "300 / 792", 'max="792" value="300"', "Time left"):
            assert text in found.blocks[0], text
        assert status("en") is found
        log.write_text("".join(lines[:301]), encoding="utf-8")
        assert "301 / 792" in status("en").blocks[0]
        assert "训练进行中" in status("zh").blocks[0]
    assert "Training was interrupted" in status("en").blocks[0]
    log.write_text("".join(lines), encoding="utf-8")
    path.write_text(json.dumps(whole), encoding="utf-8")
    done = status("en").blocks
    assert "Trained" in done[0]
    assert "at iteration 792" in "".join(done)
    assert all("\n" not in block for block in done)  # else Streamlit would read on
