"""Shows how much of a download has arrived."""

import contextlib
import time
from typing import Callable, Iterator, Optional

from recipe.core.translation import _


@contextlib.contextmanager
def transfer_progress() -> Iterator[Callable[[int, Optional[int]], None]]:
    """A function to call with the bytes that have arrived and their total, None if it is unknown. It draws a bar on a
    terminal; elsewhere it prints a line for every 5 %, after 5 s.
    """
    from rich import progress
    from rich.filesize import decimal

    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    bar = progress.Progress(progress.TextColumn("  " + _("fetching")), *columns, transient=True)
    began, first, printed, live = time.monotonic(), -1, 0, bar.console.is_terminal
    task = bar.add_task("", total=None)

    def show(now: int, total: Optional[int]) -> None:
        nonlocal first, printed
        first = now if first < 0 else first  # what an earlier command has left
        took = time.monotonic() - began
        if live:
            bar.update(task, completed=now, total=total)
        elif total and took > 5 and now * 20 // total > printed:
            printed = now * 20 // total
            rate = (now - first) / took
            line = _(
                "fetching {arrived} of {total}, {rate}/s, {left}",
                arrived=decimal(now),
                total=decimal(total),
                rate=decimal(int(rate)),
                left=_("{seconds:.0f} s left", seconds=(total - now) / rate) if rate else "",
            )
            print(f"  {line}", flush=True)

    with bar if live else contextlib.nullcontext():
        yield show
