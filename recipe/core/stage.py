"""Runs stages: caching, atomic outputs, timing, manifest.

A stage's `make(run, output)` writes `outputs` into the empty folder `output` and returns figures. The outputs are
renamed into the run's folder when it returns. `inputs(run)` returns what the result depends on: settings (values) and
files (paths, which count by content). If inputs and outputs are as the manifest's entry has them, `make` is skipped.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Callable, Dict, Tuple, Union

from recipe.core.files import remove, replace
from recipe.core.hashing import digest, digest_of, key_of, stamp, sums
from recipe.core.host import peak_memory_mb
from recipe.core.run import Run


@dataclasses.dataclass(frozen=True)
class Stage:
    """See the module's docstring. `summary(figures)` is a line on what was made, or several."""

    name: str
    inputs: Callable[[Run], Dict[str, Any]]
    make: Callable[[Run, Path], Dict[str, Any]]
    summary: Callable[[Dict[str, Any]], str]
    outputs: Tuple[str, ...] = ()
    always: bool = False  # never skipped: it checks what lies outside the run's folder


def is_current(run: Run, stage: Stage, key: str) -> bool:
    """Whether the manifest's entry of `stage` has this key and its outputs are unchanged."""
    entry = run.manifest.get("stages", {}).get(stage.name)
    if not entry or entry["key"] != key or (stage.outputs and set(entry["outputs"]) != set(stage.outputs)):
        return False
    for name, made in entry["outputs"].items():
        path = run.folder / name
        if stamp(path) != made["stamp"] and digest(path) != made["sha256"]:
            return False
    return True


def output_digest(run: Run, stage: str, name: str) -> str:
    """sha256 of an output of `stage`: from the manifest if the output is untouched, else read."""
    path = run.folder / name
    made = run.manifest.get("stages", {}).get(stage, {}).get("outputs", {}).get(name)
    return made["sha256"] if made and made["stamp"] == stamp(path) else digest(path)


def perform(run: Run, stage: Stage) -> Tuple[Dict[str, Any], bool]:
    """Run `stage` unless it is current; return (its manifest entry, whether it ran).

    If `make` raises, the outputs of an earlier run stay.
    """
    key = key_of(stage.inputs(run))
    if not stage.always and is_current(run, stage, key):
        return run.manifest["stages"][stage.name], False
    run.update_status(stage=stage.name)
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
    # Training writes in place and lists its output in `made`; the merge has already hashed its own.
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
    run.performed.append(stage.name)
    run.save()
    return entry, True


def _made(path: Path, known: Union[str, Dict[str, str]]) -> Dict[str, Any]:
    """An output's manifest entry: sha256 (`known`, or computed), stamp, and a folder's checksums (files)."""
    if isinstance(known, str) and (known or not path.is_dir()):
        return {"sha256": known or digest(path), "stamp": stamp(path)}
    found = known if isinstance(known, dict) else sums(path)
    return {"sha256": digest_of(found), "stamp": stamp(path), "files": found}
