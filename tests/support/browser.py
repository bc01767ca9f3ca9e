"""A headless Chromium, driven by its own protocol (DevTools) over the websocket client that the environment holds."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What a control is in Streamlit's page, of both variants.
CONTROLS = {
    "button": "button",
    "radio": "label[data-baseweb=radio]",
    "expander": ".streamlit-expanderHeader, [data-testid=stExpander] summary",
}


class Tab:
    """One tab. `asked` collects the addresses that its page requested, `said` what it wrote to the console."""

    def __init__(self, address):
        self._socket = websocket.create_connection(address, suppress_origin=True, timeout=60)
        self._number = 0
        self.asked, self.said = [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method, **parameters):
        """Send a command; its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, (method, message)
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method, values):
        if method == "Network.requestWillBeSent":
            self.asked.append(values["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.asked.append(values["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(values["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Log.entryAdded" and values["entry"]["level"] == "error":
            self.said.append(values["entry"]["text"] + " " + values["entry"].get("url", ""))

    def go(self, address):
        self.do("Page.navigate", url=address)
        self.until("document.readyState == 'complete'")

    def run(self, script):
        """The value of a JavaScript expression, a promise's result too."""
        done = self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in done, (script[:200], done["exceptionDetails"])
        return done["result"].get("value")

    def until(self, script, seconds=180):
        """Wait until an expression is true; its value."""
        deadline = time.time() + seconds
        while True:
            value = self.run(script)
            if value:
                return value
            assert time.time() < deadline, (script, self.run("document.body ? document.body.innerText : ''"), self.said)
            time.sleep(0.05)

    def click(self, name, role="button"):
        """Click the control of an accessible role whose text or label begins with `name`."""
        found = (
            f"[...document.querySelectorAll({json.dumps(CONTROLS[role])})].find(e => e.getClientRects().length && "
            f"(e.getAttribute('aria-label') || e.innerText).trim().startsWith({json.dumps(name)}))"
        )
        self.until(f"!!({found}) && !({found}).disabled")
        self.run(f"({found}).scrollIntoView({{block: 'center'}}); ({found}).click()")

    def type(self, text):
        """Into what has the focus."""
        self.do("Input.insertText", text=text)

    def key(self, name, code, text="", **more):
        for kind in ("keyDown", "keyUp"):
            shown = {"text": text} if text and kind == "keyDown" else {}
            self.do(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **shown, **more
            )

    def size(self, width, height, phone=False):
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def picture(self, path):
        Path(path).write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(folder, *words):
    """A function that opens a tab; Chromium ends with the block."""
    process = subprocess.Popen(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--no-first-run", "--remote-debugging-port=0", "--hide-scrollbars", f"--user-data-dir={folder}/profile",
         *words, "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = ""
        for line in process.stderr:
            if "DevTools listening on" in line:
                address = line.split("ws://")[1].split("/")[0]
                break

        def tab():
            asked = urllib.request.Request(f"http://{address}/json/new?about:blank", method="PUT")
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return Tab(json.load(answer)["webSocketDebuggerUrl"])

        yield tab
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
