"""Interrupted and resumed training against the uninterrupted one, byte for byte: just survive [kills] [seed] [words …]

Trains the demo once (2 epochs of 33 iterations) without a break, then once more and ends it by SIGKILL at `kills`
random moments (20), every fourth while a checkpoint is being written, every fifth by SIGTERM, and types the same
command again after each. The two adapters must have the same sha256. Further words are overrides, such as
train.deepspeed=deepspeed_zero2 (on a machine without a GPU with PYTHONPATH=tests/support/no_gpu and --force).
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, Sequence

ROOT = Path(__file__).resolve().parent.parent
# A checkpoint after every iteration: what is done is kept, and much of the time is spent writing.
WORDS = ("train.max_epochs=2", "train.save_steps=1", "train.evaluation_freq=0.5", "train.evaluation_max_new_tokens=2")


def start(output: Path, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "recipe", "train", "tiny", *WORDS, *words, "--output", str(output)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    log = (output / "log").open("ab")
    with log:
        return subprocess.Popen(command, cwd=str(ROOT), stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})


def finish(output: Path, words: Sequence[str]) -> str:
    """Run to the end; sha256 of the adapter's weights."""
    code = start(output, words).wait()
    assert code == 0, (output / "log").read_text(encoding="utf-8", errors="replace")[-3000:]
    return hashlib.sha256((output / "tiny" / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def iterations(output: Path) -> List[int]:
    """Of the checkpoints that are there."""
    return sorted(int(p.stem.split("_")[1]) for p in output.glob("tiny/checkpoints/*/iter_*"))


def interrupt(output: Path, words: Sequence[str], draw: random.Random, moment: str) -> int:
    """Start, and end it at a random time after its first new checkpoint; returns the newest iteration kept."""
    before = max(iterations(output), default=0)
    child = start(output, words)
    until = time.time() + 300
    while max(iterations(output), default=0) <= before and child.poll() is None and time.time() < until:
        time.sleep(0.005)
    time.sleep(draw.random() * 3)
    while moment == "writing" and child.poll() is None and not list(output.glob("tiny/checkpoints/*/.iter_*.part")):
        pass
    child.send_signal(signal.SIGTERM if moment == "SIGTERM" else signal.SIGKILL)
    code = child.wait()
    if moment == "SIGTERM":
        assert code == 0, code
    time.sleep(0.2)
    return max(iterations(output), default=0)


def main(kills: int = 20, seed: int = 0, words: Sequence[str] = ()) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        whole.mkdir()
        broken.mkdir()
        wanted = finish(whole, words)
        done, kept = 0, []
        while done < kills:
            moment = "SIGTERM" if done % 5 == 4 else "writing" if done % 4 == 3 else "any"
            if max(iterations(broken), default=0) >= 60:  # too near to the end: begin again
                assert finish(broken, words) == wanted
                subprocess.run(["rm", "-rf", str(broken)], check=True)
                broken.mkdir()
            kept.append(f"{interrupt(broken, words, draw, moment)} ({moment})")
            done += 1
        got = finish(broken, words)
        print(f"interrupted {done} times, after iteration {', '.join(kept)}")
        print(f"uninterrupted {wanted}\ninterrupted   {got}")
        if got != wanted:
            sys.exit("The adapters differ.")


if __name__ == "__main__":
    given = sys.argv[1:]
    numbers = [int(word) for word in given if word.isdigit()]
    main(*numbers[:2], words=[word for word in given if not word.isdigit()])
