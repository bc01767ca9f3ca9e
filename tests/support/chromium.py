"""Pages in a headless Chromium, from its command line."""

import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def chromium(*words, folder):
    return subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         f"--user-data-dir={folder}/profile", *map(str, words)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
