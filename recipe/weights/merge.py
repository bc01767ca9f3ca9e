"""Adapter + base → a model folder that loads anywhere: W + (alpha/r)·B·A, streamed.

`merging.plan` looks at everything before anything is written, `merging.write` makes the shards, `merging.proof` checks
them. Finished shards survive an interruption, in a folder that is no model until everything is there.
"""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from recipe.base_model import folder, model_code
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.hashing import digest, digest_of
from recipe.core.run import Run
from recipe.weights.adapter import base_checksum
from recipe.weights.merge_check import prove, trial
from recipe.weights.merge_plan import CHECKSUMS, PROGRESS, Plan, check_disk, finished, kind_of, make_plan, size
from recipe.weights.merge_write import write_shards
from recipe.xtuner import preset_facts

PART = ".merged.part"  # in the run's folder: survives an interrupted merge


def merge(
    plan: Plan,
    place: Path,
    part: Optional[Path] = None,
    stop_words: Sequence[str] = (),
    card: Callable[[Dict[str, Any]], str] = lambda figures: "",
    device: str = "cpu",
) -> Dict[str, Any]:
    """Write the merged model's folder `place`, by way of `part`, which keeps finished shards if it is interrupted.

    `stop_words` end an answer, beside the model's own end token; `card` makes README.md of the figures.
    Figures: tensors and weights in all, how many of them differ from the base, by module kind, shards, bytes.
    Raises HostLacks for too little disk, before anything is written, RunFailed if the result does not prove right.
    """
    part = place.with_name(f".{place.name}.part") if part is None else part
    check_disk(plan, part)
    with trial(plan.base) as try_out, ThreadPoolExecutor(1) as beside:
        shards, reused = write_shards(plan, part, device)
        for path in plan.copied:
            shutil.copyfile(str(path), str(part / path.name))
        if plan.code:
            model_code.write(part)
        where = {target.name: plan.name(target.shard) for target in sorted(plan.targets)}
        index = {"metadata": {"total_size": plan.nbytes}, "weight_map": where}
        write_text(part / plan.index, json.dumps(index, indent=1) + "\n")
        tried = beside.submit(try_out, part, stop_words)
        figures = {**_figures(plan, shards, reused), "proof": prove(plan, part), "trial": tried.result()}
    write_text(part / "README.md", card(figures))
    sums = {name: entry["sha256"] for name, entry in shards.items()}
    (part / PROGRESS).unlink()
    sums.update({path.name: digest(path) for path in part.iterdir() if path.name not in sums})
    write_text(part / CHECKSUMS, "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))
    os.replace(str(part), str(place))
    return figures


def _figures(plan: Plan, shards: Dict[str, Any], reused: int) -> Dict[str, Any]:
    """What the merge changed, in all and by module kind. Relative is a whole tensor's change, ‖new − old‖ / ‖old‖."""
    sums = {name: value for entry in shards.values() for name, value in entry["sums"].items()}
    kinds: Dict[str, Dict[str, Any]] = {}
    for target in plan.targets:
        if target.parts:
            changed, difference, before = sums[target.name]
            kind = kinds.setdefault(
                kind_of(target.name),
                {"tensors": 0, "tensors_changed": 0, "weights": 0, "weights_changed": 0, "largest": 0.0, "mean": 0.0},
            )
            relative = math.sqrt(difference / before) if before else math.inf * bool(difference)
            kind["tensors"] += 1
            kind["tensors_changed"] += changed > 0
            kind["weights"] += target.source.numel
            kind["weights_changed"] += changed
            kind["largest"] = max(kind["largest"], relative)
            kind["mean"] += (relative - kind["mean"]) / kind["tensors"]
    weights = sum(target.source.numel for target in plan.targets)
    changed = sum(kind["weights_changed"] for kind in kinds.values())
    return {
        "tensors": len(plan.targets),
        "tensors_changed": sum(kind["tensors_changed"] for kind in kinds.values()),
        "weights": weights,
        "weights_changed": changed,
        "share_changed": changed / weights,
        "kinds": dict(sorted(kinds.items())),
        "shards": plan.shards,
        "shards_reused": reused,
        "bytes": plan.nbytes,
    }


def checkpoint(run: Run) -> Optional[Path]:
    """The checkpoint of full fine-tuning, which is the whole model; None for a run that makes an adapter."""
    return run.root / run.figures("train")["checkpoint"] if preset_facts.method(run.settings) == "full" else None


def adapters(run: Run) -> List[Tuple[Path, float]]:
    """The adapters that the recipe merges, with their weights: the run's own first. Raises InputWrong."""
    if checkpoint(run):
        if run.settings.merge.adapters:
            raise InputWrong('merge.adapters: train.method = "full" makes a whole model, to which none is added.')
        return []
    places = [run.peft, *(Path(p) if Path(p).is_absolute() else run.root / p for p in run.settings.merge.adapters)]
    return list(zip(places, run.settings.merge.weights or [1.0] * len(places)))


def plan_of(run: Run) -> Plan:
    """The run's merge, looked at before anything is written; see `make_plan`."""
    chosen = run.settings.merge
    return make_plan(
        folder.folder(run), adapters(run), size(chosen.max_shard_size), chosen.safe_serialization, run.force,
        checkpoint(run),
    )  # fmt: skip


def dry_run(run: Run) -> List[str]:
    """What a merge of the adapter that is there would do, as lines. Raises what the merge would refuse with."""
    if preset_facts.method(run.settings) == "full":
        if "train" not in run.manifest.get("stages", {}):
            raise InputWrong(f"There is no checkpoint in {run.shown(run.folder)} yet: just train makes it.")
    elif not run.peft.is_dir():
        raise InputWrong(f"There is no adapter in {run.shown(run.peft)} yet: just adapter makes it.")
    plan = plan_of(run)
    needed, free = check_disk(plan, run.folder / PART)
    touched = [target for target in plan.targets if target.parts]
    weights = sum(target.source.numel for target in touched)
    kinds = sorted({kind_of(target.name) for target in touched})
    return [
        f"base      {run.shown(plan.base)}, {len(plan.targets)} tensors, {plan.nbytes / 1e9:.2f} GB",
        *(f"adapter   {run.shown(place)}, weight {weight:g}" for place, weight in adapters(run)),
        f"changes   {len(touched)} tensors, {weights:,} weights: {', '.join(kinds)}",
        f"writes    {run.shown(run.merged)}: {plan.name(0)}{' …' if plan.shards > 1 else ''}, {plan.shards} shards, "
        f"and {', '.join(sorted(path.name for path in (*plan.copied, *plan.code)))}",
        f"goes on   from {len(finished(plan, run.folder / PART))} finished shards",
        f"disk      {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free",
        "Nothing was written.",
    ]


def digest_of_sums(place: Path) -> str:
    """`stages.digest` of a merged folder from its checksums, without reading 15 GB once more."""
    return digest_of(sums_of(place))


def sums_of(place: Path) -> Dict[str, str]:
    """The checksums that a merged folder holds, and its own of them. Raises OSError, ValueError."""
    sums = dict(reversed(line.split("  ", 1)) for line in (place / CHECKSUMS).read_text("utf-8").splitlines())
    sums[CHECKSUMS] = digest(place / CHECKSUMS)
    return dict(sorted(sums.items()))


def summary(figures: Dict[str, Any]) -> str:
    """How much was changed, in all and by module kind."""
    reused = f", {figures['shards_reused']} of them kept from before" if figures["shards_reused"] else ""
    lines = [
        f"{figures['tensors_changed']} of {figures['tensors']} tensors and {figures['share_changed']:.1%} of the "
        f"weights changed, {figures['shards']} shards{reused}"
    ]
    for name, kind in figures["kinds"].items():
        lines.append(
            f"  {name:14} {kind['weights_changed'] / kind['weights']:7.1%} of the weights, {kind['tensors_changed']} "
            f"of {kind['tensors']} tensors; by {100 * kind['mean']:.3g} %, at most {100 * kind['largest']:.3g} %"
        )
    return "\n".join(lines)


def card_of(run: Run, figures: Dict[str, Any]) -> str:
    """The merged model's card."""
    place, own = folder.folder(run), run.figures("adapter")
    base = run.settings.model.id if run.settings.model.source != "tiny" else own.get("base_model", run.shown(place))
    checksum = own.get("base_sha256") or base_checksum(place)
    rows = {
        "base model": base,
        "its checksum": f"sha256 {checksum} (of its weight files' sizes and samples)",
        "trained": ", ".join(f"{run.shown(place)} × {weight:g}" for place, weight in adapters(run)) or "all weights",
        "recipe": run.name,
        "changed": f"{figures['share_changed']:.2%} of {figures['weights']:,} weights, in "
        f"{figures['tensors_changed']} of {figures['tensors']} tensors",
        "ends an answer": f"token {' or '.join(map(str, figures['trial']['stops']))}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    how = "as base + scaling·B·A in fp32" if adapters(run) else "by full fine-tuning in fp32"
    return CARD.format(base=base, name=run.name, table=table, sums=CHECKSUMS, how=how)


CARD = """---
base_model: {base}
library_name: transformers
tags: [xtuner, merged]
---

# {name}: merged model

| | |
|---|---|
{table}

Computed {how}, rounded once to the base's type. `sha256sum -c {sums}` checks the folder. The
base model's licence holds for this model too.
"""
