"""Train stage: starts or resumes XTuner's trainer on the rendered config."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

from recipe.core import distributed, tensor_files
from recipe.core.commands import command_line
from recipe.core.errors import HostLacks, RunFailed, Stopped
from recipe.core.hashing import below
from recipe.core.host import gpus
from recipe.core.run import Run
from recipe.core.stage import Stage
from recipe.core.translation import _, ngettext, sentences
from recipe.training.checkpoints import folder, inputs, iteration_of, last_checkpoint
from recipe.training.fast import verdict
from recipe.training.log_lines import HEARTBEAT, curve_figures, parse_iterations, time_breakdown
from recipe.training.process import failure_message, run_process, run_trainer, wait_for_first_node
from recipe.weights import llava
from recipe.xtuner import loggers, preset_facts, step_choice


def preflight(run: Run) -> None:
    """Raise HostLacks for a machine that cannot train this recipe: before the model is downloaded."""
    loggers.preflight(run)
    kind = step_choice.dtype(run.settings)
    if kind != "fp32" and not gpus():
        values = {"recipe": run.name, "dtype": kind, "method": preset_facts.method(run.settings)}
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            why = _(
                "Recipe {recipe} trains in {dtype} ({method}) and needs an NVIDIA GPU; nvidia-smi finds none, or "
                "CUDA_VISIBLE_DEVICES hides it.",
                **values,
            )
        else:
            why = _(
                "Recipe {recipe} trains in {dtype} ({method}) and needs an NVIDIA GPU; nvidia-smi finds none.", **values
            )
        demo = _("Without a GPU `{command}` fine-tunes a small model.", command=command_line("demo"))
        raise HostLacks(sentences(why, demo))
    if kind != "fp32" or run.settings.gpus > 1:
        distributed.check_gpu_count(run.settings)


def state(checkpoint: Path) -> Dict[str, Any]:
    """Iteration, seed and optimizer updates as the checkpoint itself records them."""
    path = checkpoint
    if checkpoint.is_dir():  # DeepSpeed's: the first rank's model states carry mmengine's meta
        path = sorted(checkpoint.glob("*model_states.pt"))[0]
    saved = tensor_files.torch_file(path)  # of full fine-tuning it has 12 bytes a weight: nothing of them is read
    if checkpoint.is_dir():
        made = saved["global_steps"]
    else:
        steps = [entry["step"] for entry in saved["optimizer"]["state"].values()]  # bitsandbytes' are plain numbers
        made = max((int(step if isinstance(step, int) else step.read()) for step in steps), default=0)
    return {"iterations": saved["meta"]["iter"], "seed": saved["meta"]["seed"], "updates": made}


def make(run: Run, output: Path) -> Dict[str, Any]:
    """Train to the end. Figures: iterations, updates, peak rate, first and last loss, the checkpoint.

    Raises RunFailed with the trainer's own last words if it ends before the planned last iteration.
    """
    planned = json.loads(run.plan.read_text(encoding="utf-8"))
    place = folder(run)
    place.mkdir(parents=True, exist_ok=True)
    log = place / "train.log"
    start = checkpoint = last_checkpoint(place)
    if start is None or iteration_of(start) < planned["iterations"]:
        _room(run, place, planned)
        run_trainer(run, place, log, start, planned)
        checkpoint = last_checkpoint(place, read=False)  # the trainer has just written and flushed it
    if checkpoint is None or iteration_of(checkpoint) != planned["iterations"]:
        values = {"n": planned["iterations"], "log": run.relative(log)}
        raise RunFailed(
            _(
                "The trainer stopped at {checkpoint}, but the plan has {n} iterations. Log: {log}",
                checkpoint=checkpoint.name,
                **values,
            )
            if checkpoint
            else _("The trainer left no checkpoint, but the plan has {n} iterations. Log: {log}", **values)
        )
    found = state(checkpoint)
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    compared = verdict.parse_log(said)
    return {
        "checkpoint": run.relative(checkpoint),
        "resumed_from": iteration_of(start) if start else 0,
        "iterations": found["iterations"],
        "updates": found["updates"],
        "seed": found["seed"],
        "ranks": distributed.count(run.settings),
        **({"pretrained_pth": llava.projector_checksum(run)} if preset_facts.has_images(run.settings) else {}),
        **curve_figures(parse_iterations(said)),
        "time_breakdown": time_breakdown(said),
        **({"fast_step": compared} if compared else {}),
        "log": run.relative(log),
        "made": [str(checkpoint.relative_to(run.folder))],
    }


def summary(figures: Dict[str, Any]) -> str:
    return ngettext(
        "{n} iteration, loss {first:.3f} → {last:.3f}",
        "{n} iterations, loss {first:.3f} → {last:.3f}",
        figures["iterations"],
        first=figures["loss_first"],
        last=figures["loss_last"],
    )


def _room(run: Run, place: Path, planned: Dict[str, Any]) -> None:
    """Raise HostLacks if the disk cannot hold the checkpoints that the plan expects."""
    disk = (planned["memory"] or {}).get("disk")
    if not disk:
        return
    there = sum(file.stat().st_size for checkpoint in place.glob("iter_*") for file in below(checkpoint))
    needed, free = disk["checkpoints"] - there, shutil.disk_usage(str(place)).free
    if free < needed:
        raise HostLacks(
            _(
                "The checkpoints need {needed:.2f} GB in {folder}, {each:.2f} GB each, and {free:.2f} GB are free. "
                "train.save_total_limit=1 keeps one and needs room for two, train.save_steps={iterations} --force "
                "makes only one, at the end; or free some space, or name another folder with --output.",
                needed=needed / 1e9,
                folder=place,
                each=disk["checkpoint"] / 1e9,
                free=free / 1e9,
                iterations=planned["iterations"],
            )
        )


def join(run: Run) -> str:
    """On a machine other than the first: join the first one's training; return a sentence on how that ended.

    Nothing but this machine's log is written here: the first runs all stages, in a folder that both see.
    """
    preflight(run)
    here = distributed.node(run.settings)
    assert here is not None
    run.folder.mkdir(parents=True, exist_ok=True)
    log = run.folder / f"node-{here.rank}.log"
    words = [sys.executable, "-m", *distributed.launcher(run.settings)]
    waits = _(
        "{rank} of {nodes}: waits for {address}, port {port}",
        rank=here.rank,
        nodes=run.settings.nodes,
        address=here.address,
        port=here.port,
    )
    print(f"node     {waits}", flush=True)
    if not wait_for_first_node(run, here):
        return _("{address} has ended without training: nothing to join.", address=here.address)
    said: List[Tuple[int, int]] = []

    def look(line: str) -> None:
        found = HEARTBEAT.search(line)
        if found:
            now, total = int(found[1]), int(found[2])
            if not said or now * 10 // total > said[-1][0] * 10 // total:
                print(_("  iteration {now}/{total}", now=now, total=total), flush=True)
            said.append((now, total))

    end = run_process(run, words, log, look)
    reached = _("no iteration")
    if said:
        reached = _("iteration {now} of {total}", now=said[-1][0], total=said[-1][1])
    if end.is_stopped:
        raise Stopped(
            _(
                "Stopped as asked (SIGTERM) at {iteration}: resume by typing the same command on all machines.",
                iteration=reached,
            )
        )
    if end.code:
        raise RunFailed(failure_message(run, end, log, {}))
    return _(
        "Ended at {iteration}. For the result see {address}, which also makes the adapter.",
        iteration=reached,
        address=here.address,
    )


STAGE = Stage("train", inputs, make, summary)
