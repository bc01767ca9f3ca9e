"""The base model's folder, and the tokenizer, which is enough for planning.

Only this stage uses the network. A download gathers in models/.download and is renamed to models/<id> when every
file is there and checked, so a folder there is always whole; a cut download goes on where it stopped. The folder's
record, .recipe/fetched.json, pins what was fetched: the commit behind the asked revision, and every file's size and
sha256. What is there is compared with it before each use: files that are untouched since (size, time) by that alone,
others by content.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from filelock import FileLock, Timeout

from recipe.base_model import architecture, compatibility, hub, model_code
from recipe.core.errors import HostLacks, InputWrong, NotFetched
from recipe.core.files import write_text
from recipe.core.hashing import digest, key_of
from recipe.core.recipe_files import ROOT
from recipe.core.run import Run
from recipe.core.settings import Encoder, Model
from recipe.xtuner import preset_facts

SAMPLE = ROOT / "data" / "workplace.xlsx"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
RECORD = Path(".recipe") / "fetched.json"
ORIGIN = ("source", "id", "revision", "commit", "fetched", "listed_by")  # of a record, what figures say
HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ot")  # weights, by any name
CLIP = "clip"  # what a tiny model is, if it is no InternLM2
COMMIT = 7  # characters of a commit that tell it


def folder(run: Run) -> Path:
    """Where the base model lies or will lie. A tiny one is named after what it is made of."""
    model = run.settings.model
    if model.path:
        return Path(model.path) if Path(model.path).is_absolute() else run.root / model.path
    if model.source != "tiny":
        return run.models / model.id
    if model.id == CLIP:
        return run.models / f"tiny-clip-{key_of({'maker': Path(__file__).parent / 'tiny' / 'clip.py'})[:8]}"
    made_of = {"maker": Path(__file__).parent / "tiny", "texts": SAMPLE, "tokenizer": _own_tokenizer(run)}
    return run.models / f"tiny-internlm2-{key_of(made_of)[:8]}"


def has_own_code(run: Run) -> bool:
    """Whether our own code loads the base model: by its config.json, or while that is not here by its preset."""
    for place in (folder(run), _staging(run)):
        if model_code.config_of(place):
            return model_code.is_ours(place)
    return preset_facts.is_internlm2(run.settings.base)


def visual(run: Run) -> Run:
    """The run with the visual encoder in the model's place, for what this module does with a model: LLaVA's."""
    name, source = run.settings.model.visual_encoder, run.settings.model.source
    if name == "tiny":
        chosen = Encoder(source="tiny", id=CLIP)
    elif name.startswith(("/", ".")) or (run.root / name).is_dir():
        chosen = Encoder(path=name)
    else:
        chosen = Encoder(source="modelscope" if source == "modelscope" else "huggingface", id=name)
    return dataclasses.replace(run, settings=run.settings.model_copy(update={"model": chosen}))


def visual_facts(run: Run) -> Path:
    """A folder with the visual encoder's settings; where it is not here yet, they alone are fetched."""
    seeing = visual(run)
    if _is_ours(seeing):
        return ensure(seeing)
    return _fetch_light(seeing, _staging(seeing), _record(_staging(seeing)))


def _is_ours(run: Run) -> bool:
    """Whether nothing of the model has to be asked of a hub."""
    model = run.settings.model
    return model.source == "tiny" or bool(model.path) or folder(run).exists()


def fetch_for_plan(run: Run) -> List[Tuple[str, Path]]:
    """(what, path) of all that a plan needs of models, fetched where it is not here: not their weights."""
    found = []
    if not (_is_ours(run) or run.settings.model.tokenizer):
        found.append(("tokenizer", fetch_tokenizer(run)))
    if preset_facts.pictures(run.settings):
        found.append(("visual encoder", visual_facts(run)))
    return found


def _own_tokenizer(run: Run) -> Optional[Path]:
    """The tokenizer.model named by the recipe, which a tiny model then takes instead of training one."""
    given = run.settings.model.tokenizer
    return Path(given) if given else None


def tokenizer(run: Run) -> Any:
    """The recipe's tokenizer, without weights: model.tokenizer (a folder or a tokenizer.model), else the
    base model's folder, else tokenizer.model alone is fetched. Raises InputWrong, HostLacks.
    """
    from recipe.base_model.tiny import tokenizer_from_model

    given = run.settings.model.tokenizer
    place = Path(given) if given else folder(run)
    if given and not place.exists():
        raise InputWrong(f"model.tokenizer: there is no {given}. Name a folder or a tokenizer.model file.")
    if not given and place.exists():
        _agrees(run, place)
    if not place.exists():
        if run.settings.model.source == "tiny" or run.settings.model.path:
            ensure(run)
        else:
            place = fetch_tokenizer(run)
    try:
        if place.is_file():
            return tokenizer_from_model(place)
        return preset_facts.tokenizer(run.settings, place, padding_side="right")
    except Exception as error:  # sentencepiece, tokenizers and remote code raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputWrong(
            f"{run.shown(place)} is no tokenizer ({reason[:200]}). model.tokenizer takes a tokenizer.model file or a "
            f"folder with one, model.path a whole model folder."
        )


def tokenizer_file(place: Path) -> Path:
    """The file that tells one tokenizer from another, of those that a model folder may have."""
    known = (place / name for name in ("tokenizer.model", "tokenizer.json", "qwen.tiktoken", "vocab.json"))
    return next((path for path in known if path.is_file()), place / "tokenizer.model")


def fetch_tokenizer(run: Run) -> Path:
    """tokenizer.model and config.json alone, at the commit from which the weights will come; 1.5 MB. Of a family other
    than InternLM2, whose tokenizer's code is not ours, the folder of all files but the weights.
    """
    model = run.settings.model
    name = "tokenizer.model"
    place = _staging(run)
    record = _record(place)
    if not has_own_code(run):
        return _fetch_light(run, place, record)
    names = [name, "config.json"]
    files = record["files"] if record and _asked(model, record) else {}
    if not all(_untouched(place, one, files.get(one, {})) for one in names):
        _may_fetch("tokenizer", run)
        with _alone(run):
            record = _pinned(run, place)
            if name not in record["files"]:
                raise InputWrong(
                    f"{model.id} has no {name}: name a tokenizer (model.tokenizer=…), or fetch the whole model first: "
                    f"just model."
                )
            _gather(run, place, record, [one for one in names if one in record["files"]])
        if not has_own_code(run):  # another family's model under an InternLM2 preset
            return _fetch_light(run, place, record)
    return place / name


def _fetch_light(run: Run, place: Path, record: Optional[Dict[str, Any]]) -> Path:
    """The folder with a model's files but its weights."""

    def missing(record: Dict[str, Any]) -> List[str]:
        light = (name for name in record["files"] if not name.endswith(HEAVY))
        return [name for name in light if not _untouched(place, name, record["files"][name])]

    if record is None or not _asked(run.settings.model, record) or missing(record):
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
    if not _whole(run, place):
        _may_fetch("model", run)
        with _alone(run):
            if not _whole(run, place):  # another command may have been quicker
                if model.source == "tiny":
                    _make_tiny(place, model.id, _own_tokenizer(run))
                else:
                    _download(run, place)
    check(run, place)
    return place


def _may_fetch(what: str, run: Run) -> None:
    if os.environ.get("RECIPE_FETCH") == "no":
        seeing = isinstance(run.settings.model, Encoder)
        raise NotFetched(what, "visual encoder" if seeing else what)


def _whole(run: Run, place: Path) -> bool:
    """Whether nothing has to be fetched: the folder is there, with all files of its record, if it has one."""
    record = _record(place)
    if record is None or run.settings.model.path or not _asked(run.settings.model, record):
        return place.exists()
    return all((place / name).is_file() for name in record["files"])


def check(run: Run, place: Path) -> None:
    """Raise unless `place` is a whole model folder, the one that was asked for, as it was fetched, and fit for
    this stack. Writes nothing but new times into the record, where it can.
    """
    shown = run.shown(place)
    _agrees(run, place)
    complete(place, shown)
    record = _record(place)
    if record:
        _verify(place, shown, record, run.verify, run.settings.model.placed)
    elif run.verify:
        raise InputWrong(
            f"--verify: {shown} was not fetched by `just model`, so there are no checksums to compare with."
        )
    compatibility.check(place, shown, _elsewhere(run))


def complete(place: Path, shown: str) -> None:
    """Raise HostLacks unless `place` holds a config and every weight file that its index names."""
    if not place.is_dir():
        raise HostLacks(f"The base model is not here: there is no {shown}. Fetch it first: just model.")
    if not (place / "config.json").is_file():
        raise HostLacks(f"{shown} holds no config.json: it is not a model folder.")
    listed, told = index(place, shown)
    names = set(told.values()) if listed else {p.name for p in weights(place)}
    missing = sorted(name for name in names if not (place / name).is_file() or not (place / name).stat().st_size)
    if missing or not names:
        what = ", ".join(missing) or "any weights (*.safetensors, pytorch_model*.bin)"
        raise HostLacks(f"{shown} lacks {what}. Remove what is left of it and fetch it again: just model.")


def index(place: Path, shown: str) -> Tuple[str, Dict[str, str]]:
    """(name, {weight: file}) of a model folder's index; ("", {}) if it has none. Raises HostLacks if it is damaged."""
    for name in INDEXES:
        if (place / name).is_file():
            try:
                told = dict(json.loads((place / name).read_text(encoding="utf-8"))["weight_map"])
                set(told.values())  # names, or it raises
                return name, told
            except (ValueError, KeyError, TypeError):
                raise HostLacks(f"{shown}/{name} is damaged. Remove it and fetch it again: just model.")
    return "", {}


def weights(place: Path) -> Iterable[Path]:
    """Weight files of a model folder: safetensors if there are any, else PyTorch's."""
    return sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))


def fingerprint(place: Path) -> Dict[str, str]:
    """What identifies a model folder: each file's sha256; of weights without a record, of size and samples.

    Hashing 15 GB before every stage would take longer than most stages.
    """
    complete(place, str(place))
    files = (_record(place) or {"files": {}})["files"]
    heavy = {p.name for p in weights(place)}
    found = {}
    for path in sorted(p for p in place.iterdir() if p.is_file()):
        if _untouched(place, path.name, files.get(path.name, {})):
            found[path.name] = files[path.name]["sha256"]
        else:
            found[path.name] = _sampled(path) if path.name in heavy and path.name not in files else digest(path)
    return found


def _sampled(path: Path, samples: int = 16, length: int = 1 << 16) -> str:
    """sha256 of a file's size and of `samples` evenly spread pieces of `length` bytes, first and last included."""
    size = path.stat().st_size
    total = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for number in range(samples):
            stream.seek(max(0, size - length) * number // (samples - 1))
            total.update(stream.read(length))
    return total.hexdigest()


def _record(place: Path) -> Optional[Dict[str, Any]]:
    """What was fetched into a folder; None where that is not known."""
    try:
        found = json.loads((place / RECORD).read_text(encoding="utf-8"))
        return found if {"source", "id", "revision", "commit", "files"} <= set(found) else None
    except (OSError, ValueError, TypeError):
        return None


def _save(place: Path, record: Dict[str, Any]) -> None:
    (place / RECORD).parent.mkdir(parents=True, exist_ok=True)
    write_text(place / RECORD, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _untouched(place: Path, name: str, file: Dict[str, Any]) -> bool:
    """Whether a file has the size and time with which its sha256 was taken."""
    path = place / name
    return "time" in file and path.is_file() and [path.stat().st_size, path.stat().st_mtime_ns] == [
        file["size"], file["time"],
    ]  # fmt: skip


def _asked(model: Model, record: Dict[str, Any]) -> bool:
    """Whether the record is of what the recipe asks for: the same words, or the commit they once meant."""
    wanted = hub.branch(model)
    return (model.source, model.id) == (record["source"], record["id"]) and (
        wanted == record["revision"] or (len(wanted) >= COMMIT and record["commit"].startswith(wanted))
    )


def _agrees(run: Run, place: Path) -> None:
    """Raise InputWrong if the folder holds another revision, or comes from another hub, than the recipe asks for."""
    model, record = run.settings.model, _record(place)
    if record is None or model.path or model.source == "tiny" or _asked(model, record):
        return
    shown = run.shown(place)
    raise InputWrong(
        f"{shown} holds revision {record['revision']} (commit {record['commit'][:12] or 'unknown'}) from "
        f"{hub.NAMES[record['source']]}; the recipe asks for {hub.branch(model)} from {hub.NAMES[model.source]}. "
        f"Rename the folder to keep both ({model.placed}=… names the renamed one), or remove it; then: just model."
    )


def _verify(place: Path, shown: str, record: Dict[str, Any], everything: bool, placed: str) -> None:
    """Compare a folder with its record; raises HostLacks. Content is read where size or time changed, or always.

    `placed`: the setting that names a folder.
    """
    changed, restamped = [], False
    for name, file in record["files"].items():
        path = place / name
        if not path.is_file():
            raise HostLacks(f"{shown} lacks {name}. To fetch it again: just model.")
        if not everything and _untouched(place, name, file):
            continue
        if path.stat().st_size != file["size"] or digest(path) != file["sha256"]:
            changed.append(name)
        else:
            restamped = restamped or not _untouched(place, name, file)
            file["time"] = path.stat().st_mtime_ns
    if changed:
        raise HostLacks(
            f"{', '.join(changed)} in {shown}: not what was fetched (sha256 differs). Remove "
            f"{'it' if len(changed) == 1 else 'them'} and type just model, which fetches no more than that; to keep a "
            f"change of your own, rename the folder, remove {RECORD} in it, and name it: {placed}=…"
        )
    if restamped:
        with contextlib.suppress(OSError):  # read-only: the content is right, it will be read again next time
            _save(place, record)


def _staging(run: Run) -> Path:
    return run.models / ".download" / run.settings.model.source / run.settings.model.id


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
            where, what = self.run.shown(self.run.models), self.run.settings.model.what
            raise HostLacks(
                f"The {what} is not in {where}, and nothing can be written there ({error.strerror}). Fetch it "
                f"first, where {where} is writable and there is a network: just model."
            )

    def __exit__(self, *_: Any) -> None:
        self.lock.release()


def _pinned(run: Run, place: Path) -> Dict[str, Any]:
    """The record of what is to be fetched; made once, so that all files come from one commit."""
    model, record = run.settings.model, _record(place)
    if record is None or not _asked(model, record):
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
        _save(place, record)
    return record


def _gather(run: Run, place: Path, record: Dict[str, Any], names: List[str]) -> None:
    """Fetch those of `names` that are not there and checked yet; the record learns of each that is."""
    files = record["files"]

    def done(name: str) -> None:
        if (place / name).is_file():
            files[name]["time"] = (place / name).stat().st_mtime_ns
            _save(place, record)

    todo = []
    for name in names:
        path = place / name
        if _untouched(place, name, files[name]):
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
    model, staging = run.settings.model, _staging(run)
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
            f"{model.id} needs {missing / 1e9:.1f} GB more in {run.shown(run.models)}; {free / 1e9:.1f} GB are free."
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
    _save(staging, record)
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
                raise InputWrong(
                    f"{shown}: {name} holds {lost[0]}, which {INDEXES[0]} does not name. {_elsewhere(run)}"
                )
            found.update(stored)
    wrong = architecture.mismatches(config, found, size) if found else []
    if wrong:
        raise InputWrong(
            f"The weights of {shown} are not those of InternLM2 as config.json describes it: {'; '.join(wrong[:4])}. "
            f"They were not fetched. {_elsewhere(run)}"
        )
    record["weights"] = "fit"
    _save(staging, record)


def _elsewhere(run: Run) -> str:
    return f"Take another revision (model.revision=…) or a folder that you have ({run.settings.model.placed}=…)."


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


def _commit(run: Run) -> str:
    """The commit of which a folder was fetched; "" where it was not."""
    return (_record(folder(run)) or {"commit": ""})["commit"]


def reads(run: Run) -> Dict[str, Any]:
    return {"settings": run.settings.model.model_dump()}


def work(run: Run, out: Path) -> Dict[str, Any]:
    """Make sure of the base model. Figures: its folder, files, bytes, and what its record says of its origin."""
    place = ensure(run)
    seeing = visual(run) if preset_facts.pictures(run.settings) else None
    sizes = [p.stat().st_size for p in place.iterdir() if p.is_file()]
    record, model = _record(place), run.settings.model
    return {
        "folder": run.shown(place),
        "files": len(sizes),
        "bytes": sum(sizes),
        "fingerprint": fingerprint(place),
        **({"visual_encoder": fingerprint(ensure(seeing)), "visual_encoder_commit": _commit(seeing)} if seeing else {}),
        **{name: (record or {}).get(name, "") for name in ORIGIN},
        "code": model_code.describe(place),
        "verified": run.verify,
        "unknown_revision": record is None and not model.path and model.source != "tiny",
    }
