"""Training on one GPU and on two, side by side: docker/runtime/host exec python benchmarks/two_cards.py [PART …]

  speed-2x512, speed-4x2048   coach with so many sequences × tokens on each card, the fast step and XTuner's own, on one
                              card and on two. All trainers hold their model at once and train in turn, three times.
  large-qlora, large-lora     ten updates of a 20B model on two cards (ZeRO-2 and ZeRO-3), memory beside the plan's
  killed                      a rank killed by SIGKILL, the same command again: the adapter of an unbroken run?

The trainer is the one that `just train` starts, by the config that it renders. Only the weights are random, drawn on
the card: no model is needed. Every result is a line of JSON, printed and added to OUTPUT/results.jsonl; a part whose
results of this commit are there already is not measured again. --tiny tries all parts with a tiny model on a CPU.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

import torch
from mmengine.hooks import Hook

from benchmarks import ranks
from recipe.training import bench

ROOT = Path(__file__).resolve().parent.parent

SHAPES_20B = {
    **bench.SHAPES_7B, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48,
    "num_attention_heads": 48,
}  # fmt: skip
REPEATS = 3
FIRST = 4  # iterations that are not timed when a trainer begins: the check, what is compiled, the recording
WARM, TIMED = 2, 10  # iterations of a turn: before the clock starts (memory is taken again), and on it
LARGE = dict(qlora="zero2", lora="zero3")  # 4-bit weights cannot be cut into parts
MIB = 1 << 20
STARTING = 240  # seconds within which a trainer must answer
# An nvidia-smi with two cards, for --tiny
STUB = """#!/bin/sh
for card in 0 1; do echo "$card, GPU-$card, CPU, 24576, 24000, 550.54.14, Default, [N/A], 8.6"; done
"""


def random_llm(dtype: str, **sizes: int) -> Any:
    """InternLM2 of these sizes with random weights: cut into parts under ZeRO-3, else as `just bench` makes it (on a
    card in NF4).
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    from recipe.base_model.internlm2 import InternLM2Config, InternLM2ForCausalLM

    kind = getattr(torch, dtype)
    if not is_deepspeed_zero3_enabled():
        return bench.build_llm(sizes, "cuda" if torch.cuda.is_available() else "cpu", kind)
    config = InternLM2Config(**sizes, rope_scaling={"type": "dynamic", "factor": 2.0})
    model = InternLM2ForCausalLM._from_config(config, torch_dtype=kind)
    for parameter in model.parameters():
        own = parameter.ds_tensor.data  # this rank's part
        own.fill_(1) if len(parameter.ds_shape) == 1 else own.normal_(0, sizes["hidden_size"] ** -0.5)
    return model


class Turns(Hook):
    """Trains when it is this trainer's turn: `first` iterations, then in each round `WARM` and `timed` more.

    A round begins when FOLDER/go-N is there, and ends with FOLDER/round-N-RANK.json.
    """

    priority = "LOWEST"  # what the other hooks do belongs to an iteration

    def __init__(self, folder: str, first: int, rounds: int, timed: int) -> None:
        self.folder, self.rounds = Path(folder), rounds
        self.lengths = [first, *[WARM + timed] * rounds]
        self.timed, self.round, self.done, self.began = timed, 0, 0, 0.0

    def before_train(self, runner: Any) -> None:
        self._wait()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.done += 1
        left = self.lengths[self.round] - self.done
        if left == self.timed:
            self.began = _now()
        if left:
            return
        seconds = (_now() - self.began) / self.timed
        found = {"seconds": seconds, "loss": float(outputs["loss"].detach()), **_peak()}
        rank = os.environ.get("RANK", "0")
        _write(self.folder / f"round-{self.round}-{rank}.json", json.dumps(found))
        self.round, self.done = self.round + 1, 0
        if self.round > self.rounds:
            raise SystemExit(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the other trainers' turn
        self._wait()

    def _wait(self) -> None:
        while not (self.folder / f"go-{self.round}").exists():
            time.sleep(0.02)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.began = _now()  # of a round without warm iterations


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak() -> Dict[str, int]:
    if not torch.cuda.is_available():
        return {"allocated_mib": 0, "reserved_mib": 0}
    return {
        "allocated_mib": round(torch.cuda.max_memory_allocated() / MIB),
        "reserved_mib": round(torch.cuda.max_memory_reserved() / MIB),
    }


def _write(path: Path, text: str) -> None:
    """Write beside and rename: the file is whole when it is there."""
    part = path.with_name(f".{path.name}")
    part.write_text(text, encoding="utf-8")
    os.replace(str(part), str(path))


class Trainer:
    """XTuner's trainer of one configuration on `cards` cards, a process of its own (or torchrun's)."""

    def __init__(self, folder: Path, name: str, cards: int, rounds: int = REPEATS, first: int = FIRST) -> None:
        self.folder, self.name, self.cards, self.rounds, self.first = folder / name, name, cards, rounds, first
        self.child: Optional[subprocess.Popen] = None
        shutil.rmtree(str(self.folder), ignore_errors=True)

    def prepare(self, recipe: str, words: Sequence[str], sizes: Dict[str, int], more: str = "") -> None:
        """Make the run's data, plan and config; in the config random weights, no questions, turns."""
        from recipe.core import settings
        from recipe.core.run import Run
        from recipe.stages import pipeline
        from recipe.xtuner import step_choice

        run = Run(recipe, settings.load(recipe, [*words, f"gpus={self.cards}"])[1], ROOT, self.folder, force=True)
        with run.open(), contextlib.redirect_stdout(sys.stderr):
            pipeline.run_stages(run, "config", pipeline.ORDER[:5])
        kind = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[step_choice.dtype(run.settings)]
        turns = dict(folder=str(self.folder), first=self.first, rounds=self.rounds, timed=TIMED)
        lines = [
            run.config.read_text(encoding="utf-8"),
            "from two_cards import Turns, random_llm",
            f"model['llm'] = dict(type=random_llm, dtype={kind!r}, **{sizes!r})",
            "custom_hooks = [hook for hook in custom_hooks if 'evaluation_inputs' not in hook]",
            f"custom_hooks.append(dict(type=Turns, **{turns!r}))",
            more,
        ]
        run.config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.run = run

    def start(self) -> None:
        from recipe.core.files import write_text
        from recipe.training import process
        from recipe.xtuner import step_choice

        place = self.folder / "checkpoints"
        place.mkdir()
        write_text(place / process.DEEPSPEED_FILE, step_choice.deepspeed_text(self.run.settings))
        found = {**process.environment(self.run)}
        paths = [str(ROOT / "benchmarks"), str(ROOT), found.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with (self.folder / "log").open("wb") as log:
            self.child = subprocess.Popen(
                process.command(self.run, place, None, 0), cwd=str(ROOT), stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, env=found,
            )  # fmt: skip

    def turn(self, number: int) -> List[Dict[str, Any]]:
        """Train one round; what each rank measured. Raises RuntimeError with the log's end if the trainer ends."""
        assert self.child
        (self.folder / f"go-{number}").touch()
        wanted = [self.folder / f"round-{number}-{rank}.json" for rank in range(self.cards)]
        last = time.monotonic() + STARTING
        while not all(path.exists() for path in wanted):
            if self.child.poll() is not None or time.monotonic() > last:
                raise RuntimeError(f"{self.name}, round {number}: {self.log()[-1500:]}")
            time.sleep(0.05)
        return [json.loads(path.read_text(encoding="utf-8")) for path in wanted]

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        if self.child is None:
            return
        if self.child.poll() is None:
            self.child.kill()  # torchrun's ranks end with it
        self.child.wait()


@contextlib.contextmanager
def started(trainers: Sequence[Trainer]) -> Iterator[None]:
    try:
        for trainer in trainers:
            trainer.start()
        yield
    finally:
        for trainer in trainers:
            trainer.stop()


class Benchmark:
    """The parts, and where their results go."""

    def __init__(self, output: Path, tiny: bool, tokenizer: Optional[Path] = None) -> None:
        from recipe.core.host import gpus, versions

        self.output, self.tiny, self.tokenizer = output, tiny, tokenizer
        output.mkdir(parents=True, exist_ok=True)
        self.results = output / "results.jsonl"
        cards = gpus()
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=str(ROOT), capture_output=True, text=True)
        self.about = {
            "command": " ".join(["python", "benchmarks/two_cards.py", *sys.argv[1:]]),
            "card": cards[0]["name"] if cards else "none",
            "cards_there": len(cards),
            "driver": cards[0]["driver"] if cards else "",
            "torch": versions()["torch"],
            "commit": os.environ.get("COMMIT") or done.stdout.strip() or "unknown",
            "tiny": tiny,
        }
        self.recipe = "tiny" if tiny else "coach"
        data = output / "conversations.jsonl"
        if not data.exists():
            _write(data, conversations(120 if tiny else 400))
        self.words = [f"data.files={data}", "data.url=", "data.sha256=", "model.source=tiny"]
        self.words += ["train.accumulative_counts=1", "train.deepspeed=deepspeed_zero2", "train.save_steps=100000"]

    def record(self, part: str, **found: Any) -> None:
        line = json.dumps({"part": part, **found, **self.about, "time": time.strftime("%Y-%m-%d %H:%M:%S")})
        print(line, flush=True)
        with self.results.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def is_done(self, part: str) -> bool:
        lines = self.results.read_text(encoding="utf-8").splitlines() if self.results.exists() else []
        same = ("commit", "card", "tiny")
        return any(
            one["part"] == part and one.get("whole") and all(one[name] == self.about[name] for name in same)
            for one in map(json.loads, lines)
        )

    def size(self, batch: int, length: int, cards: int) -> List[str]:
        """Settings with which every card gets `batch` × `length`."""
        return [f"train.batch_size={batch * cards}", f"train.max_length={length}", "train.max_epochs=100"]

    def speed(self, part: str, batch: int, length: int) -> None:
        """One line for each trainer, and one with the ratios."""
        trainers = {}
        for step in ("fast", "stock"):
            for cards in (1, 2):
                trainers[f"{step}-{cards}"] = (step, cards, "")
        if batch * length <= 4096 and not self.tiny:  # such steps are recorded as a CUDA graph: what that brings
            trainers["fast-unrecorded-1"] = ("fast", 1, "model['graph'] = False")
            trainers["fast-unrecorded-2"] = ("fast", 2, "model['graph'] = False")
        made = []
        for name, (step, cards, more) in trainers.items():
            words = [*self.words, *self.size(batch, length, cards), f"train.speed={step}"]
            trainer = Trainer(self.output / part, name, cards)
            trainer.prepare(self.recipe, words, bench.SHAPES_TINY if self.tiny else bench.SHAPES_7B, more)
            made.append(trainer)
        rounds: Dict[str, List[List[Dict[str, Any]]]] = {trainer.name: [] for trainer in made}
        faults: Dict[str, str] = {}
        with started(made):
            for number in range(REPEATS + 1):
                for trainer in made if number % 2 else made[::-1]:
                    if trainer.name in faults:
                        continue
                    try:
                        found = trainer.turn(number)
                    except RuntimeError as error:
                        faults[trainer.name] = str(error)
                        trainer.stop()
                        continue
                    if number:
                        rounds[trainer.name].append(found)
        tokens = batch * length
        speeds = {}
        for trainer in made:
            found = _summary(rounds[trainer.name], tokens * trainer.cards)
            speeds[trainer.name] = found.get("tokens_per_second")
            step, cards, _ = trainers[trainer.name]
            self.record(
                part, trainer=trainer.name, step=step, cards=cards, batch=batch, length=length, **found,
                fast_step=_fast_step(trainer), **({"error": faults[trainer.name]} if trainer.name in faults else {}),
            )  # fmt: skip
        ratios = {
            "fast_of_ideal": _ratio(speeds, "fast-2", "fast-1", 2),
            "stock_of_ideal": _ratio(speeds, "stock-2", "stock-1", 2),
            "fast_over_stock_on_two": _ratio(speeds, "fast-2", "stock-2"),
            "fast_over_stock_on_one": _ratio(speeds, "fast-1", "stock-1"),
            "unrecorded_of_ideal": _ratio(speeds, "fast-unrecorded-2", "fast-unrecorded-1", 2),
        }
        ratios = {name: value for name, value in ratios.items() if value}
        self.record(part, whole=not faults, **ratios)

    def large(self, part: str, method: str) -> None:
        """Ten updates of the 20B model, two sequences of 512 tokens on each card."""
        from recipe.planning import memory

        sizes, stage = (bench.SHAPES_TINY if self.tiny else SHAPES_20B), LARGE[method]
        batch, length, cards = 2, 512, 2
        words = [*self.words, *self.size(batch, length, cards), "train.speed=stock"]
        words += [f"train.method={'lora' if self.tiny else method}", f"train.deepspeed=deepspeed_{stage}"]
        trainer = Trainer(self.output / part, method, cards, rounds=0, first=TIMED)
        trainer.prepare(self.recipe, words, sizes)
        with started([trainer]):
            began = time.monotonic()
            found = trainer.turn(0)
            took = time.monotonic() - began
        shape = memory.Shape(
            _parameters(sizes), sizes["num_hidden_layers"], sizes["hidden_size"], sizes["vocab_size"]
        )  # fmt: skip
        table = memory.zero_stages(shape, method, 4 if method == "qlora" else 16, batch * length, 64)
        [row] = [row for row in table if row["stage"] == stage]
        planned = row["gpu"][str(cards)] / MIB
        measured = max(one["allocated_mib"] for one in found)
        self.record(
            part, whole=True, method=method, deepspeed=stage, parameters=round(shape.parameters), cards=cards,
            batch=batch, length=length, updates=TIMED, seconds_an_update=round(found[0]["seconds"], 3),
            loss=[one["loss"] for one in found], allocated_mib=measured,
            reserved_mib=max(one["reserved_mib"] for one in found), planned_mib=round(planned),
            measured_of_planned=round(measured / planned, 3), seconds=round(took, 1),
        )  # fmt: skip

    def killed(self, part: str) -> None:
        """The real command three times: unbroken; killed at rank 1; the same again."""
        model = self.output / "model"
        sizes = bench.SHAPES_TINY if self.tiny else {**bench.SHAPES_7B, "num_hidden_layers": 8}
        write_model(model, sizes, self.words, self.tokenizer)
        words = [word for word in self.words if not word.startswith(("model.", "train.save_steps"))]
        words += [f"model.path={model}", "gpus=2", *self.size(2, 512, 2), "train.max_epochs=1", "train.speed=fast"]
        words += ["train.save_steps=5", "train.evaluation_freq=100000", "train.evaluation_max_new_tokens=2", "--force"]
        if self.tiny:
            words += ["train.max_epochs=2"]
        words = ranks.last_of_each(*words)
        unbroken, broken = self.output / part / "unbroken", self.output / part / "broken"
        shutil.rmtree(str(self.output / part), ignore_errors=True)
        wanted = self._finish(self._train(unbroken, words), unbroken)
        child = self._train(broken, words)
        try:
            while max(_checkpoints(broken), default=0) < 10:  # the second one
                if child.poll() is not None:
                    raise RuntimeError(_end(broken))
                time.sleep(0.02)
            time.sleep(0.2)  # some iterations further
            processes = family(child.pid)
            [rank] = [pid for pid in processes if _is_rank(pid, 1)]
            at, began = max(_checkpoints(broken)), time.monotonic()
            os.kill(rank, signal.SIGKILL)
            code = child.wait(timeout=STARTING)
            ended = time.monotonic() - began
        finally:
            child.kill()
        time.sleep(0.5)
        left = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
        said = _end(broken).strip().splitlines()[-1:]
        again = self._finish(self._train(broken, words), broken)
        self.record(
            part, whole=True, layers=sizes["num_hidden_layers"], killed_after_checkpoint=at, exit_code=code,
            ended_after_seconds=round(ended, 1), said=said, processes_left=len(left), adapter=wanted,
            same_bytes=again == wanted,
        )  # fmt: skip

    def _train(self, output: Path, words: Sequence[str]) -> "subprocess.Popen[bytes]":
        output.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "recipe", "train", self.recipe, *words, "--output", str(output)]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with (output / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=str(ROOT), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def _finish(self, child: "subprocess.Popen[bytes]", output: Path) -> str:
        """sha256 of the adapter that `child` makes."""
        try:
            code = child.wait(timeout=2 * STARTING)
        except subprocess.TimeoutExpired:
            child.kill()  # its trainer ends with it
            raise
        if code:
            raise RuntimeError(_end(output))
        return hashlib.sha256((output / self.recipe / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def conversations(count: int) -> str:
    """A dataset of so many conversations of random text, about 150 tokens each."""
    draw = random.Random(0)
    signs = "我你他在工作压力焦虑领导同事沟通时间计划目标感到学习方法帮助解决问题情绪休息，。的是了不有和会可以"
    made = []
    for number in range(count):
        question, answer = ("".join(draw.choices(signs, k=length)) for length in (30, 90))
        turn = {"system": "", "input": f"{number} {question}", "output": answer}
        made.append(json.dumps({"conversation": [turn]}, ensure_ascii=False) + "\n")
    return "".join(made)


def write_model(folder: Path, sizes: Dict[str, int], words: Sequence[str], tokenizer: Optional[Path]) -> None:
    """A model folder of these sizes with random weights in fp16, and this tokenizer.model or the tiny model's."""
    from safetensors.torch import save_file

    from recipe.base_model import folder as base_model
    from recipe.base_model import tiny
    from recipe.base_model.internlm2 import InternLM2Config, InternLM2ForCausalLM
    from recipe.core import settings
    from recipe.core.run import Run
    from recipe.stages import pipeline

    if (folder / "config.json").exists():
        return
    run = Run("tiny", settings.load("tiny", list(words))[1], ROOT, folder.parent / "tiny")
    with run.open(), contextlib.redirect_stdout(sys.stderr):
        pipeline.run_stages(run, "model")
    shutil.rmtree(str(folder), ignore_errors=True)
    weights = shutil.ignore_patterns("*.safetensors*", ".recipe")
    shutil.copytree(str(base_model.folder(run)), str(folder), ignore=weights)
    if tokenizer:
        tiny.write_tokenizer(folder, tokenizer.read_bytes())
    config = InternLM2Config.from_pretrained(str(folder))
    config.update(sizes)
    with torch.device("meta"):
        model = InternLM2ForCausalLM(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    drawn = {}
    for name, meant in model.named_parameters():
        if meant.dim() == 1:
            drawn[name] = torch.ones(meant.shape, dtype=torch.float16)
        else:
            drawn[name] = torch.randn(meant.shape, device=device).mul_(meant.shape[-1] ** -0.5).half().cpu()
    save_file(drawn, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _parameters(sizes: Dict[str, int]) -> float:

    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    matrices = sum(out * inner for out, inner in bench.matrix_shapes(sizes))
    return layers * (matrices + 2 * hidden) + hidden + 2 * sizes["vocab_size"] * hidden


def _summary(rounds: Sequence[Sequence[Dict[str, Any]]], tokens: int) -> Dict[str, Any]:
    """Of the rounds of one trainer; `tokens`: of an iteration on all cards."""
    if not rounds:
        return {}
    seconds = [max(one["seconds"] for one in ranks) for ranks in rounds]
    median = statistics.median(seconds)
    return {
        "median_ms": round(1e3 * median, 2),
        "least_ms": round(1e3 * min(seconds), 2),
        "rounds_ms": [round(1e3 * one, 2) for one in seconds],
        "tokens_per_second": round(tokens / median),
        "allocated_mib": max(one["allocated_mib"] for ranks in rounds for one in ranks),
        "reserved_mib": max(one["reserved_mib"] for ranks in rounds for one in ranks),
        "loss": rounds[-1][0]["loss"],
    }


def _fast_step(trainer: Trainer) -> Dict[str, Any]:
    """Whether the comparison with XTuner's step, and the recording's, passed."""
    from recipe.training.fast import verdict

    found = verdict.parse_log(trainer.log())
    return {name: one.get("error", "") or one["passed"] for name, one in found.items()}


def _ratio(speeds: Dict[str, Any], one: str, other: str, times: int = 1) -> Optional[float]:
    if not speeds.get(one) or not speeds.get(other):
        return None
    return round(speeds[one] / speeds[other] / times, 3)


def _checkpoints(output: Path) -> List[int]:
    return [int(path.stem.split("_")[1]) for path in output.glob("*/checkpoints/*/iter_*")]


def _end(output: Path) -> str:
    return (output / "log").read_text(encoding="utf-8", errors="replace")[-3000:]


def family(pid: int) -> List[int]:
    """The processes that `pid` started, and those that they did."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text(encoding="ascii").split()):
            found += [child, *family(child)]
    return found


def _is_rank(pid: int, rank: int) -> bool:
    """Whether `pid` is this rank's trainer, not a process that it started."""
    try:
        known = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        above = Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"RANK={rank}".encode() in known and f"RANK={rank}".encode() not in above


def answer_for_the_card(folder: Path) -> None:
    """Two cards whose work the CPU does (tests/support/no_gpu), for this process and those that it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    stub = folder / "nvidia-smi"
    stub.write_text(STUB, encoding="ascii")
    stub.chmod(0o755)
    paths = [str(ROOT / "tests" / "support" / "no_gpu"), os.environ.get("PYTHONPATH", "")]
    os.environ.update(
        PATH=f"{folder}{os.pathsep}{os.environ['PATH']}", PYTHONPATH=os.pathsep.join(filter(None, paths)),
        OMP_NUM_THREADS="1",
    )  # fmt: skip


PARTS = {
    "speed-4x2048": lambda benchmark: benchmark.speed("speed-4x2048", 4, 2048),
    "speed-2x512": lambda benchmark: benchmark.speed("speed-2x512", 2, 512),
    "killed": lambda benchmark: benchmark.killed("killed"),
    "large-qlora": lambda benchmark: benchmark.large("large-qlora", "qlora"),
    "large-lora": lambda benchmark: benchmark.large("large-lora", "lora"),
}


def main() -> int:
    from recipe.core.errors import RecipeError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "two-cards", help="where everything goes")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU, to try the script")
    parser.add_argument("--tokenizer", type=Path, help="InternLM2's tokenizer.model, which `killed` needs")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    output = given.output.resolve()
    if given.tiny:
        answer_for_the_card(output / "stub")
    benchmark = Benchmark(output, given.tiny, given.tokenizer)
    if benchmark.about["cards_there"] < 2:
        parser.exit(3, f"This needs two NVIDIA GPUs; {benchmark.about['cards_there']} can be used here.\n")
    failed = 0
    for part in given.parts or PARTS:
        if benchmark.is_done(part) and not given.again:
            print(f"{part}: measured already, in {benchmark.results}", file=sys.stderr)
            continue
        try:
            PARTS[part](benchmark)
        except (RuntimeError, RecipeError, subprocess.TimeoutExpired) as error:
            benchmark.record(part, whole=False, error=str(error)[-1500:])
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
