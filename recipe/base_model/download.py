"""Downloads the base model, or makes a small one; an interrupted download continues where it stopped."""

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from filelock import FileLock, Timeout

from recipe.base_model import architecture, compatibility, hub, hub_clients, hub_files, model_code
from recipe.base_model.folder import CLIP, SAMPLE, check, folder, given_tokenizer
from recipe.base_model.hub_addresses import INDEXES, NAMES, Files, branch
from recipe.base_model.record import (
    RECORD,
    at_hub,
    chosen,
    describe_file,
    elsewhere,
    hubs,
    is_of,
    is_unchanged,
    read_record,
    save_record,
    staging_folder,
)
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, InputWrong, NotFetched, RecipeError, reason
from recipe.core.hashing import digest
from recipe.core.progress import transfer_progress
from recipe.core.run import Run
from recipe.core.settings import Encoder
from recipe.core.translation import _, english, listed, sentences, stored

HEAVY = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ot")  # weights in any format


def ensure(run: Run) -> Path:
    """The base model's folder, checked; made or downloaded first if it or one of its files is missing.

    Raises InputWrong, HostLacks.
    """
    place, model = folder(run), run.settings.model
    if not place.exists() and model.path:
        raise InputWrong(_("{setting}: there is no folder {folder}.", setting=model.placed, folder=model.path))
    if not _is_complete(run, place):
        _require_network("model", run)
        with _models_lock(run):
            if not _is_complete(run, folder(run)):  # another command may have completed it
                if model.is_made:
                    _make(run, place)
                else:
                    _download(_at_first_hub(run))
    check(run, folder(run))
    return folder(run)


def commit(run: Run) -> str:
    """The commit that the base model's folder was downloaded from; "" if it was not downloaded."""
    return (read_record(folder(run)) or {"commit": ""})["commit"]


def light_files(files: Files) -> List[str]:
    """The names of all files but the weights."""
    return [name for name in files if not name.endswith(HEAVY)]


def download_files(run: Run, select: Callable[[Files], List[str]]) -> Path:
    """The staging folder, with those of the revision's files that `select` picks by name; downloads missing ones."""
    place = staging_folder(run)
    record = read_record(place)
    if (
        record is None
        or not is_of(chosen(run), record)
        or not all(is_unchanged(place, name, record["files"][name]) for name in select(record["files"]))
    ):
        _require_network("tokenizer", run)
        with _models_lock(run):
            run = _at_first_hub(run)
            place = staging_folder(run)
            record = _resolve_once(run, place)
            _download_missing(run, place, record, select(record["files"]))
    return place


def _require_network(what: str, run: Run) -> None:
    if os.environ.get("RECIPE_FETCH") == "no":
        raise NotFetched(what, "visual encoder" if isinstance(run.settings.model, Encoder) else what)


def _what(run: Run) -> str:
    return _("visual encoder") if isinstance(run.settings.model, Encoder) else _("base model")


def _is_complete(run: Run, place: Path) -> bool:
    """Whether nothing has to be downloaded: the folder exists, with all files of its record, if it has one."""
    record = read_record(place)
    if record is None or run.settings.model.path or not is_of(chosen(run), record):
        return place.exists()
    return all((place / name).is_file() for name in record["files"])


@contextlib.contextmanager
def _models_lock(run: Run) -> Iterator[None]:
    """Locks models/, so that two commands do not download the same files."""
    lock = FileLock(str(run.models / ".lock"))
    try:
        run.models.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(_("Another command is fetching a model; waiting for it …"), file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise HostLacks(
            _(
                "The {what} is not in {folder}, and nothing can be written there ({reason}). Fetch it first, where "
                "{folder} is writable and there is a network: {command}.",
                what=_what(run),
                folder=run.relative(run.models),
                reason=reason(error),
                command=command_line("model"),
            )
        )
    try:
        yield
    finally:
        lock.release()


def _at_first_hub(run: Run) -> Run:
    """The run with its model at the first hub that has it, or at the one whose download has begun. Says which hubs do
    not, and why. Raises RecipeError if none has.
    """
    first = chosen(run)
    models = [first, *(model for model in hubs(run.settings.model) if model.source != first.source)]
    failed: List[RecipeError] = []
    for model in models:
        trial = at_hub(run, model)
        if folder(trial).exists():  # a file of it is missing
            return trial
        try:
            with english():  # it is recorded why another hub was taken
                record = _resolve_once(trial, staging_folder(trial))
        except RecipeError as error:
            failed.append(error)
            continue
        if failed:
            why = str(failed[0]).split(". ")[0]
            taken = _(
                "{problem}. Taking {hub}: {model} at {revision}",
                problem=stored(why),
                hub=NAMES[model.source],
                model=model.id,
                revision=branch(model)[:12],
            )
            print(taken, file=sys.stderr)
            save_record(staging_folder(trial), {**record, "instead_of": why})
        return trial
    for one in failed:
        one.args = (stored(str(one)),)
    if len(failed) == 1:
        raise failed[0]
    reasons = "\n".join(f"- {error}" for error in failed)
    kind = HostLacks if any(isinstance(error, HostLacks) for error in failed) else InputWrong
    raise kind(_("No hub has the {what} for this recipe:\n{reasons}", what=_what(run), reasons=reasons))


def _resolve_once(run: Run, place: Path) -> Dict[str, Any]:
    """The record of what to download. It is kept, so that all files come from one commit."""
    model, record = run.settings.model, read_record(place)
    if record is not None and is_of(model, record):
        return record
    record = hub.resolve(model)
    files = record["files"]
    if not any(name.endswith(HEAVY[:2]) for name in files):
        problem = _(
            "{model} holds no PyTorch weights (*.safetensors, *.bin) at {hub}",
            model=model.id,
            hub=NAMES[model.source],
        )
        raise InputWrong(_("{problem}. Check {setting}.", problem=problem, setting=model.named))
    if any(name.endswith(".safetensors") for name in files):  # one format is enough
        unused: Sequence[str] = (*HEAVY[1:], INDEXES[1])
    else:  # CLIP's .bin comes with TensorFlow's and JAX's weights
        unused = HEAVY[2:]
    record["files"] = {name: file for name, file in files.items() if not name.endswith(tuple(unused))}
    shutil.rmtree(str(place / RECORD.parent), ignore_errors=True)  # partial files of another revision
    for path in place.rglob("*"):
        if path.is_file() and str(path.relative_to(place)) not in record["files"]:
            path.unlink()
    save_record(place, record)
    return record


def _download_missing(run: Run, place: Path, record: Dict[str, Any], names: List[str]) -> None:
    """Download those of `names` that are missing or changed; the record notes each one that is complete."""
    files = record["files"]

    def on_file(name: str) -> None:
        if (place / name).is_file():
            files[name]["time"] = (place / name).stat().st_mtime_ns
            save_record(place, record)

    missing = []
    for name in names:
        path = place / name
        if is_unchanged(place, name, files[name]):
            continue
        if path.is_file() and files[name]["sha256"] and digest(path) == files[name]["sha256"]:
            on_file(name)  # from an earlier revision, or moved here
            continue
        if path.exists():
            path.unlink()
        missing.append(name)
    total = sum(files[name]["size"] for name in names)
    with transfer_progress() as show:

        def show_all() -> None:
            show(sum(hub_files.downloaded_bytes(place, name) for name in names), total)

        show_all()
        hub_files.download(run.settings.model, files, missing, place, on_file, show_all)


def _download(run: Run) -> None:
    """Download what the model's folder lacks. Small files come first: code, tokenizer and the weights' shapes are
    checked before the weights are downloaded.
    """
    place, staging = folder(run), staging_folder(run)
    if place.exists():  # somebody removed files from it
        shutil.rmtree(str(staging), ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(place), str(staging))
    record = _resolve_once(run, staging)
    files = record["files"]
    _link_known_weights(run, staging, record)
    _check_space(run, staging, files)
    light = light_files(files)
    _download_missing(run, staging, record, light)
    _check_code(run, staging, record)
    _check_weights(run, staging, record)
    _download_missing(run, staging, record, [name for name in files if name not in light])
    record["fetched"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    save_record(staging, record)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(str(staging), str(place))


def _link_known_weights(run: Run, staging: Path, record: Dict[str, Any]) -> None:
    """Hard-link weights that another download below models/ holds, by their sha256: two hubs have many in common."""
    known: Dict[str, Path] = {}
    for kind in ("*/*", ".download/*/*/*"):
        for path in run.models.glob(f"{kind}/{RECORD}"):
            place = path.parent.parent
            files = (read_record(place) or {"files": {}})["files"]
            known.update(
                {file["sha256"]: place / name for name, file in files.items() if is_unchanged(place, name, file)}
            )
    for name, file in record["files"].items():
        if name.endswith(HEAVY) and file["sha256"] in known and not (staging / name).exists():
            with contextlib.suppress(OSError):  # a file system without hard links
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(str(known[file["sha256"]]), str(staging / name))
                file["time"] = (staging / name).stat().st_mtime_ns
    save_record(staging, record)


def _check_space(run: Run, staging: Path, files: Files) -> None:
    missing = sum(max(0, file["size"] - hub_files.downloaded_bytes(staging, name)) for name, file in files.items())
    free = shutil.disk_usage(str(run.models)).free
    if free < missing:
        raise HostLacks(
            _(
                "{model} needs {missing:.1f} GB more in {folder}; {free:.1f} GB are free.",
                model=run.settings.model.id,
                missing=missing / 1e9,
                folder=run.relative(run.models),
                free=free / 1e9,
            )
        )


def _check_code(run: Run, staging: Path, record: Dict[str, Any]) -> None:
    """Raise InputWrong, with a revision that may work, unless code and tokenizer are compatible with this stack."""
    model = run.settings.model
    try:
        at = f"{record['revision']} ({record['commit'][:12] or _('commit unknown')})"
        shown = _at(model.id, at)
        compatibility.check(staging, shown, "", weights=False)
    except InputWrong as error:
        older = hub_clients.latest_compatible_revision(model)
        day = f"{hub_clients.STACK_DAY:%Y-%m-%d}"
        known = listed(hub_clients.revisions(model)[:12]) or _("none by name")
        if older:
            remedy = _(
                "The newest one from before {day}, this stack's date, is model.revision={revision}.",
                day=day,
                revision=older,
            )
        elif model.source == "modelscope":
            remedy = _(
                "Name a revision from before {day}, model.revision=… (a tag or commit; the hub lists {known}; Hugging "
                'Face dates its commits, and this message names one with model.source="huggingface").',
                day=day,
                known=known,
            )
        else:
            remedy = _(
                "Name a revision from before {day}, model.revision=… (a tag or commit; the hub lists {known}).",
                day=day,
                known=known,
            )
        raise InputWrong(sentences(str(error), remedy, _("Or use a local folder: model.path=…")))


def _at(model: str, revision: str) -> str:
    # With % because `stored` would find "{model} at {revision}" in any text
    return _("%(model)s at %(revision)s") % {"model": model, "revision": revision}


def _check_weights(run: Run, staging: Path, record: Dict[str, Any]) -> None:
    """Raise InputWrong unless the weights have the names and shapes that our InternLM2 code expects, by their index and
    the header of each safetensors file. Done once for each revision.
    """
    config = model_code.read_config(staging)
    if not architecture.is_internlm2(config) or record.get("weights") == "fit":
        return
    shown = _at(run.settings.model.id, record["revision"])
    found: Dict[str, Optional[Sequence[int]]] = {}
    size = None
    index = next((staging / name for name in INDEXES if (staging / name).is_file()), None)
    if index:
        found, size = compatibility.read_index(index)
    for name, file in sorted(record["files"].items()):
        if name.endswith(".safetensors") and "/" not in name:
            shapes = hub.safetensors_header(run.settings.model, name, file)
            unlisted = [weight for weight in shapes if found and weight not in found]
            if unlisted:
                problem = _(
                    "{model}: {file} contains {weight}, which {index} does not list.",
                    model=shown,
                    file=name,
                    weight=unlisted[0],
                    index=INDEXES[0],
                )
                raise InputWrong(sentences(problem, elsewhere(run)))
            found.update(shapes)
    wrong = architecture.mismatches(config, found, size) if found else []
    if wrong:
        problem = _(
            "The weights of {model} do not match the InternLM2 in config.json: {reasons}. They were not fetched.",
            model=shown,
            reasons=compatibility.parts(wrong[:4]),
        )
        raise InputWrong(sentences(problem, elsewhere(run)))
    record["weights"] = "fit"
    save_record(staging, record)


def _make(run: Run, place: Path) -> None:
    """Make SmolLM2, a tiny CLIP, or a tiny InternLM2 (its tokenizer is given, or trained on the sample workbook)."""
    from recipe.base_model import smollm2, tiny
    from recipe.base_model.tiny import clip
    from recipe.intake import dataset

    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(str(part), ignore_errors=True)
    if run.settings.model.source == "smollm2":
        record = smollm2.make(part)
        save_record(part, {**record, "files": {path.name: describe_file(path) for path in sorted(part.iterdir())}})
        shutil.rmtree(str(place), ignore_errors=True)  # one that lost a file
    elif run.settings.model.id == CLIP:
        clip.make(part)
    else:
        texts = [text for turns in dataset.sample(SAMPLE) for turn in turns for text in turn.values()]
        tiny.make(part, texts, tokenizer_model=given_tokenizer(run))
    os.replace(str(part), str(place))
