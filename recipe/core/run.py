"""One run: its settings, its folder and its manifest (run.json)."""

import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import Any, Dict, List

from filelock import FileLock, Timeout
from pydantic import ValidationError

from recipe.core import overrides
from recipe.core.errors import HostLacks, InputWrong
from recipe.core.files import write_text
from recipe.core.hashing import digest
from recipe.core.host import host, versions
from recipe.core.settings import Settings, load

ENTRY = ("key", "figures", "outputs", "seconds", "peak_memory_mb")  # what every stage's entry holds


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
        [made] = self.manifest["stages"]["train"]["outputs"]
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
            words = overrides.between(load(shlex.split(typed)[0])[1], self.settings)
        except InputWrong:  # its file is gone
            words = []
        return " ".join([typed, *map(shlex.quote, words)])

    def remember(self) -> None:
        """Note what the training that is there was made of: other settings may be planned or looked at afterwards."""
        files = self.manifest["stages"].get("data", {}).get("outputs", {})
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


def is_held(folder: Path) -> bool:
    """Whether a run is at work in its folder."""
    try:
        with FileLock(str(folder / ".lock"), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written
        return False
