"""Fetches the base model, or makes the tiny one; a cut download goes on where it stopped."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from filelock import FileLock, Timeout

from recipe.base_model import architecture, compatibility, hub, model_code
from recipe.base_model.folder import CLIP, INDEXES, SAMPLE, check, folder, has_own_code, is_ours, own_tokenizer, visual
from recipe.base_model.record import (
    RECORD,
    elsewhere,
    is_asked_for,
    is_untouched,
    read_record,
    save_record,
    staging_folder,
)
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong, NotFetched
from recipe.core.hashing import digest
from recipe.core.run import Run
from recipe.core.settings import Encoder
from recipe.xtuner import preset_facts

HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ot")  # weights, by any name


def visual_facts(run: Run) -> Path:
    """A folder with the visual encoder's settings; where it is not here yet, they alone are fetched."""
    seeing = visual(run)
    if is_ours(seeing):
        return ensure(seeing)
    return _fetch_light(seeing, staging_folder(seeing), read_record(staging_folder(seeing)))


def fetch_for_plan(run: Run) -> List[Tuple[str, Path]]:
    """(what, path) of all that a plan needs of models, fetched where it is not here: not their weights."""
    found = []
    if not (is_ours(run) or run.settings.model.tokenizer):
        found.append(("tokenizer", fetch_tokenizer(run)))
    if preset_facts.pictures(run.settings):
        found.append(("visual encoder", visual_facts(run)))
    return found


def fetch_tokenizer(run: Run) -> Path:
    """tokenizer.model and config.json alone, at the commit from which the weights will come; 1.5 MB. Of a family other
    than InternLM2, whose tokenizer's code is not ours, the folder of all files but the weights.
    """
    model = run.settings.model
    name = "tokenizer.model"
    place = staging_folder(run)
    record = read_record(place)
    if not has_own_code(run):
        return _fetch_light(run, place, record)
    names = [name, "config.json"]
    files = record["files"] if record and is_asked_for(model, record) else {}
    if not all(is_untouched(place, one, files.get(one, {})) for one in names):
        _may_fetch("tokenizer", run)
        with _alone(run):
            record = _pinned(run, place)
            if name not in record["files"]:
                raise InputWrong(
                    f"{model.id} has no {name}: name a tokenizer (model.tokenizer=…), or fetch the whole model first: "
                    f"{command_line('model')}."
                )
            _gather(run, place, record, [one for one in names if one in record["files"]])
        if not has_own_code(run):  # another family's model under an InternLM2 preset
            return _fetch_light(run, place, record)
    return place / name


def _fetch_light(run: Run, place: Path, record: Optional[Dict[str, Any]]) -> Path:
    """The folder with a model's files but its weights."""

    def missing(record: Dict[str, Any]) -> List[str]:
        light = (name for name in record["files"] if not name.endswith(HEAVY))
        return [name for name in light if not is_untouched(place, name, record["files"][name])]

    if record is None or not is_asked_for(run.settings.model, record) or missing(record):
        _may_fetch("tokenizer", run)
        with _alone(run):
            record = _pinned(run, place)
            _gather(run, place, record, missing(record))
    return place


def ensure(run: Run) -> Path:
    """The base model's folder, made or fetched if it is not there yet, and checked; fetched again is only what
    somebody removed from it. Raises InputWrong, HostLacks.
    """
    place, model = folder(run), run.settings.model
    if not place.exists() and model.path:
        raise InputWrong(f"{model.placed}: there is no folder {model.path}.")
    if not is_complete(run, place):
        _may_fetch("model", run)
        with _alone(run):
            if not is_complete(run, place):  # another command may have been quicker
                if model.source == "tiny":
                    _make_tiny(place, model.id, own_tokenizer(run))
                else:
                    _download(run, place)
    check(run, place)
    return place


def _may_fetch(what: str, run: Run) -> None:
    if os.environ.get("RECIPE_FETCH") == "no":
        seeing = isinstance(run.settings.model, Encoder)
        raise NotFetched(what, "visual encoder" if seeing else what)


def is_complete(run: Run, place: Path) -> bool:
    """Whether nothing has to be fetched: the folder is there, with all files of its record, if it has one."""
    record = read_record(place)
    if record is None or run.settings.model.path or not is_asked_for(run.settings.model, record):
        return place.exists()
    return all((place / name).is_file() for name in record["files"])


class _alone:
    """Holds models/, so that two commands do not fetch the same; says so if it has to wait."""

    def __init__(self, run: Run) -> None:
        self.run, self.lock = run, FileLock(str(run.models / ".lock"))

    def __enter__(self) -> None:
        try:
            self.run.models.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                print("Another command is fetching a model; waiting for it …", file=sys.stderr, flush=True)
                self.lock.acquire()
        except OSError as error:
            where, what = self.run.relative(self.run.models), self.run.settings.model.what
            raise HostLacks(
                f"The {what} is not in {where}, and nothing can be written there ({error.strerror}). Fetch it "
                f"first, where {where} is writable and there is a network: {command_line('model')}."
            )

    def __exit__(self, *_: Any) -> None:
        self.lock.release()


def _pinned(run: Run, place: Path) -> Dict[str, Any]:
    """The record of what is to be fetched; made once, so that all files come from one commit."""
    model, record = run.settings.model, read_record(place)
    if record is None or not is_asked_for(model, record):
        record = hub.resolve(model)
        if not any(name.endswith(HEAVY[:2]) for name in record["files"]):
            raise InputWrong(
                f"{model.id} holds no weights of PyTorch's (*.safetensors, *.bin) at {hub.NAMES[model.source]}. Check "
                f"{model.named}."
            )
        # One format of weights is enough, and twice 15 GB is not.
        if any(name.endswith(".safetensors") for name in record["files"]):
            record["files"] = {
                name: file
                for name, file in record["files"].items()
                if not name.endswith(HEAVY[1:]) and name != INDEXES[1]
            }
        else:  # CLIP's beside TensorFlow's and JAX's
            record["files"] = {name: file for name, file in record["files"].items() if not name.endswith(HEAVY[2:])}
        shutil.rmtree(str(place / RECORD.parent), ignore_errors=True)  # parts of another revision
        for path in place.rglob("*"):
            if path.is_file() and str(path.relative_to(place)) not in record["files"]:
                path.unlink()
        save_record(place, record)
    return record


def _gather(run: Run, place: Path, record: Dict[str, Any], names: List[str]) -> None:
    """Fetch those of `names` that are not there and checked yet; the record learns of each that is."""
    files = record["files"]

    def done(name: str) -> None:
        if (place / name).is_file():
            files[name]["time"] = (place / name).stat().st_mtime_ns
            save_record(place, record)

    todo = []
    for name in names:
        path = place / name
        if is_untouched(place, name, files[name]):
            continue
        if path.is_file() and files[name]["sha256"] and digest(path) == files[name]["sha256"]:
            done(name)  # of an earlier revision, or moved
            continue
        if path.exists():
            path.unlink()
        todo.append(name)
    with _progress(lambda: sum(hub.held(place, n) for n in names), sum(files[n]["size"] for n in names)) as show:
        hub.fetch(run.settings.model, files, todo, place, done, show)


def _download(run: Run, place: Path) -> None:
    """Fetch what the record names and models/<id> lacks. Small files come first: whether the code and the tokenizer
    fit this stack is known before the weights are paid for.
    """
    model, staging = run.settings.model, staging_folder(run)
    if place.exists():  # something was removed from it
        shutil.rmtree(str(staging), ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(place), str(staging))
    record = _pinned(run, staging)
    files = record["files"]
    missing = sum(max(0, file["size"] - hub.held(staging, name)) for name, file in files.items())
    free = shutil.disk_usage(str(run.models)).free
    if free < missing:
        raise HostLacks(
            f"{model.id} needs {missing / 1e9:.1f} GB more in {run.relative(run.models)}; {free / 1e9:.1f} GB are free."
        )
    light = [name for name in files if not name.endswith(HEAVY)]
    _gather(run, staging, record, light)
    try:
        at = f"{record['revision']} ({record['commit'][:12] or 'commit unknown'})"
        compatibility.check(staging, f"{model.id} at {at}", "", weights=False)
    except InputWrong as error:
        old = hub.of_its_day(model)
        day = f"{hub.STACK_DAY:%Y-%m-%d}"
        known = ", ".join(hub.revisions(model)[:12]) or "none by name"
        if model.source == "modelscope":
            known += '; Hugging Face dates its commits, and this message names one with model.source="huggingface"'
        remedy = (
            f"model.revision={old} is the newest from before {day}, the stack's day."
            if old
            else f"Name a revision from before {day}, model.revision=… (a tag or commit; the hub lists {known})."
        )
        raise InputWrong(f"{error} {remedy} Or name a folder that you have: model.path=…")
    _check_weights(run, staging, record)
    _gather(run, staging, record, [name for name in files if name not in light])
    record["fetched"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    save_record(staging, record)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(str(staging), str(place))


def _check_weights(run: Run, staging: Path, record: Dict[str, Any]) -> None:
    """Raise InputWrong unless the weights' names and shapes are those that our InternLM2 code wants: read from their
    index and from the first bytes of each safetensors file, before they are fetched. Once for each revision.
    """
    config = model_code.config_of(staging)
    if not architecture.is_internlm2(config) or record.get("weights") == "fit":
        return
    shown = f"{run.settings.model.id} at {record['revision']}"
    found: Dict[str, Optional[Sequence[int]]] = {}
    size = None
    for name in INDEXES:
        if (staging / name).is_file():
            found, size = compatibility.indexed(compatibility.read(staging / name))
            break
    for name, file in sorted(record["files"].items()):
        if name.endswith(".safetensors") and "/" not in name:
            stored = hub.safetensors_header(run.settings.model, name, file)
            lost = [one for one in stored if found and one not in found]
            if lost:
                raise InputWrong(f"{shown}: {name} holds {lost[0]}, which {INDEXES[0]} does not name. {elsewhere(run)}")
            found.update(stored)
    wrong = architecture.mismatches(config, found, size) if found else []
    if wrong:
        raise InputWrong(
            f"The weights of {shown} are not those of InternLM2 as config.json describes it: {'; '.join(wrong[:4])}. "
            f"They were not fetched. {elsewhere(run)}"
        )
    record["weights"] = "fit"
    save_record(staging, record)


class _progress:
    """Bytes that have arrived: a live bar on a terminal, elsewhere a line for every twentieth, after 5 s."""

    def __init__(self, held: Callable[[], int], total: int) -> None:
        from rich import progress

        self.held, self.total, self.began, self.said = held, total, time.monotonic(), 0
        columns = (
            progress.BarColumn,
            progress.DownloadColumn,
            progress.TransferSpeedColumn,
            progress.TimeRemainingColumn,
        )
        self.bar = progress.Progress(progress.TextColumn("  fetching"), *(made() for made in columns), transient=True)

    def __enter__(self) -> Callable[[], None]:
        self.first, self.live = self.held(), self.bar.console.is_terminal
        if self.live:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, completed=self.first)
        return self.show

    def show(self) -> None:
        now, took = self.held(), time.monotonic() - self.began
        if self.live:
            self.bar.update(self.task, completed=now)
        elif took > 5 and now * 20 // max(self.total, 1) > self.said:
            self.said = now * 20 // self.total
            rate = (now - self.first) / took
            left = f"{(self.total - now) / rate:.0f} s left" if rate else ""
            print(f"  fetching {now / 1e9:.2f} of {self.total / 1e9:.2f} GB, {rate / 1e6:.1f} MB/s, {left}", flush=True)

    def __exit__(self, *_: Any) -> None:
        if self.live:
            self.bar.stop()


def _make_tiny(place: Path, what: str, tokenizer_model: Optional[Path]) -> None:
    """A tiny InternLM2 with the given tokenizer, else with one trained on the sample workbook's text; a tiny CLIP."""
    from recipe.base_model import tiny
    from recipe.base_model.tiny import clip
    from recipe.intake import dataset

    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(str(part), ignore_errors=True)
    if what == CLIP:
        clip.make(part)
    else:
        texts = [text for turns in dataset.sample(SAMPLE) for turn in turns for text in turn.values()]
        tiny.make(part, texts, tokenizer_model=tokenizer_model)
    os.replace(str(part), str(place))


def commit(run: Run) -> str:
    """The commit of which a folder was fetched; "" where it was not."""
    return (read_record(folder(run)) or {"commit": ""})["commit"]
