"""What surrounds every stage, once: skip when unchanged, outputs renamed into place, timing, the manifest.

A stage is a function `work(run, out) -> figures`. It writes into the fresh folder `out` the files or folders
named by `Stage.writes`; they are renamed into the run's folder when it returns. What it depends on is what
`Stage.reads` returns: settings (values) and files (paths, which count by content). If neither that nor the
outputs have changed since the manifest's entry was written, the stage is skipped.
"""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import resource
import shlex
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from filelock import FileLock, Timeout
from pydantic import ValidationError

from recipe.core import hardware
from recipe.core.errors import HostLacks, InputWrong, RunFailed
from recipe.core.settings import Settings, differences, load

# The packages whose versions decide the result.
PACKAGES = "torch xtuner transformers mmengine peft bitsandbytes deepspeed accelerate datasets tokenizers sentencepiece"


ENTRY = ("key", "figures", "writes", "seconds", "peak_memory_mb")  # what every stage's entry holds


@dataclasses.dataclass
class Run:
    """One run: its settings and where everything lies. `folder` is output/<recipe name>."""

    name: str
    settings: Settings
    root: Path
    output: Path
    force: bool = False
    verify: bool = False  # read every byte of the base model again
    manifest: Dict[str, Any] = dataclasses.field(default_factory=dict)
    done_now: List[str] = dataclasses.field(default_factory=list)
    now: Dict[str, Any] = dataclasses.field(default_factory=dict)  # what it is doing, see watch.py
    typed: str = ""  # its recipe as the next command must name it, with --output where that was given

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset.jsonl"

    @property
    def held_out(self) -> Path:
        return self.folder / "eval.jsonl"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    @property
    def config(self) -> Path:
        return self.folder / "config.py"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def checkpoint(self) -> Path:
        """The one that the finished training left: below the run's folder, which may have been moved since."""
        [made] = self.manifest["stages"]["train"]["writes"]
        return self.folder / made

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def peft(self) -> Path:
        """The language model's own adapter: LLaVA's lies beside its other parts."""
        inner = self.adapter / "llm_adapter"
        return inner if inner.is_dir() or (self.adapter / "projector").is_dir() else self.adapter

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def shown(self, path: Path) -> str:
        """`path` as the user would type it: relative to where they stand, when it lies below."""
        try:
            return str(path.resolve().relative_to(self.root.resolve()))
        except ValueError:
            return str(path)

    def figures(self, stage: str) -> Dict[str, Any]:
        """Figures that `stage` left in the manifest; empty if it has not run."""
        return self.manifest.get("stages", {}).get(stage, {}).get("figures", {})

    def open(self) -> FileLock:
        """Make the folder, read its manifest, and hold it: a second run on it is refused.

        Raises HostLacks if the folder cannot be written or another run holds it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.folder / ".lock"), timeout=0.5)  # who only looks holds it for less
            lock.acquire()
        except Timeout:
            raise HostLacks(
                f"Another run is at work in {self.shown(self.folder)}. Wait for it, or use a recipe file of "
                f"another name."
            )
        except OSError as error:
            raise HostLacks(
                f"Cannot write the output folder {self.shown(self.folder)}: {error.strerror}. "
                f"Make it writable, or name another with --output."
            )
        path = self.folder / "run.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                whole = all(set(ENTRY) <= set(entry) for entry in found["stages"].values())
            except (ValueError, TypeError, KeyError, AttributeError):
                whole = False
            # A manifest that cannot be read proves nothing: every stage runs again, nothing is deleted.
            self.manifest = found if whole else {}
        return lock

    @property
    def called(self) -> str:
        """What follows the command in a remedy: the recipe as it was typed, or its name, and the overrides by which
        the settings differ from it. Without them the command would be another training.
        """
        typed = self.typed or shlex.quote(self.name)
        try:
            words = differences(load(shlex.split(typed)[0])[1], self.settings)
        except InputWrong:  # its file is gone
            words = []
        return " ".join([typed, *map(shlex.quote, words)])

    def remember(self) -> None:
        """Note what the training that is there was made of: other settings may be planned or looked at afterwards."""
        files = self.manifest["stages"].get("data", {}).get("writes", {})
        made = {"settings": self.settings.model_dump(), "forced": self.force, "config": digest(self.config)}
        made["data"] = {name: entry["sha256"] for name, entry in files.items()}
        before = self.manifest.get("trained")
        self.manifest["trained"] = json.loads(json.dumps(made))
        if self.manifest["trained"] != before:
            self.save()

    def trained_with(self) -> Settings:
        """The settings of the training that is there; where there was none, those with which the folder was made.

        Raises InputWrong where the manifest holds none that are valid.
        """
        try:
            return Settings.model_validate((self.manifest.get("trained") or self.manifest)["settings"])
        except (ValidationError, KeyError, TypeError) as error:
            raise unreadable(self.shown(self.folder / "run.json"), error)

    def shadow(self, output: Path, **more: Any) -> "Run":
        """An empty run of the same name and settings below `output`: stages made again there touch nothing of this."""
        made = dataclasses.replace(self, output=output, manifest={}, done_now=[], now={}, **more)
        made.folder.mkdir(parents=True)
        return made

    def recall(self) -> None:
        """Take the settings with which the model was trained."""
        if self.manifest:
            self.settings = self.trained_with()

    def tell(self, **more: Any) -> None:
        """Say what the run is doing to whoever watches: `more` (stage, log, code …) beside what it said before."""
        if self.now:
            self.now.update(more, at=time.time())
            write_text(self.folder / ".now.json", json.dumps(self.now, ensure_ascii=False) + "\n")

    def save(self) -> None:
        """Write run.json beside and rename it into place."""
        self.manifest.update(
            recipe=self.name, settings=self.settings.model_dump(), forced=self.force, host=host(), versions=versions()
        )
        write_text(self.folder / "run.json", json.dumps(self.manifest, ensure_ascii=False, indent=1) + "\n")


def unreadable(shown: str, error: Exception) -> InputWrong:
    """What is said of a run.json that holds no run of this version."""
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return InputWrong(
        f"{shown} cannot be read ({first}): it is damaged, or of another version of this recipe. The same command that "
        f"made it makes it anew."
    )


@dataclasses.dataclass(frozen=True)
class Stage:
    """`work` makes `writes` from what `reads` names; see the module's text."""

    name: str
    work: Callable[[Run, Path], Dict[str, Any]]
    reads: Callable[[Run], Dict[str, Any]]
    writes: Tuple[str, ...] = ()
    always: bool = False  # cheap, and looks at what lies outside the run's folder


def is_held(folder: Path) -> bool:
    """Whether a run is at work in its folder."""
    try:
        with FileLock(str(folder / ".lock"), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written
        return False


def write_text(path: Path, text: str) -> None:
    """Write `text` beside `path`, then rename: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(str(part), str(path))


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's relative names and contents; "absent" if there is none."""
    if path.is_dir():
        return digest_of(sums(path))
    if not path.is_file():
        return "absent"
    total = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def sums(folder: Path) -> Dict[str, str]:
    """Relative name → sha256 of every file of a folder and its folders."""
    found = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(file.relative_to(folder)): digest(file) for file in found}


def digest_of(found: Dict[str, str]) -> str:
    """`digest` of the folder whose `sums` are these."""
    return hashlib.sha256("".join(f"{name}\0{value}\0" for name, value in found.items()).encode()).hexdigest()


def below(path: Path) -> List[Path]:
    """All files of a folder and its folders, sorted; of a file itself."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def stamp(path: Path) -> List[Any]:
    """Names, sizes and times below `path`: equal stamps mean untouched files, without reading them."""
    files = [file for file in below(path) if file.exists()]
    return [[str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def key_of(reads: Dict[str, Any]) -> str:
    """One sha256 for everything a stage depends on; paths count by content."""
    flat = {name: digest(value) if isinstance(value, Path) else value for name, value in reads.items()}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def is_current(run: Run, stage: Stage, key: str) -> bool:
    """Whether the manifest's entry for `stage` was made from the same things and its outputs still stand."""
    entry = run.manifest.get("stages", {}).get(stage.name)
    if not entry or entry["key"] != key or (stage.writes and set(entry["writes"]) != set(stage.writes)):
        return False
    for name, made in entry["writes"].items():
        path = run.folder / name
        if stamp(path) != made["stamp"] and digest(path) != made["sha256"]:
            return False
    return True


def output_digest(run: Run, stage: str, name: str) -> str:
    """sha256 of what `stage` wrote, as the manifest has it; what is not as it was written is read (a merged model has
    15 GB).
    """
    path = run.folder / name
    made = run.manifest.get("stages", {}).get(stage, {}).get("writes", {}).get(name)
    return made["sha256"] if made and made["stamp"] == stamp(path) else digest(path)


def perform(run: Run, stage: Stage) -> Tuple[Dict[str, Any], bool]:
    """Run `stage` unless it is current; return (its manifest entry, whether it ran).

    Raises what the stage raises; then nothing it had made before is touched.
    """
    key = key_of(stage.reads(run))
    if not stage.always and is_current(run, stage, key):
        return run.manifest["stages"][stage.name], False
    run.tell(stage=stage.name)
    out = run.folder / f".{stage.name}.part"
    remove(out)
    out.mkdir()
    began = time.monotonic()
    try:
        figures = stage.work(run, out)
        for name in stage.writes:
            _replace(out / name, run.folder / name)
    finally:
        remove(out)
    # A stage that writes in place (training) names what it made; one that has hashed its output says so (merge).
    made = [*stage.writes, *figures.pop("made", [])]
    digests = figures.pop("digests", {})
    entry = {
        "key": key,
        "figures": figures,
        "writes": {name: _made(run.folder / name, digests.get(name, "")) for name in made},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": round(time.monotonic() - began, 2),
        "peak_memory_mb": peak_memory_mb(),
    }
    run.manifest.setdefault("stages", {})[stage.name] = entry
    run.done_now.append(stage.name)
    run.save()
    return entry, True


def _made(path: Path, known: str) -> Dict[str, Any]:
    """What the manifest holds of an output: sha256 (`known`, or taken), stamp, and of a folder `files`, their sums."""
    if known or not path.is_dir():
        return {"sha256": known or digest(path), "stamp": stamp(path)}
    found = sums(path)
    return {"sha256": digest_of(found), "stamp": stamp(path), "files": found}


def remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists():
        path.unlink()


def _replace(new: Path, old: Path) -> None:
    """Put `new` where `old` is. A folder cannot be renamed over another: the old one steps aside first."""
    if not new.exists():
        raise RunFailed(f"The stage ended without writing {old.name}.")
    if new.is_file() and not old.is_dir():
        os.replace(str(new), str(old))
        return
    aside = old.with_name(f".{old.name}.old")
    remove(aside)
    if old.exists():
        os.replace(str(old), str(aside))
    os.replace(str(new), str(old))
    remove(aside)


def peak_memory_mb() -> int:
    """Peak resident memory so far of this process or its largest child, in MB (10^6 bytes).

    getrusage counts for this process what its parent held when it started it; the kernel's own mark does not.
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        marks = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    except OSError:
        marks = None
    own = int(marks.group(1)) if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(max(own, children) * 1024 / 1e6)


@functools.lru_cache(maxsize=None)  # they stay what they are, and every stage asks
def versions() -> Dict[str, Optional[str]]:
    """Versions of the packages that decide the result; None where one is not installed."""
    found: Dict[str, Optional[str]] = {"python": platform.python_version()}
    for name in PACKAGES.split():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def gpus() -> List[Dict[str, Any]]:
    """The NVIDIA GPUs that CUDA shows to this process, in its order: name, memory in MiB, driver, compute capability
    ("8.6"). [] if none. What nvidia-smi does not report (older drivers, memory shared with the CPU) PyTorch does.
    """
    found = []
    for number, card in enumerate(hardware.visible(hardware.query()[0])):
        capability, total = card.capability, card.total
        if capability is None or total is None:
            import torch

            try:
                told = torch.cuda.get_device_properties(number)
            except (RuntimeError, AssertionError):  # PyTorch cannot use the card
                continue
            capability = capability or (told.major, told.minor)
            total = told.total_memory >> 20 if total is None else total
        version = "{}.{}".format(*capability)
        found.append(dict(name=card.name, memory_mib=total, driver=card.driver, capability=version))
    return found


def host() -> Dict[str, Any]:
    """The machine, for the manifest."""
    return {
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus(),
        "image": os.environ.get("RECIPE_IMAGE"),
    }
