"""One run: its settings, its folder and its manifest (run.json)."""

import dataclasses
import json
import shlex
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from filelock import FileLock, Timeout
from pydantic import ValidationError

from recipe.core import overrides
from recipe.core.errors import HostLacks, InputWrong, reason
from recipe.core.files import relative_path, write_text
from recipe.core.hashing import digest
from recipe.core.host import host, versions
from recipe.core.settings import Settings, load
from recipe.core.translation import _

MADE_FOR = ("data", "plan", "config")  # stages whose results a training uses; later commands may replace them
INDEPENDENT = ("eval", "export", "plan", "cluster", "merge")  # tables of settings that a training does not depend on
ENTRY_FIELDS = {"key", "figures", "outputs", "seconds", "peak_memory_mb"}  # of every stage in the manifest


@dataclasses.dataclass
class Run:
    """One run: its settings and its files. `folder` is output/<recipe name>."""

    name: str
    settings: Settings
    root: Path
    output: Path
    force: bool = False
    verify: bool = False  # read every byte of the base model again
    manifest: Dict[str, Any] = dataclasses.field(default_factory=dict)
    performed: List[str] = dataclasses.field(default_factory=list)  # stages that ran in this process
    status: Dict[str, Any] = dataclasses.field(default_factory=dict)  # what it is doing, see training/watch.py
    recipe_file: Optional[Path] = None
    source: Dict[str, str] = dataclasses.field(default_factory=dict)  # of a run named by a data file: data_source.py
    recipe_arguments: str = ""  # its recipe as the next command must name it, with --output if that was given

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset.jsonl"

    @property
    def eval_dataset(self) -> Path:
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
        """The finished training's checkpoint. It is relative to the run's folder, which may have been moved."""
        [made] = self.manifest["stages"]["train"]["outputs"]
        return self.folder / made

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def peft(self) -> Path:
        """The language model's adapter: for LLaVA, a subfolder beside the other parts."""
        inner = self.adapter / "llm_adapter"
        return inner if inner.is_dir() or (self.adapter / "projector").is_dir() else self.adapter

    @property
    def merged(self) -> Path:
        return self.folder / "merged"

    @property
    def models(self) -> Path:
        return self.root / "models"

    def relative(self, path: Path) -> str:
        """`path` relative to the clone, if it lies below it."""
        return relative_path(path, self.root)

    def figures(self, stage: str) -> Dict[str, Any]:
        """The figures of `stage` in the manifest; {} if it has not run."""
        return self.manifest.get("stages", {}).get(stage, {}).get("figures", {})

    @property
    def questions(self) -> List[str]:
        """The questions asked during training: the recipe's, or those that the config stage has drawn."""
        return list(self.figures("config").get("questions", filter(None, self.settings.train.questions)))

    def open(self) -> FileLock:
        """Make the folder, lock it and read its manifest.

        Raises HostLacks if the folder cannot be written or another run holds the lock.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.folder / ".lock"), timeout=0.5)  # is_locked() holds it for less
            lock.acquire()
        except Timeout:
            raise HostLacks(
                _(
                    "Another run is using {folder}. Wait for it, or use a recipe file of another name.",
                    folder=self.relative(self.folder),
                )
            )
        except OSError as error:
            raise HostLacks(
                _(
                    "Cannot write the output folder {folder}: {reason}. Make it writable, or name another with "
                    "--output.",
                    folder=self.relative(self.folder),
                    reason=reason(error),
                )
            )
        path = self.folder / "run.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                is_valid = is_manifest(found)
            except (OSError, ValueError):
                is_valid = False
            if not is_valid:
                lock.release()
                shown = self.relative(path)
                raise InputWrong(
                    _(
                        "{file} is damaged: what was made in {folder} is unknown. Restore the file, or make everything "
                        "again: {command}",
                        file=shown,
                        folder=self.relative(self.folder),
                        command=f"mv {shlex.quote(shown)} {shlex.quote(shown + '.damaged')}",
                    )
                )
            self.manifest = found
        return lock

    def other_recipe(self) -> str:
        """What to say where another recipe file of the same name made this folder's results; "" otherwise."""
        made, here = self.manifest.get("recipe_file"), self._recipe_file()
        if not isinstance(made, dict) or not here or here["path"] == made["path"] or here["sha256"] == made["sha256"]:
            return ""
        return _(
            "{folder} was made by {recipe}; {other_recipe} is another recipe of the same name. What differs is made "
            "again in its place. To keep both: --output another_folder",
            folder=self.relative(self.folder),
            recipe=made["path"],
            other_recipe=here["path"],
        )

    def _recipe_file(self) -> Dict[str, str]:
        if self.recipe_file is None or not self.recipe_file.is_file():
            return {}
        path = self.recipe_file if self.recipe_file.is_absolute() else self.root / self.recipe_file
        return {"path": self.relative(path), "sha256": digest(self.recipe_file)}

    @property
    def arguments(self) -> str:
        """The recipe and the overrides that give these settings, for a command in a message."""
        recipe = self.recipe_arguments or shlex.quote(self.name)
        try:
            words = overrides.between(load(shlex.split(recipe)[0], output=self.output)[1], self.settings)
        except InputWrong:  # the recipe's file is gone
            words = []
        return " ".join([recipe, *map(shlex.quote, words)])

    def record_training(self) -> None:
        """Record what the finished training was made of: later commands may make stages with other settings."""
        files = self.manifest["stages"].get("data", {}).get("outputs", {})
        before = self.manifest.get("trained", {})
        made = {"settings": self.settings.model_dump(), "forced": self.force, "config": digest(self.config)}
        made["data"] = {name: entry["sha256"] for name, entry in files.items()}
        made["stages"] = self._made_for_training()
        machine = {"host": host(), "versions": versions()} if "train" in self.performed or not before else before
        made.update({name: machine[name] for name in ("host", "versions") if name in machine})
        self.manifest["trained"] = json.loads(json.dumps(made))
        if self.manifest["trained"] != before:
            self.save()

    def record_restored(self) -> None:
        """Record that data, plan and config are the training's again, or hold another exam for it."""
        self.manifest["trained"]["stages"] = self._made_for_training()

    def _made_for_training(self) -> Dict[str, Any]:
        return {name: self.manifest["stages"][name] for name in MADE_FOR if name in self.manifest["stages"]}

    def trained_settings(self) -> Settings:
        """The settings of the finished training, else those of the last command.

        Raises InputWrong if the manifest holds no valid ones.
        """
        try:
            return Settings.model_validate((self.manifest.get("trained") or self.manifest)["settings"])
        except (ValidationError, KeyError, TypeError) as error:
            raise manifest_error(self.relative(self.folder / "run.json"), error)

    def as_trained(self) -> "Run":
        """This run as its finished training left it. Stages that data, plan or config have made with other settings
        since are in manifest["later"].
        """
        trained, entries = self.manifest.get("trained", {}), self.manifest.get("stages", {})
        if "train" not in entries or "stages" not in trained:
            return self
        later = {
            name: entries[name]
            for name, entry in trained["stages"].items()
            if name in entries and entries[name]["key"] != entry["key"]
        }
        settings, now = self.trained_settings(), self.settings
        kept = {name: getattr(now, name) for name in INDEPENDENT}
        if not later:  # only where a moved model is, and other questions for the evaluation, can have changed
            places = {name: getattr(now.model, name) for name in ("path", "tokenizer", "visual_encoder")}
            kept["model"] = settings.model.model_copy(update=places)
            kept["data"] = settings.data.model_copy(update={"eval_files": now.data.eval_files})
        settings = settings.model_copy(update=kept)
        if settings == now and not later:
            return self
        manifest = {**self.manifest, "stages": {**entries, **trained["stages"]}, "later": later}
        manifest.update({name: trained[name] for name in ("forced", "host", "versions") if name in trained})
        return dataclasses.replace(self, settings=settings, manifest=manifest)

    def is_replaced(self, name: str) -> bool:
        """Whether a file of the training's data, plan or config is now that of a later command with other settings."""
        for stage, entry in self.manifest.get("later", {}).items():
            made, trained = (one["outputs"].get(name) for one in (entry, self.manifest["stages"][stage]))
            if made and trained and made["sha256"] != trained["sha256"]:
                return bool(digest(self.folder / name) == made["sha256"])
        return False

    def scratch_run(self, output: Path, **more: Any) -> "Run":
        """An empty run of the same name and settings below `output`, to make stages without touching this run."""
        made = dataclasses.replace(self, output=output, manifest={}, performed=[], status={}, **more)
        made.folder.mkdir(parents=True)
        return made

    def use_trained_settings(self) -> None:
        """Switch to the settings that the model was trained with."""
        if self.manifest:
            self.settings = self.trained_settings()

    def update_status(self, **more: Any) -> None:
        """Add `more` (stage, log, code …) to the status file that `just watch` reads."""
        if self.status:
            self.status.update(more, at=time.time())
            write_text(self.folder / ".now.json", json.dumps(self.status, ensure_ascii=False) + "\n")

    def save(self) -> None:
        """Write run.json."""
        made_by = self._recipe_file()
        if made_by:
            self.manifest["recipe_file"] = made_by
        self.manifest.update(
            recipe=self.name, settings=self.settings.model_dump(), forced=self.force, host=host(), versions=versions()
        )
        write_text(self.folder / "run.json", json.dumps(self.manifest, ensure_ascii=False, indent=1) + "\n")


def is_manifest(found: Any) -> bool:
    """Whether a run.json has the fields that stages and reports read, each of its type."""
    if not isinstance(found, dict) or not isinstance(found.get("stages"), dict):
        return False
    for entry in found["stages"].values():
        if not isinstance(entry, dict) or not set(entry) >= ENTRY_FIELDS:
            return False
        if not isinstance(entry["figures"], dict) or not isinstance(entry["outputs"], dict):
            return False
        if not all(isinstance(made, dict) and {"sha256", "stamp"} <= set(made) for made in entry["outputs"].values()):
            return False
    return isinstance(found.get("trained", {}), dict)


def manifest_error(path: str, error: Exception) -> InputWrong:
    """The error for a run.json that is damaged or has another version's fields."""
    first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return InputWrong(
        _(
            "{file} cannot be read ({error}): it is damaged, or from another version of this recipe. Rerun the command "
            "that made it.",
            file=path,
            error=first,
        )
    )


def is_locked(folder: Path) -> bool:
    """Whether a command holds the run's lock."""
    try:
        with FileLock(str(folder / ".lock"), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written
        return False
