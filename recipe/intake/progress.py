"""A progress bar for reading large files."""

import time
from typing import Any

DELAY = 2  # seconds before the bar appears


class Progress:
    """A bar on the terminal for anything that takes longer than DELAY."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.bar: Any = None
        self.name = ""

    def step(self, name: str, share: float) -> None:
        if self.bar is None:
            if time.monotonic() - self.began < DELAY:
                return
            from rich.console import Console
            from rich.progress import Progress as Bar

            self.bar = Bar(console=Console(stderr=True), transient=True)
            self.bar.start()
        if name != self.name:
            self.name, self.task = name, self.bar.add_task(name, total=1.0)
        self.bar.update(self.task, completed=share)

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
