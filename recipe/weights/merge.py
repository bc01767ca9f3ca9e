"""Merges adapter and base into a model folder: W + (alpha/r)·B·A, streamed.

merge_plan checks everything before writing, merge_write writes the shards, merge_check verifies them. Finished shards
survive an interruption in a temporary folder, which is renamed when the model is complete.
"""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from recipe.base_model import folder, licence, model_code, record
from recipe.core.commands import command_line
from recipe.core.errors import InputWrong
from recipe.core.files import write_text
from recipe.core.hashing import digest, digest_of
from recipe.core.run import Run
from recipe.core.text_width import ljust
from recipe.core.translation import _, listed, ngettext, stored
from recipe.weights.adapter import base_checksum
from recipe.weights.merge_check import check_loads, check_weights
from recipe.weights.merge_plan import (
    CHECKSUMS,
    PROGRESS,
    MergePlan,
    check_disk,
    finished,
    kind_of,
    make_plan,
    parse_size,
)
from recipe.weights.merge_write import write_shards
from recipe.xtuner import preset_facts

PART = ".merged.part"  # in the run's folder; keeps the finished shards of an interrupted merge


def merge(
    plan: MergePlan,
    place: Path,
    part: Optional[Path] = None,
    stop_words: Sequence[str] = (),
    card: Callable[[Dict[str, Any]], str] = lambda figures: "",
    device: str = "cpu",
) -> Dict[str, Any]:
    """Write the merged model into `place` by way of `part`, which keeps finished shards after an interruption.

    `stop_words` end an answer in addition to the model's end token; `card` turns the figures into README.md.
    Figures: tensors and weights, how many differ from the base, by module kind; shards; bytes. Raises HostLacks for
    too little disk space before anything is written, RunFailed if the result fails a check.
    """
    part = place.with_name(f".{place.name}.part") if part is None else part
    check_disk(plan, part)
    with check_loads(plan.base) as check, ThreadPoolExecutor(1) as beside:
        shards, reused = write_shards(plan, part, device)
        for path in plan.copied:
            shutil.copyfile(str(path), str(part / path.name))
        if plan.code:
            model_code.write(part)
        weight_map = {target.name: plan.shard_name(target.shard) for target in sorted(plan.targets)}
        index = {"metadata": {"total_size": plan.nbytes}, "weight_map": weight_map}
        write_text(part / plan.index_name, json.dumps(index, indent=1) + "\n")
        loaded = beside.submit(check, part, stop_words)
        figures = {
            **_figures(plan, shards, reused),
            "weights_check": check_weights(plan, part),
            "load_check": loaded.result(),
        }
    write_text(part / "README.md", card(figures))
    sums = {name: entry["sha256"] for name, entry in shards.items()}
    (part / PROGRESS).unlink()
    sums.update({path.name: digest(path) for path in part.iterdir() if path.name not in sums})
    write_text(part / CHECKSUMS, "".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))
    os.replace(str(part), str(place))
    return figures


def _figures(plan: MergePlan, shards: Dict[str, Any], reused: int) -> Dict[str, Any]:
    """What the merge changed, in total and by module kind; `largest` and `mean` are ‖new − old‖ / ‖old‖ of tensors."""
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
    """Checkpoint of full fine-tuning; None for a run that makes an adapter."""
    return run.root / run.figures("train")["checkpoint"] if preset_facts.method(run.settings) == "full" else None


def adapters(run: Run) -> List[Tuple[Path, float]]:
    """Adapters that the recipe merges and their weights, the run's own first. Raises InputWrong."""
    if checkpoint(run):
        if run.settings.merge.adapters:
            raise InputWrong(
                _('merge.adapters: train.method = "full" trains all weights, so there is no adapter to combine.')
            )
        return []
    places = [run.peft, *(Path(p) if Path(p).is_absolute() else run.root / p for p in run.settings.merge.adapters)]
    return list(zip(places, run.settings.merge.weights or [1.0] * len(places)))


def plan_merge(run: Run) -> MergePlan:
    """Plan the run's merge; see `make_plan`."""
    chosen = run.settings.merge
    return make_plan(
        folder.folder(run), adapters(run), parse_size(chosen.max_shard_size), chosen.safe_serialization, run.force,
        checkpoint(run),
    )  # fmt: skip


def dry_run(run: Run) -> List[str]:
    """Describe what the merge would do, as lines. Raises what the merge would raise."""
    if preset_facts.method(run.settings) == "full":
        if "train" not in run.manifest.get("stages", {}):
            raise InputWrong(
                _(
                    "There is no checkpoint in {folder} yet. Run: {command}",
                    folder=run.relative(run.folder),
                    command=command_line("train"),
                )
            )
    elif not run.peft.is_dir():
        raise InputWrong(
            _(
                "There is no adapter in {folder} yet. Run: {command}",
                folder=run.relative(run.peft),
                command=command_line("adapter"),
            )
        )
    plan = plan_merge(run)
    needed, free = check_disk(plan, run.folder / PART)
    touched = [target for target in plan.targets if target.parts]
    weights = sum(target.source.numel for target in touched)
    kinds = sorted({kind_of(target.name) for target in touched})
    lines = [
        (
            _("base"),
            _(
                "{folder}, {tensors} tensors, {size:.2f} GB",
                folder=run.relative(plan.base), tensors=len(plan.targets), size=plan.nbytes / 1e9,
            ),
        ),
        *(
            (_("adapter"), _("{folder}, weight {weight:g}", folder=run.relative(place), weight=weight))
            for place, weight in adapters(run)
        ),
        (
            _("changes"),
            _(
                "{tensors} tensors, {weights:,} weights: {modules}",
                tensors=len(touched), weights=weights, modules=listed(kinds),
            ),
        ),
        (
            _("writes"),
            ngettext(
                "{folder}: {first}, {n} shard, {others}",
                "{folder}: {first}, {n} shards, {others}",
                plan.shards,
                folder=run.relative(run.merged),
                first=plan.shard_name(0) + " …" * (plan.shards > 1),
                others=listed(sorted(path.name for path in (*plan.copied, *plan.code))),
            ),
        ),
        (
            _("resumes"),
            ngettext("after {n} finished shard", "after {n} finished shards", len(finished(plan, run.folder / PART))),
        ),
        (_("disk"), _("{needed:.2f} GB needed, {free:.2f} GB free", needed=needed / 1e9, free=free / 1e9)),
    ]  # fmt: skip
    return [*(ljust(label, 10) + text for label, text in lines), _("Nothing was written.")]


def checksum_digest(place: Path) -> str:
    """Digest of a merged folder from its checksum file, without reading 15 GB again."""
    return digest_of(read_checksums(place))


def read_checksums(place: Path) -> Dict[str, str]:
    """File → sha256 as listed in a merged folder, with that of the list itself. Raises OSError, ValueError."""
    lines = [line.split("  ", 1) for line in (place / CHECKSUMS).read_text("utf-8").splitlines()]
    sums = {name: checksum for checksum, name in lines}
    sums[CHECKSUMS] = digest(place / CHECKSUMS)
    return dict(sorted(sums.items()))


def summary(figures: Dict[str, Any]) -> str:
    """What was changed, in total and by module kind."""
    values = {name: figures[name] for name in ("tensors_changed", "tensors", "share_changed")}
    if figures["shards_reused"]:
        first = ngettext(
            "{tensors_changed} of {tensors} tensors and {share_changed:.1%} of the weights changed, {n} shard, "
            "{reused} of them reused",
            "{tensors_changed} of {tensors} tensors and {share_changed:.1%} of the weights changed, {n} shards, "
            "{reused} of them reused",
            figures["shards"],
            reused=figures["shards_reused"],
            **values,
        )
    else:
        first = ngettext(
            "{tensors_changed} of {tensors} tensors and {share_changed:.1%} of the weights changed, {n} shard",
            "{tensors_changed} of {tensors} tensors and {share_changed:.1%} of the weights changed, {n} shards",
            figures["shards"],
            **values,
        )
    lines = [first]
    for name, kind in figures["kinds"].items():
        text = ngettext(
            "{share:7.1%} of the weights, {changed} of {n} tensor; by {mean:.3g} %, at most {largest:.3g} %",
            "{share:7.1%} of the weights, {changed} of {n} tensors; by {mean:.3g} %, at most {largest:.3g} %",
            kind["tensors"],
            share=kind["weights_changed"] / kind["weights"],
            changed=kind["tensors_changed"],
            mean=100 * kind["mean"],
            largest=100 * kind["largest"],
        )
        lines.append(f"  {name:14} {text}")
    return "\n".join(lines)


def model_card(run: Run, figures: Dict[str, Any]) -> str:
    """Model card of the merged model."""
    place, own = folder.folder(run), run.figures("adapter")
    base = record.chosen(run).id if run.settings.model.source != "tiny" else own.get("base_model", run.relative(place))
    checksum = own.get("base_sha256") or base_checksum(place)
    rows = {
        _("base model"): base,
        _("base checksum"): _("sha256 {checksum} (sizes and samples of the weight files)", checksum=checksum),
        _("trained"): listed(f"{run.relative(place)} × {weight:g}" for place, weight in adapters(run))
        or _("all weights"),
        _("recipe"): run.name,
        _("changed"): _(
            "{share:.2%} of {weights:,} weights, in {tensors_changed} of {tensors} tensors",
            share=figures["share_changed"],
            weights=figures["weights"],
            tensors_changed=figures["tensors_changed"],
            tensors=figures["tensors"],
        ),
        _("stop tokens"): listed(figures["load_check"]["stops"]),
    }
    terms, command = licence.of(run), f"sha256sum -c {CHECKSUMS}"
    if adapters(run):
        how = _(
            "Computed as base + scaling·B·A in fp32 and rounded once to the base's dtype. `{command}` verifies the "
            "folder.",
            command=command,
        )
    else:
        how = _(
            "Computed by full fine-tuning in fp32 and rounded once to the base's dtype. `{command}` verifies the "
            "folder.",
            command=command,
        )
    return CARD.format(
        base=base,
        title=_("{name}: merged model", name=run.name),
        table="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        how=how,
        front_matter=terms.front_matter(),
        licence=stored(terms.sentence()),
    )


CARD = """---
base_model: {base}
{front_matter}
library_name: transformers
tags: [xtuner, merged]
---

# {title}

| | |
|---|---|
{table}

{how}

{licence}
"""
