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
from recipe.core.translation import _, listed, mark, ngettext
from recipe.intake.images import image_folder
from recipe.reporting import run_view
from recipe.reporting.sections import VISION_PARTS
from recipe.stages import train
from recipe.stages.config import STAGE as CONFIG
from recipe.stages.data import STAGE as DATA
from recipe.stages.plan import STAGE as PLAN
from recipe.training import checkpoints, log_lines
from recipe.weights import adapter, llava, merge
from recipe.weights.merge_check import check_weights
from recipe.weights.merge_plan import CHECKSUMS
from recipe.xtuner import config, preset_facts

OK, DIFFERS, NOT_HERE = mark("ok"), mark("differs"), mark("not here")
MADE_SINCE = mark("a later command has replaced the training's own")


class Check(NamedTuple):
    name: str
    verdict: str  # OK, DIFFERS, NOT_HERE
    detail: str


def check_run(run: Run, scratch: Path) -> Iterator[Check]:
    """Yield the checks of a finished run. Recreates files in `scratch`, an empty folder.

    Raises InputWrong while a command is running in the run's folder.
    """
    if is_locked(run.folder):
        folder_name = run.relative(run.folder)
        raise InputWrong(_("A command is running in {folder}. Verify the run when it has ended.", folder=folder_name))
    os.environ["RECIPE_FETCH"] = "no"  # no downloads, no changes in models/
    entries = run.manifest["stages"]
    for entry in entries.values():
        for name, made in entry["outputs"].items():
            if run.is_replaced(name):
                yield Check(name, NOT_HERE, _(MADE_SINCE))
            else:
                yield _check_output(run.folder / name, name, made)
    checks: List[Tuple[str, str, Callable[[], Tuple[str, str]]]] = [
        ("model", _("base model"), lambda: _check_model(run, folder.folder(run), "fingerprint")),
        ("train", _("checkpoint"), lambda: _check_checkpoint(run)),
        ("train", "train.log", lambda: _check_log(run)),
        ("adapter", _("adapter, recreated"), lambda: _check_adapter(run, scratch / "adapter")),
        ("merge", _("merged model minus base"), lambda: _check_merged(run)),
    ]
    if preset_facts.has_images(run.settings):
        encoder = visual_encoder.encoder_folder(run)
        checks.insert(1, ("model", _("visual encoder"), lambda: _check_model(run, encoder, "visual_encoder")))
        if run.figures("train").get("pretrained_pth", llava.NONE) != llava.NONE:
            checks.insert(2, ("train", _("first stage's projector"), lambda: _check_pretrained(run)))
    yield from _remake(run, scratch)
    for stage, what, examine in checks:
        if stage in entries:
            yield _run_check(what, examine)
    yield from _check_machine(run)


def _run_check(what: str, examine: Callable[[], Tuple[str, str]]) -> Check:
    try:
        return Check(what, *examine())
    except NotFetched:
        return Check(what, NOT_HERE, _("needs a model that is not downloaded; verify downloads nothing"))
    except HostLacks as error:
        return Check(what, NOT_HERE, str(error))
    except (RecipeError, OSError, LookupError, ValueError) as error:
        return Check(what, DIFFERS, str(error) or type(error).__name__)


def _check_output(path: Path, name: str, made: Dict[str, Any]) -> Check:
    if not path.exists():
        return Check(name, NOT_HERE, _("deleted"))
    # What leads elsewhere was not recorded.
    now = sums(path, links="files" not in made) if path.is_dir() else {}
    found, wanted = digest_of(now) if now else digest(path), made["sha256"]
    if found == wanted:
        return Check(name, OK, f"sha256 {wanted[:12]}…")
    worse = listed(_changed_files(now, made.get("files") or _recorded_checksums(path, wanted)))
    sums_differ = _("sha256 {now}…, was {then}…", now=found[:12], then=wanted[:12])
    return Check(name, DIFFERS, _("{where}: {what}", where=sums_differ, what=worse) if worse else sums_differ)


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
            obstacle = obstacle or _("{names}: missing", names=listed(gone))
        elif stage is DATA and preset_facts.has_images(run.settings):
            line = _run_check(_("images"), lambda: _check_images(run))
            obstacle = "" if line.verdict == OK else _("needs the original images")
            yield line
        line = Check(_("{stage}, recreated", stage=stage.name), NOT_HERE, obstacle)
        if not obstacle:
            line = _run_check(line.name, lambda stage=stage: _compare(run, shadow, stage))  # type: ignore[misc]
            obstacle = "" if line.verdict == OK else _("needs the recreated {stage}", stage=stage.name)
        yield line


def _compare(run: Run, shadow: Run, stage: Any) -> Tuple[str, str]:
    perform(shadow, stage)
    for name in stage.outputs:
        mine, again = run.folder / name, shadow.folder / name
        if stage is DATA:
            if digest(again) != run.manifest["stages"]["data"]["outputs"][name]["sha256"]:
                files = listed(run.settings.data.files)
                return DIFFERS, _("{name} differs when recreated from {files}", name=name, files=files)
        elif not mine.exists():
            return NOT_HERE, _("{name} was deleted", name=name)
        elif run.is_replaced(name):
            if stage is not PLAN:
                return NOT_HERE, _(MADE_SINCE)
            figures = {key: value for key, value in _comparable_text(again).items() if key in run.figures("plan")}
            recorded = {key: value for key, value in run.figures("plan").items() if key != "cost"}
            if figures != recorded:
                return DIFFERS, _("the figures of the training's plan differ when recreated")
        elif _comparable_text(mine) != _comparable_text(again):
            if stage.name in run_view.stale_stages(run):
                return DIFFERS, _("{name} is older than the data and belongs to other data or settings", name=name)
            return DIFFERS, _(
                "{name} differs when recreated with this version of the recipe on this machine", name=name
            )
    return OK, _("{names}: equal", names=listed(stage.outputs))


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
            return NOT_HERE, _("{file}, which lists them, was deleted", file=path.name)
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            named.add((row["image"], row["sha256"]))
    found = {name: (digest(folder / name), then) for name, then in sorted(named)}
    gone = [name for name, (now, _then) in found.items() if now == "absent"]
    other = [name for name, (now, then) in found.items() if now not in ("absent", then)]
    if other:
        parts = [_("changed: {names}", names=_first_names(other))]
        parts += [_("missing: {names}", names=_first_names(gone))] if gone else []
        return DIFFERS, _("; ").join(parts)
    if gone:
        return NOT_HERE, _("{names}: missing", names=_first_names(gone))
    return OK, ngettext("{n} image unchanged", "{n} images unchanged", len(found))


def _first_names(names: List[str]) -> str:
    shown = listed(names[:10])
    return _("{names} and {n} more", names=shown, n=len(names) - 10) if len(names) > 10 else shown


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
        return NOT_HERE, _("{folder}: not downloaded, or deleted", folder=run.relative(path))
    now = folder.fingerprint(path)
    other = _changed_files(now, run.figures("model")[which])
    if other:
        return DIFFERS, _("{where}: {what}", where=run.relative(path), what=listed(other))
    return OK, ngettext(
        "{folder}: {n} file unchanged", "{folder}: {n} files unchanged", len(now), folder=run.relative(path)
    )


def _check_pretrained(run: Run) -> Tuple[str, str]:
    """The first stage's checkpoint, from which this stage started."""
    [named] = _pretrained_path(run)
    if not (run.root / named).exists():
        return NOT_HERE, _("{names}: missing", names=named)
    path, now = llava.pretrained_checkpoint(run), llava.projector_checksum(run)
    then = run.figures("train")["pretrained_pth"]
    if now != then:
        differ = _("sha256 {now}…, was {then}…", now=str(now)[:12], then=then[:12])
        return DIFFERS, _("{where}: {what}", where=run.relative(path), what=differ)  # type: ignore[arg-type]
    return OK, _("{where}: {what}", where=run.relative(path), what=f"sha256 {str(now)[:12]}…")  # type: ignore[arg-type]


def _check_checkpoint(run: Run) -> Tuple[str, str]:
    if not run.checkpoint.exists():
        return NOT_HERE, _("deleted")
    if not checkpoints.is_complete(run.checkpoint):
        return DIFFERS, _("{file} is incomplete or damaged", file=run.relative(run.checkpoint))
    found, figures = train.state(run.checkpoint), run.figures("train")
    other = [_was(name, found[name], figures[name]) for name in found if found[name] != figures[name]]
    same = listed(f"{_(STATE[name])} {value}" for name, value in found.items())
    return (DIFFERS, _("; ").join(other)) if other else (OK, same)


# The figures of a checkpoint and of a log that run.json holds too.
STATE = {
    "iterations": mark("iterations"), "seed": mark("seed"), "updates": mark("updates"),
    "lr_peak_logged": "lr_peak_logged", "loss_first": "loss_first", "loss_last": "loss_last",
}  # fmt: skip


def _was(name: str, now: Any, then: Any) -> str:
    return _("{name} {now}, was {then}", name=_(STATE.get(name, name)), now=now, then=then)


def _check_log(run: Run) -> Tuple[str, str]:
    log = run.checkpoint.parent / "train.log"
    if not log.is_file():
        return NOT_HERE, _("deleted")
    steps, figures = log_lines.parse_iterations(log.read_text(encoding="utf-8", errors="replace")), run.figures("train")
    found = log_lines.curve_figures(steps)
    other = [_was(name, value, figures[name]) for name, value in found.items() if value != figures[name]]
    if other:
        return DIFFERS, _("; ").join(other)
    return OK, ngettext(
        "{n} line, loss and learning rate as in run.json",
        "{n} lines, loss and learning rate as in run.json",
        len(steps),
    )


def _check_adapter(run: Run, scratch: Path) -> Tuple[str, str]:
    """Recreate the adapter from the checkpoint; the bytes must be equal."""
    if not run.checkpoint.exists():
        return NOT_HERE, _("the checkpoint was deleted")
    figures = run.figures("adapter")
    metadata = {name: figures[name] for name in ("base_model", "base_sha256")}
    adapter.write_adapter(run, scratch, figures["dtype"], metadata)
    names = [str(path.relative_to(scratch)) for path in below(scratch)]
    gone = [name for name in names if not (run.adapter / name).is_file()]
    other = [name for name in names if name not in gone and digest(run.adapter / name) != digest(scratch / name)]
    if other:
        return DIFFERS, _("{names}: differs from the checkpoint", names=listed(other))
    if gone:
        return NOT_HERE, _("{names}: deleted", names=listed(gone))
    what = [ngettext("{n} tensor", "{n} tensors", figures["tensors"])] if figures["tensors"] else []
    what += [_(part) for name, part in VISION_PARTS.items() if name in figures]
    return OK, _("{what} from the checkpoint, byte for byte", what=listed(what))


def _check_merged(run: Run) -> Tuple[str, str]:
    """In a sample of every weight, the merged model minus the base must equal the adapter."""
    parts = [(_("the base model is missing"), folder.folder(run)), (_("the merged model is missing"), run.merged)]
    full = merge.checkpoint(run)
    if full:
        parts.append((_("the checkpoint is missing"), full))
    else:
        parts += [(_("the adapter is missing"), path) for path, _weight in merge.adapters(run)]
    for missing, path in parts:
        if not path.exists():
            return NOT_HERE, missing
    found, figures = check_weights(merge.plan_merge(run), run.merged), run.figures("merge")
    if found != figures["weights_check"]:
        return DIFFERS, _("{now}, was {then}", now=found, then=figures["weights_check"])
    return OK, _(
        "{n:,} weights are base + adapter; {share:.1%} changed",
        n=found["weights_checked"],
        share=figures["share_changed"],
    )


def _check_machine(run: Run) -> Iterator[Check]:
    then, now = run.manifest.get("versions", {}), versions()
    other = [_was(name, now.get(name), then[name]) for name in then if then[name] != now.get(name)]
    packages = ngettext("{n} package", "{n} packages", len(then))
    yield Check(_("versions"), DIFFERS if other else OK, _("; ").join(other) or packages)
    image, here = run.manifest.get("host", {}).get("image"), host()["image"]
    if image == here:
        yield Check(_("image"), OK, image or _("none: both on the host"))
    elif image and here:
        yield Check(_("image"), DIFFERS, _("{now}, was {then}", now=here, then=image))
    elif image:
        yield Check(_("image"), NOT_HERE, _("the run used image {image}, this command the host", image=image))
    else:
        yield Check(_("image"), NOT_HERE, _("the run used the host, this command an image"))


def show(lines: Iterator[Check], console: Any) -> bool:
    """Print the checks as a table; return whether none differs."""
    from rich.table import Table

    table = Table(_("check"), "", "")
    for column in table.columns:
        column.overflow = "fold"
    found = []
    styles = {OK: "green", DIFFERS: "bold red", NOT_HERE: "yellow"}
    for line in lines:
        found.append(line.verdict)
        table.add_row(line.name, f"[{styles[line.verdict]}]{_(line.verdict)}[/]", line.detail.replace("[", r"\["))
    console.print(table)
    count: Dict[str, int] = {verdict: found.count(verdict) for verdict in styles}
    console.print(
        _(
            "{ok} of {n} checks ok, {differ} differ, {not_here} cannot run here.",
            ok=count[OK],
            n=len(found),
            differ=count[DIFFERS],
            not_here=count[NOT_HERE],
        ),
        highlight=False,
    )
    return not count[DIFFERS]
