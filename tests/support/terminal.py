"""A command at a terminal of its own."""

import os
import pty
import select
import signal
import time

from support.command import ROOT

WORDS = ("train", "tiny", "train.max_epochs=5", "train.evaluation_max_new_tokens=2")


def terminal(*words, **more):
    """Start a shell at a terminal of its own that runs `words` and then waits, as one left open does.
    Returns its process id and the terminal's other end.
    """
    child, end = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup just test` ignores it; a terminal's shell does not
        os.chdir(str(ROOT))
        line = " ".join(f"'{word}'" for word in words)
        variables = {**os.environ, "RUNTIME": "host", "NO_COLOR": "1", "TERM": "dumb", "DETACH": "300", **more}
        os.execvpe("bash", ["bash", "-c", f"{line}; echo code $?; sleep 600"], variables)
    return child, end


def read_until(end, word, seconds=200):
    said, until = "", time.time() + seconds
    while word not in said:
        ready = select.select([end], [], [], max(0, until - time.time()))[0]
        assert ready, said
        said += os.read(end, 65536).decode("utf-8", "replace")
    return said
