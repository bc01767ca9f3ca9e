"""Checks a finished run against its manifest (`just verify`). Recreates files in a scratch folder only.

Every check is ok, differs, or not here (it cannot run on this machine).
"""

import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Set, Tuple

from recipe.base_model import folder, visual_encoder
from recipe.core.errors import HostLacks, InputWrong, NotFetched, RecipeError
from recipe.core.hashing import below, digest, digest_of, sums
from recipe.core.host import host, versions
from recipe.core.run import Run, is_locked
from recipe.core.stage import perform
from recipe.intake.images import image_folder
from recipe.reporting import run_view
from recipe.stages import train
from recipe.stages.config import STAGE as CONFIG
from recipe.stages.data import STAGE as DATA
from recipe.stages.plan import STAGE as PLAN
from recipe.training import checkpoints, log_lines
from recipe.weights import adapter, llava, merge
from recipe.weights.merge_check import check_weights
from recipe.weights.merge_plan import CHECKSUMS
from recipe.xtuner import config, preset_facts

OK, DIFFERS, NOT_HERE = "ok", "differs", "not here"
MADE_SINCE = "a later command has replaced the training's own"


class Check(NamedTuple):
    name: str
    verdict: str
    detail: str


def check_run(run: Run, scratch: Path) -> Iterator[Check]:
    """Yield the checks of a finished run. Recreates files in `scratch`, an empty folder.

    Raises InputWrong while a command is running in the run's folder.
    """
    if is_locked(run.folder):
        raise InputWrong(f"A command is running in {run.relative(run.folder)}. Verify the run when it has ended.")
    os.environ["RECIPE_FETCH"] = "no"  # no downloads, no changes in models/
    entries = run.manifest["stages"]
    for entry in entries.values():
        for name, made in entry["outputs"].items():
            if run.is_replaced(name):
                yield Check(name, NOT_HERE, MADE_SINCE)
            else:
                yield _check_output(run.folder / name, name, made)
    checks: List[Tuple[str, str, Callable[[], Tuple[str, str]]]] = [
        ("model", "base model", lambda: _check_model(run, folder.folder(run), "fingerprint")),
        ("train", "checkpoint", lambda: _check_checkpoint(run)),
        ("train", "train.log", lambda: _check_log(run)),
        ("adapter", "adapter, recreated", lambda: _check_adapter(run, scratch / "adapter")),
        ("merge", "merged model minus base", lambda: _check_merged(run)),
    ]
    if preset_facts.has_images(run.settings):
        encoder = visual_encoder.encoder_folder(run)
        checks.insert(1, ("model", "visual encoder", lambda: _check_model(run, encoder, "visual_encoder")))
        if run.figures("train").get("pretrained_pth", llava.NONE) != llava.NONE:
            checks.insert(2, ("train", "first stage's projector", lambda: _check_pretrained(run)))
    yield from _remake(run, scratch)
    for stage, what, examine in checks:
        if stage in entries:
            yield _run_check(what, examine)
    yield from _check_machine(run)


def _run_check(what: str, examine: Callable[[], Tuple[str, str]]) -> Check:
    try:
        return Check(what, *examine())
    except NotFetched:
        return Check(what, NOT_HERE, "needs a model that is not downloaded; verify downloads nothing")
    except HostLacks as error:
        return Check(what, NOT_HERE, str(error))
    except (RecipeError, OSError, LookupError, ValueError) as error:
        return Check(what, DIFFERS, str(error) or type(error).__name__)


def _check_output(path: Path, name: str, made: Dict[str, Any]) -> Check:
    if not path.exists():
        return Check(name, NOT_HERE, "deleted")
    now = sums(path) if path.is_dir() else {}
    found, wanted = digest_of(now) if now else digest(path), made["sha256"]
    if found == wanted:
        return Check(name, OK, f"sha256 {wanted[:12]}…")
    worse = ", ".join(_changed_files(now, made.get("files") or _recorded_checksums(path, wanted)))
    return Check(name, DIFFERS, f"sha256 {found[:12]}…, was {wanted[:12]}…{f': {worse}' if worse else ''}")


def _changed_files(now: Dict[str, str], then: Dict[str, str]) -> List[str]:
    """Names of changed, deleted and new files; none if the former checksums are unknown."""
    return sorted(name for name in {*now, *then} if now.get(name) != then.get(name)) if then else []


def _recorded_checksums(folder: Path, wanted: str) -> Dict[str, str]:
    """The checksums stored in a merged model's folder. If they changed too, marks that file as the changed one."""
    try:
        found = merge.read_checksums(folder)
    except (OSError, ValueError):
        return {}
    if digest_of(found) != wanted:  # the manifest has another checksum for this file
        found = {**sums(folder), CHECKSUMS: "another"}
    return found


def _remake(run: Run, scratch: Path) -> Iterator[Check]:
    """Recreate data, plan and config with the same stages, as a run of the same name in `scratch`."""
    shadow = run.scratch_run(scratch, force=bool(run.manifest.get("forced")))
    if "seed" in run.figures("plan"):  # it was random
        (shadow.folder / "seed").write_text(str(run.figures("plan")["seed"]), encoding="utf-8")
    obstacle = ""
    for stage in (DATA, PLAN, CONFIG):
        if stage.name not in run.manifest["stages"]:
            return
        data_settings = run.settings.data
        given = {DATA: [*data_settings.files, data_settings.images], CONFIG: _pretrained_path(run)}.get(stage, [])
        gone = [name for name in given if not (run.root / name).exists()]
        if gone:
            obstacle = obstacle or f"{', '.join(gone)}: missing"
        elif stage is DATA and preset_facts.has_images(run.settings):
            line = _run_check("images", lambda: _check_images(run))
            obstacle = "" if line.verdict == OK else "needs the original images"
            yield line
        line = Check(f"{stage.name}, recreated", NOT_HERE, obstacle)
        if not obstacle:
            line = _run_check(line.name, lambda stage=stage: _compare(run, shadow, stage))  # type: ignore[misc]
            obstacle = "" if line.verdict == OK else f"needs the recreated {stage.name}"
        yield line


def _compare(run: Run, shadow: Run, stage: Any) -> Tuple[str, str]:
    perform(shadow, stage)
    for name in stage.outputs:
        mine, again = run.folder / name, shadow.folder / name
        if stage is DATA:
            if digest(again) != run.manifest["stages"]["data"]["outputs"][name]["sha256"]:
                return DIFFERS, f"{name} differs when recreated from {', '.join(run.settings.data.files)}"
        elif not mine.exists():
            return NOT_HERE, f"{name} was deleted"
        elif run.is_replaced(name):
            if stage is not PLAN:
                return NOT_HERE, MADE_SINCE
            figures = {key: value for key, value in _comparable_text(again).items() if key in run.figures("plan")}
            recorded = {key: value for key, value in run.figures("plan").items() if key != "cost"}
            if figures != recorded:
                return DIFFERS, "the figures of the training's plan differ when recreated"
        elif _comparable_text(mine) != _comparable_text(again):
            if stage.name in run_view.stale_stages(run):
                return DIFFERS, f"{name} is older than the data and belongs to other data or settings"
            return DIFFERS, f"{name} differs when recreated with this version of the recipe on this machine"
    return OK, f"{', '.join(stage.outputs)}: equal"


def _pretrained_path(run: Run) -> List[str]:
    """The first stage's run or checkpoint, if the recipe names one."""
    named = run.settings.model.pretrained_pth
    return [] if named in ("", llava.NONE) else [named]


def _check_images(run: Run) -> Tuple[str, str]:
    """Compare every image of the run's rows with its recorded sha256."""
    folder = image_folder(run)
    named: Set[Tuple[str, str]] = set()
    for path in (run.dataset, run.eval_dataset):
        if not path.exists():
            return NOT_HERE, f"{path.name}, which lists them, was deleted"
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            named.add((row["image"], row["sha256"]))
    found = {name: (digest(folder / name), then) for name, then in sorted(named)}
    gone = [name for name, (now, _) in found.items() if now == "absent"]
    other = [name for name, (now, then) in found.items() if now not in ("absent", then)]
    if other:
        return DIFFERS, f"changed: {_first_names(other)}" + (f"; missing: {_first_names(gone)}" if gone else "")
    return (NOT_HERE, f"{_first_names(gone)}: missing") if gone else (OK, f"{len(found)} images unchanged")


def _first_names(names: List[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _comparable_text(path: Path) -> Any:
    """The text to compare: a plan without its cost, which depends on the card; a config without paths."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.name == "plan.json":
        try:
            return {name: value for name, value in json.loads(text).items() if name != "cost"}
        except (ValueError, AttributeError):
            return text
    return config.without_paths(text)


def _check_model(run: Run, path: Path, which: str) -> Tuple[str, str]:
    """Compare the model in `path` with the manifest's fingerprint `which`."""
    if not path.is_dir():
        return NOT_HERE, f"{run.relative(path)}: not downloaded, or deleted"
    now = folder.fingerprint(path)
    other = _changed_files(now, run.figures("model")[which])
    if other:
        return DIFFERS, f"{run.relative(path)}: {', '.join(other)}"
    return OK, f"{run.relative(path)}: {len(now)} files unchanged"


def _check_pretrained(run: Run) -> Tuple[str, str]:
    """The first stage's checkpoint, from which this stage started."""
    [named] = _pretrained_path(run)
    if not (run.root / named).exists():
        return NOT_HERE, f"{named}: missing"
    path, now = llava.pretrained_checkpoint(run), llava.projector_checksum(run)
    then = run.figures("train")["pretrained_pth"]
    if now != then:
        return DIFFERS, f"{run.relative(path)}: sha256 {now[:12]}…, was {then[:12]}…"  # type: ignore[arg-type]
    return OK, f"{run.relative(path)}: sha256 {now[:12]}…"  # type: ignore[arg-type]


def _check_checkpoint(run: Run) -> Tuple[str, str]:
    if not run.checkpoint.exists():
        return NOT_HERE, "deleted"
    if not checkpoints.is_complete(run.checkpoint):
        return DIFFERS, f"{run.relative(run.checkpoint)} is incomplete or damaged"
    found, figures = train.state(run.checkpoint), run.figures("train")
    other = [f"{name} {found[name]}, was {figures[name]}" for name in found if found[name] != figures[name]]
    return (DIFFERS, "; ".join(other)) if other else (OK, ", ".join(f"{name} {found[name]}" for name in found))


def _check_log(run: Run) -> Tuple[str, str]:
    log = run.checkpoint.parent / "train.log"
    if not log.is_file():
        return NOT_HERE, "deleted"
    steps, figures = log_lines.parse_iterations(log.read_text(encoding="utf-8", errors="replace")), run.figures("train")
    found = log_lines.curve_figures(steps)
    other = [f"{name} {value}, was {figures[name]}" for name, value in found.items() if value != figures[name]]
    return (DIFFERS, "; ".join(other)) if other else (OK, f"{len(steps)} lines, loss and learning rate as in run.json")


def _check_adapter(run: Run, scratch: Path) -> Tuple[str, str]:
    """Recreate the adapter from the checkpoint; the bytes must be equal."""
    if not run.checkpoint.exists():
        return NOT_HERE, "the checkpoint was deleted"
    figures = run.figures("adapter")
    metadata = {name: figures[name] for name in ("base_model", "base_sha256")}
    adapter.write_adapter(run, scratch, figures["dtype"], metadata)
    names = [str(path.relative_to(scratch)) for path in below(scratch)]
    gone = [name for name in names if not (run.adapter / name).is_file()]
    other = [name for name in names if name not in gone and digest(run.adapter / name) != digest(scratch / name)]
    if other:
        return DIFFERS, f"{', '.join(other)}: differs from the checkpoint"
    if gone:
        return NOT_HERE, f"{', '.join(gone)}: deleted"
    what = [f"{figures['tensors']} tensors"] if figures["tensors"] else []
    what += [name.replace("_", " ") for name in adapter.LLAVA_PARTS if name in figures]
    return OK, f"{', '.join(what)} from the checkpoint, byte for byte"


def _check_merged(run: Run) -> Tuple[str, str]:
    """In a sample of every weight, the merged model minus the base must equal the adapter."""
    parts = [("base model", folder.folder(run)), ("merged model", run.merged)]
    full = merge.checkpoint(run)
    parts += [("checkpoint", full)] if full else [("adapter", path) for path, _ in merge.adapters(run)]
    for what, path in parts:
        if not path.exists():
            return NOT_HERE, f"the {what} is missing"
    found, figures = check_weights(merge.plan_merge(run), run.merged), run.figures("merge")
    if found != figures["weights_check"]:
        return DIFFERS, f"{found}, was {figures['weights_check']}"
    return OK, f"{found['weights_checked']:,} weights are base + adapter; {figures['share_changed']:.1%} changed"


def _check_machine(run: Run) -> Iterator[Check]:
    then, now = run.manifest.get("versions", {}), versions()
    other = [f"{name} {now.get(name)}, was {then[name]}" for name in then if then[name] != now.get(name)]
    yield Check("versions", DIFFERS if other else OK, "; ".join(other) or f"{len(then)} packages")
    image, here = run.manifest.get("host", {}).get("image"), host()["image"]
    if image == here:
        yield Check("image", OK, image or "none: both on the host")
    elif image and here:
        yield Check("image", DIFFERS, f"{here}, was {image}")
    else:
        yield Check(
            "image",
            NOT_HERE,
            f"the run used image {image}, this command the host"
            if image
            else "the run used the host, this command an image",
        )


def show(lines: Iterator[Check], console: Any) -> bool:
    """Print the checks as a table; return whether none differs."""
    from rich.table import Table

    table = Table("check", "", "")
    table.columns[0].overflow = "fold"
    found = []
    styles = {OK: "green", DIFFERS: "bold red", NOT_HERE: "yellow"}
    for line in lines:
        found.append(line.verdict)
        table.add_row(line.name, f"[{styles[line.verdict]}]{line.verdict}[/]", line.detail.replace("[", r"\["))
    console.print(table)
    count: Dict[str, int] = {verdict: found.count(verdict) for verdict in styles}
    console.print(
        f"{count[OK]} of {len(found)} checks ok, {count[DIFFERS]} differ, {count[NOT_HERE]} cannot run here.",
        highlight=False,
    )
    return not count[DIFFERS]
