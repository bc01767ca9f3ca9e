"""Training by two processes, on one machine and on two: just ranks [same] [zero] [resumed] [machines]

All of it is the demo recipe on a CPU that answers calls to the card (tests/support/no_gpu). Two machines are two
network namespaces joined by a virtual cable (as root; else two commands on one machine).

  same      one rank and two learn the same but for rounding, by ZeRO-2 and without DeepSpeed, stock and fast
  zero      ZeRO-2, ZeRO-3, with offloading: the same adapter but for rounding
  resumed   killed and resumed, ZeRO-2 and ZeRO-3: the same bytes
  machines  two machines, one killed, a cable pulled: what the other says and when; typed again: the bytes of one host
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence

ROOT = Path(__file__).resolve().parent.parent
# What one rank would do in two iterations an update, two do in one; a checkpoint after each.
WORDS = (
    *("train.accumulative_counts=2", "train.max_epochs=2", "train.save_steps=1", "train.evaluation_freq=1000"),
    *("train.evaluation_max_new_tokens=2", "--force"),
)
ZERO2 = "train.deepspeed=deepspeed_zero2"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# An nvidia-smi with two cards.
STUB = """#!/bin/sh
for card in 0 1; do echo "$card, GPU-$card, Stub, 24576, 24000, 550.54.14, Default, [N/A], 8.6"; done
"""


def last_of_each(*words: str) -> List[str]:
    """The words without settings that are given again later, which the command line refuses."""
    return list({word.partition("=")[0]: word for word in words}.values())


def environment(folder: Path, **more: str) -> Dict[str, str]:
    """For a machine with two cards whose work the CPU does."""
    stub = folder / "nvidia-smi"
    stub.write_text(STUB)
    stub.chmod(0o755)
    paths = [str(ROOT), str(ROOT / "tests" / "support" / "no_gpu"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Machine:
    """Where a command runs: this machine, or one of `machines`."""

    def __init__(self, rank: int, inside: Sequence[str] = (), address: str = "127.0.0.1", device: str = "lo") -> None:
        self.inside, self.device = list(inside), device
        self.more = {"NODE_RANK": str(rank), "MASTER_ADDR": address, "GLOO_SOCKET_IFNAME": device}

    def start(self, output: Path, *words: str, name: str = "log") -> "subprocess.Popen[bytes]":
        """`recipe train tiny` into `output`; what it says comes into its file `name`."""
        output.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "recipe",
            "train",
            "tiny",
            *last_of_each(*WORDS, *words),
            "--output",
            str(output),
        ]
        with (output / name).open("wb") as log:
            return subprocess.Popen(
                [*self.inside, *command], cwd=str(ROOT), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=environment(output, **self.more),
            )  # fmt: skip


def may(inside: Sequence[str]) -> bool:
    """Whether this machine lets us run something so."""
    return subprocess.run([*inside, "true"], capture_output=True).returncode == 0


@contextlib.contextmanager
def machines() -> Iterator[List[Machine]]:
    """Two: each in a network namespace of its own, which sees the other through a cable."""
    names = [f"recipe{os.getpid()}{side}" for side in "ab"]
    made = [subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0 for name in names]
    if not all(made):  # no root, or no ip
        from recipe.core.distributed import free_port

        both = [Machine(rank) for rank in (0, 1)]
        port = str(free_port())
        for machine in both:
            machine.more["MASTER_PORT"] = port
        yield both
        return
    try:
        cable = ["link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1]]
        subprocess.run(["ip", *cable], check=True)
        for name, address in zip(names, ADDRESSES):
            for words in (f"addr add {address}/24 dev cable", "link set cable up", "link set lo up"):
                subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield [Machine(rank, ["ip", "netns", "exec", name], ADDRESSES[0], "cable") for rank, name in enumerate(names)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=True)


def iterations(output: Path) -> List[int]:
    """Of the checkpoints that are there."""
    return sorted(int(path.stem.split("_")[1]) for path in output.glob("tiny/checkpoints/*/iter_*"))


def until(done: Any, child: "subprocess.Popen[bytes]", seconds: float = 300) -> None:
    """Wait for `done()` while `child` runs."""
    last = time.time() + seconds
    while not done() and child.poll() is None and time.time() < last:
        time.sleep(0.02)


def said(output: Path, name: str = "log") -> str:
    return (output / name).read_text(encoding="utf-8", errors="replace")


def finished(child: "subprocess.Popen[bytes]", output: Path) -> str:
    """sha256 of the adapter that `child` made."""
    assert child.wait(timeout=600) == 0, said(output)[-3000:]
    return hashlib.sha256(adapter(output).read_bytes()).hexdigest()


def adapter(output: Path) -> Path:
    return output / "tiny" / "adapter" / "adapter_model.safetensors"


def family(pid: int) -> List[int]:
    """The processes that `pid` started, and those that they did."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [one for child in map(int, found) for one in (child, *family(child))]


def alive(pids: Sequence[int]) -> List[int]:
    """Those of `pids` that still run after a second or two; what only waits for its parent to look does not."""
    last = time.time() + 5
    while True:
        states = {pid: _state(pid) for pid in pids}
        running = [pid for pid, state in states.items() if state not in ("", "Z")]
        if not running or time.time() > last:
            return running
        time.sleep(0.1)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def far(one: Path, other: Path) -> str:
    """How far two adapters are apart: the largest difference and the largest value."""
    from safetensors.numpy import load_file

    first, second = load_file(str(adapter(one))), load_file(str(adapter(other)))
    assert first.keys() == second.keys()
    most = max(float(abs(first[name] - second[name]).max()) for name in first)
    size = max(float(abs(tensor).max()) for tensor in first.values())
    return f"largest difference {most:.2g} of {size:.2g}"


def run(folder: Path, label: str, *words: str) -> str:
    """Train on this machine into folder/label; sha256 of the adapter."""
    began = time.time()
    digest = finished(Machine(0).start(folder / label, *words), folder / label)
    print(f"{label:15} sha256 {digest[:16]}  {time.time() - began:4.0f} s", flush=True)
    return digest


def one_and_two(folder: Path) -> None:
    """One rank that accumulates over two packs, and two ranks that take one each. At a fixed rate: mmengine's schedules
    count iterations, of which two ranks make half as many. 66 packs, so that no rank sees one twice; no dropout.
    """
    words = ("train.max_length=128", "lora.lora_dropout=0.0", "train.lr=1e-3", "train.save_steps=1000", "--force")
    kinds = {
        "without DeepSpeed": (), "ZeRO-2": (ZERO2,), "fast, ZeRO-2": (ZERO2, "train.speed=fast"),
        "least memory": ("train.speed=small", "train.method=lora"),
    }  # fmt: skip
    for kind, engine in kinds.items():
        found = []
        for gpus in (1, 2):
            output = folder / f"{kind}-{gpus}"
            program = [
                sys.executable,
                __file__,
                "fixed",
                str(output),
                f"gpus={gpus}",
                *last_of_each(*engine, *WORDS, *words),
            ]
            output.mkdir()
            done = subprocess.run(program, env=environment(output), cwd=str(ROOT), capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
            found.append({name: read().numpy() for name, read in _tensors(output).items()})
        most = max(float(abs(found[0][name] - found[1][name]).max()) for name in found[0])
        size = max(float(abs(tensor).max()) for tensor in found[0].values())
        print(f"one rank and two, {kind}: largest difference {most:.2g} of {size:.2g}", flush=True)
        assert most < 1e-3 * size


def fixed(output: Path, overrides: Sequence[str]) -> None:
    """The stages up to the config, its schedules taken out, and the trainer."""
    from recipe.core import settings
    from recipe.core.run import Run
    from recipe.stages import pipeline, train

    words = [word for word in overrides if word != "--force"]
    made = Run("tiny", settings.load("tiny", words)[1], ROOT, output, force=True)
    with made.open():
        pipeline.run_stages(made, "config", pipeline.ORDER[:5])
        text = made.config.read_text(encoding="utf-8")
        start = text.index("param_scheduler = [")
        end = text.index("\n]\n", start) + 3
        made.config.write_text(text[:start] + "param_scheduler = None\n" + text[end:], encoding="utf-8")
        train.make(made, output)


def _tensors(output: Path) -> Dict[str, Any]:
    from recipe.training import checkpoints
    from recipe.weights import checkpoint_reader

    checkpoint = checkpoints.last_checkpoint(next(output.glob("tiny/checkpoints/*")))
    assert checkpoint
    return checkpoint_reader.lora_tensors(checkpoint)


def stages_of_zero(folder: Path) -> None:
    """ZeRO-2 and 3, with offloading: the same schedule and first weights, so the same adapter but for rounding."""
    exact = ("adapter.dtype=fp32", "lora.lora_dropout=0.0", "gpus=2")
    for label in ("zero2", "zero3", "zero2_offload", "zero3_offload"):
        run(folder, label, *exact, f"train.deepspeed=deepspeed_{label}")
        if label != "zero2":
            print(f"  against ZeRO-2: {far(folder / 'zero2', folder / label)}", flush=True)


def resumed(folder: Path) -> None:
    """Ended by SIGKILL, then by SIGTERM, and typed again: the same bytes."""
    for stage in ("zero2", "zero3"):
        words = ("gpus=2", f"train.deepspeed=deepspeed_{stage}")
        wanted = run(folder, f"whole-{stage}", *words)
        output, at = folder / f"killed-{stage}", []
        for moment in (signal.SIGKILL, signal.SIGTERM):
            before = max(iterations(output), default=0)
            child = Machine(0).start(output, *words)
            until(lambda b=before, o=output: max(iterations(o), default=0) > b + 2, child)
            started = family(child.pid)
            child.send_signal(moment)
            code = child.wait()
            assert code == (0 if moment == signal.SIGTERM else -9), said(output)
            assert not alive(started)
            at.append(f"{moment.name} at {max(iterations(output))}")
        assert finished(Machine(0).start(output, *words), output) == wanted
        print(f"  {', '.join(at)}, resumed: the same bytes", flush=True)


def two_machines(folder: Path) -> None:
    """Killed, and a cable pulled: what the other says, and when."""
    words = ("nodes=2", ZERO2, "train.timeout=1.5")
    wanted = finished(Machine(0).start(folder / "host", "gpus=2", ZERO2), folder / "host")
    for fault in ("first killed", "second killed", "cable pulled"):
        output = folder / fault.replace(" ", "-")
        with machines() as both:
            if fault == "cable pulled" and not both[0].inside:
                print(f"{fault}: not tried, this machine allows no network namespace")
                continue
            children = [machine.start(output, *words, name=f"log{n}") for n, machine in enumerate(both)]
            until(lambda o=output: len(iterations(o)) > 1, children[0])
            began, rest = time.time(), [0, 1]
            if fault == "cable pulled":
                subprocess.run([*both[0].inside, "ip", "link", "set", "cable", "down"], check=True)
            else:
                gone = 0 if fault == "first killed" else 1
                children[gone].send_signal(signal.SIGKILL)
                rest.remove(gone)
            for number in rest:
                code = children[number].wait()
                last = said(output, f"log{number}").strip().splitlines()[-1]
                print(
                    f"{fault}: machine {number} ended with {code} after {time.time() - began:.0f} s: {last}", flush=True
                )
                assert code == 1
            for child in children:
                child.wait()
            if fault == "cable pulled":
                subprocess.run([*both[0].inside, "ip", "link", "set", "cable", "up"], check=True)
            children = [machine.start(output, *words, name=f"log{n}") for n, machine in enumerate(both)]
            assert [child.wait() for child in children] == [0, 0], said(output, "log0")
        same = hashlib.sha256(adapter(output).read_bytes()).hexdigest() == wanted
        print(f"  typed again on both: the bytes of two ranks on one host: {'yes' if same else 'NO'}", flush=True)
        assert same


PARTS = {"same": one_and_two, "zero": stages_of_zero, "resumed": resumed, "machines": two_machines}


def main(names: Sequence[str]) -> None:
    for name in names or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["fixed"]:
        fixed(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(sys.argv[1:])
