"""The tutorial page's own three commands and ours, on one card: docker/runtime/host exec python benchmarks/whole.py

  ours   train coach, merge coach with its evaluation, one question to chat
  page   xtuner train under DeepSpeed, xtuner convert pth_to_hf, xtuner convert merge, with the page's config (recipe
         `tutorial`)

The model is a 7B InternLM2 with random weights, written to OUTPUT before the clock starts; the data are random text
unless --data names the workbook. Each command is timed from its start to its end, and prints a line of JSON; a table
comes last. On a card this takes about ten minutes as shipped, and about six with --tokens 60.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from benchmarks import two_cards
from recipe.core import hardware, host
from recipe.training import bench

ROOT = Path(__file__).resolve().parent.parent
ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
NO_GPU = ROOT / "tests" / "support" / "no_gpu"


class MemoryPeak(threading.Thread):
    """The most MiB of the first card in use, by nvidia-smi, while the block runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.cards, self.mib, self.ended = hardware.visible(hardware.query()[0])[:1], 0, threading.Event()

    def run(self) -> None:
        while self.cards and not self.ended.wait(0.5):
            self.mib = max(self.mib, hardware.memory_used(self.cards[0]))

    def __enter__(self) -> "MemoryPeak":
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.ended.set()
        self.join()


class Whole:
    """Both ways, with everything below `output`."""

    def __init__(self, given: Any) -> None:
        self.output, self.tiny, self.data = given.output.resolve(), given.tiny, given.data
        self.model = self.output / "model"
        self.found: List[Dict[str, Any]] = []
        self.tokens = [f"train.evaluation_max_new_tokens={given.tokens}"] if given.tokens else []
        self.tokenizer: Optional[Path] = given.tokenizer

    def prepare(self) -> None:
        """The data and the model. What earlier commands made is deleted, so that nothing is taken from it."""
        for name in ("ours", "page", "cache"):
            shutil.rmtree(str(self.output / name), ignore_errors=True)
        self.output.mkdir(parents=True, exist_ok=True)
        if self.data is None:
            self.data = self.output / "data.jsonl"
            self.data.write_text(two_cards.conversations(120 if self.tiny else 246), encoding="utf-8")
        sizes = bench.SHAPES_TINY if self.tiny else bench.SHAPES_7B
        two_cards.write_model(self.model, sizes, self._data_words(), self.tokenizer)

    def _data_words(self) -> List[str]:
        return [f"data.files={json.dumps([str(self.data.resolve())])}", "data.url=", "data.sha256="]

    def ours(self) -> None:
        recipe = "tiny" if self.tiny else "coach"
        words = [recipe, f"model.path={self.model}", *self._data_words(), *self.tokens]
        words += ["train.max_epochs=1", "--force"] if self.tiny else []
        output = ["--output", str(self.output / "ours")]
        base = [sys.executable, "-m", "recipe"]
        self._run("ours", "train", [*base, "train", *words, *output])
        self._run("ours", "merge", [*base, "merge", *words, *output])
        self._run("ours", "chat", [*base, "chat", recipe, "你好", *output])
        stages = json.loads((self.output / "ours" / recipe / "run.json").read_text(encoding="utf-8"))["stages"]
        parts = {name: stage["seconds"] for name, stage in stages.items() if "seconds" in stage}
        self._say(way="ours", stages=parts, training=stages["train"]["figures"]["time_breakdown"])

    def page(self) -> None:
        """XTuner's commands as the page has them; its config is rendered beforehand."""
        words = ["tutorial", f"model.path={self.model}", *self._data_words(), *self.tokens]
        folder = self.output / "page"
        subprocess.run(
            [sys.executable, "-m", "recipe", "config", *words, "--output", str(folder)],
            check=True, cwd=str(ROOT), stdout=subprocess.DEVNULL,
        )  # fmt: skip
        config, work = folder / "tutorial" / "config.py", folder / "work"
        xtuner = [sys.executable, str(Path(sys.executable).with_name("xtuner"))]
        # xtuner starts PATH's python. Without the others DeepSpeed asks MPI, which fails without a network.
        more = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **ONE_PROCESS}
        if self.tiny:
            more["PYTHONPATH"] = f"{NO_GPU}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        train = [*xtuner, "train", str(config), "--work-dir", str(work), "--deepspeed", "deepspeed_zero2"]
        self._run("page", "train", train, **more)
        checkpoint = max(work.glob("iter_*.pth"), key=lambda path: int(path.stem.split("_")[1]))
        adapter, merged = work / "hf", work / "merged"
        convert = [*xtuner, "convert", "pth_to_hf", str(config), str(checkpoint), str(adapter)]
        self._run("page", "pth_to_hf", convert, **more)
        merge = [*xtuner, "convert", "merge", str(self.model), str(adapter), str(merged), "--max-shard-size", "2GB"]
        self._run("page", "merge", merge, **more)
        if not list(merged.glob("*.bin")):  # xtuner ends with 0 whatever happens
            raise RuntimeError(f"xtuner convert merge made nothing: {self.output / 'page-merge.log'}")

    def _run(self, way: str, what: str, words: List[str], **environment: str) -> None:
        """Run one command; say how long it took. Its output is in OUTPUT/WAY-WHAT.log."""
        log = self.output / f"{way}-{what}.log"
        # In a cache of its own, where no evaluation of the base model is kept. The page sets MKL's variable.
        known = {**os.environ, "RECIPE_CACHE": str(self.output / "cache"), "MKL_SERVICE_FORCE_INTEL": "1"}
        known.update(environment)
        began = time.monotonic()
        with log.open("wb") as stream, MemoryPeak() as memory:
            code = subprocess.run(
                words, cwd=str(ROOT), env=known, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL
            ).returncode
        self._say(way=way, command=what, seconds=round(time.monotonic() - began, 1), peak_mib=memory.mib, code=code)
        if code:
            raise RuntimeError(f"{what} failed: {log.read_text(encoding='utf-8', errors='replace')[-1500:]}")

    def _say(self, **found: Any) -> None:
        self.found.append(found)
        print(json.dumps(found, ensure_ascii=False), flush=True)

    def table(self) -> str:
        """Seconds and the card's memory of each command, and how many times longer the page's take."""
        rows = [one for one in self.found if "command" in one]
        lines = ["| command | seconds | memory of the card, MiB |", "|---|---|---|"]
        lines += [f"| {one['way']}: {one['command']} | {one['seconds']} | {one['peak_mib']} |" for one in rows]
        seconds: Dict[str, float] = {}
        for one in rows:
            if one["command"] != "chat":
                seconds[one["way"]] = seconds.get(one["way"], 0) + one["seconds"]
        lines += [f"| {way} in all, without chat | {value:.1f} | |" for way, value in seconds.items()]
        if len(seconds) == 2:
            lines.append(f"| page / ours | {seconds['page'] / seconds['ours']:.2f} | |")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ways", nargs="*", metavar="WAY", help="ours, page (default: both)")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "whole", help="where everything goes")
    parser.add_argument("--data", type=Path, help="the tutorial's workbook, or any table that the recipe reads")
    parser.add_argument("--tokenizer", type=Path, help="InternLM2's tokenizer.model (default: the tiny model's)")
    parser.add_argument("--tokens", type=int, help="of an answer during training, both ways (default: 300, page 600)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on a CPU, to try the script")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        parser.exit(3, "This needs an NVIDIA GPU; --tiny tries the script on a CPU.\n")
    whole = Whole(given)
    whole.prepare()
    versions = {name: host.versions()[name] for name in ("torch", "xtuner", "deepspeed", "bitsandbytes")}
    print(json.dumps({"cards": host.gpus(), **versions}), flush=True)
    failed = 0
    for way in given.ways or ("ours", "page"):
        try:
            getattr(whole, way)()
        except (RuntimeError, OSError, ValueError, subprocess.CalledProcessError) as error:
            print(json.dumps({"way": way, "error": str(error)[-1500:]}, ensure_ascii=False), flush=True)
            failed += 1
    print(whole.table())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
