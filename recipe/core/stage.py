"""What surrounds every stage, once: skip when unchanged, outputs renamed into place, timing, the manifest.

A stage is a function `make(run, output) -> figures`. It writes into the fresh folder `output` the files or folders
named by `Stage.outputs`; they are renamed into the run's folder when it returns. What it depends on is what
`Stage.inputs` returns: settings (values) and files (paths, which count by content). If neither that nor the
outputs have changed since the manifest's entry was written, the stage is skipped.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

from recipe.core.files import remove, replace
from recipe.core.hashing import digest, digest_of, key_of, stamp, sums
from recipe.core.host import peak_memory_mb
from recipe.core.run import Run


@dataclasses.dataclass(frozen=True)
class Stage:
    """`make` makes `outputs` from what `inputs` names; `summary` puts its figures into words. See the module's text."""

    name: str
    inputs: Callable[[Run], Dict[str, Any]]
    make: Callable[[Run, Path], Dict[str, Any]]
    summary: Callable[[Dict[str, Any]], str]
    outputs: Tuple[str, ...] = ()
    always: bool = False  # cheap, and looks at what lies outside the run's folder


def is_current(run: Run, stage: Stage, key: str) -> bool:
    """Whether the manifest's entry for `stage` was made from the same things and its outputs still stand."""
    entry = run.manifest.get("stages", {}).get(stage.name)
    if not entry or entry["key"] != key or (stage.outputs and set(entry["outputs"]) != set(stage.outputs)):
        return False
    for name, made in entry["outputs"].items():
        path = run.folder / name
        if stamp(path) != made["stamp"] and digest(path) != made["sha256"]:
            return False
    return True


def output_digest(run: Run, stage: str, name: str) -> str:
    """sha256 of what `stage` wrote, as the manifest has it; what is not as it was written is read (a merged model has
    15 GB).
    """
    path = run.folder / name
    made = run.manifest.get("stages", {}).get(stage, {}).get("outputs", {}).get(name)
    return made["sha256"] if made and made["stamp"] == stamp(path) else digest(path)


def perform(run: Run, stage: Stage) -> Tuple[Dict[str, Any], bool]:
    """Run `stage` unless it is current; return (its manifest entry, whether it ran).

    Raises what the stage raises; then nothing it had made before is touched.
    """
    key = key_of(stage.inputs(run))
    if not stage.always and is_current(run, stage, key):
        return run.manifest["stages"][stage.name], False
    run.tell(stage=stage.name)
    out = run.folder / f".{stage.name}.part"
    remove(out)
    out.mkdir()
    began = time.monotonic()
    try:
        figures = stage.make(run, out)
        for name in stage.outputs:
            replace(out / name, run.folder / name)
    finally:
        remove(out)
    # A stage that writes in place (training) names what it made; one that has hashed its output says so (merge).
    made = [*stage.outputs, *figures.pop("made", [])]
    digests = figures.pop("digests", {})
    entry = {
        "key": key,
        "figures": figures,
        "outputs": {name: _made(run.folder / name, digests.get(name, "")) for name in made},
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
