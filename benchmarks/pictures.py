"""Makes the documents' pictures, docs/report.png and docs/web.png, from the finished demo in output/demo.

    ./justw demo
    ./justw screenshots [FOLDER OF THE RUN]

Needs chromium. It looks at the run as a user does: the report as a page, the web page through `just web`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from PIL import Image  # noqa: E402

from support.browser import browser  # noqa: E402
from support.chromium import chromium  # noqa: E402
from support.ports import free_port  # noqa: E402

COLOURS = 128


def save(picture: Path, name: str) -> None:
    """Save a screenshot as docs/`name`, with few colours."""
    with Image.open(str(picture)) as found:
        found.convert("RGB").quantize(COLOURS).save(str(ROOT / "docs" / name), optimize=True)


def picture_report(run: Path, folder: Path) -> None:
    """The upper part of the run's report."""
    picture, page = folder / "report.png", run / "report" / "index.html"
    chromium("--hide-scrollbars", "--window-size=1000,1760", f"--screenshot={picture}", f"file://{page}", folder=folder)
    save(picture, "report.png")


def picture_web(run: Path, folder: Path) -> None:
    """The web page with one question answered by both models."""
    question = json.loads((run / "samples.json").read_text(encoding="utf-8"))[1]["question"]
    port, log = free_port(), folder / "log"
    words = [sys.executable, "-u", "-m", "recipe", "web", str(run), f"port={port}"]
    with log.open("w") as stream:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        page = subprocess.Popen(
            words, cwd=str(ROOT), env={**os.environ, "PYTHONPATH": path}, stdout=stream, stderr=stream
        )
    try:
        while "Ctrl-C ends it" not in log.read_text():
            if page.poll() is not None:
                sys.exit(log.read_text())
            time.sleep(0.1)
        with browser(folder) as open_tab:
            tab = open_tab()
            tab.size(1080, 900)
            tab.go(f"http://127.0.0.1:{port}")
            tab.until("!!document.querySelector('textarea')")
            tab.click(question)
            busy = "document.querySelector('[aria-busy=true], [kind=primary]')"
            tab.until(f"!!document.querySelector('.turn') && !{busy}", seconds=600)
            tab.run("document.querySelector('section.main').scrollTo(0, 0)")
            time.sleep(1)
            tab.picture(folder / "web.png")
    finally:
        page.send_signal(signal.SIGTERM)
        page.wait()
    save(folder / "web.png", "web.png")


def main(run: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture_report(run, Path(folder))
        picture_web(run, Path(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "output" / "demo").resolve())
