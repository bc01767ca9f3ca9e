"""The sections of a report: key figures, setup, comparison with the plan, times, evaluation, changed weights."""

from typing import Any, Dict, List, Optional, Tuple

from recipe.core.run import Run
from recipe.core.translation import _, listed, mark, ngettext, sentences, stored
from recipe.reporting.format import Rows, number, percent, rate, seconds
from recipe.reporting.plan_table import join_numbers
from recipe.reporting.provenance import origin
from recipe.reporting.run_view import RunView
from recipe.training.fast.verdict import summary as step_summary
from recipe.weights.llava import NONE
from recipe.xtuner import preset_facts

TIME_BREAKDOWN = {
    "start": mark("start: libraries, model, data"), "iterations": mark("iterations"),
    "checkpoints": mark("checkpoints"), "answers": mark("answers to evaluation questions"),
}  # fmt: skip

# The figures of recipe/weights/adapter.py that hold parameter counts (LLAVA_PARTS).
VISION_PARTS = {"projector": mark("projector"), "visual_encoder_adapter": mark("visual encoder adapter")}


def key_figures(view: RunView) -> List[Tuple[str, str, str]]:
    """(label, figure, remark) for the top of the page."""
    trained, merged, found = view.figures("train"), view.figures("merge"), []
    if view.evaluation:
        base, tuned = (view.evaluation["models"][name]["loss"] for name in ("base", "tuned"))
        found.append((_("held-out loss"), f"{base:.3f} → {tuned:.3f}", _("nats per token, base → tuned")))
    if trained and trained["loss_first"] is not None:
        first, last = trained["loss_first"], trained["loss_last"]
        found.append((_("training loss"), f"{first:.3f} → {last:.3f}", f"{last / first - 1:+.1%}".replace("-", "−")))
    if merged:
        found.append(
            (_("weights changed"), f"{merged['share_changed']:.1%}", _("of {weights:,}", weights=merged["weights"]))
        )
    if trained:
        iterations = ngettext("{n:,} iteration", "{n:,} iterations", trained["iterations"])
        found.append((_("updates"), f"{trained['updates']:,}", iterations))
        configured = _("of {rate} configured", rate=rate(view.plan.get("lr_configured")))
        found.append((_("peak rate logged"), rate(trained["lr_peak_logged"]), configured))
        took = seconds(view.run.manifest["stages"]["train"]["seconds"])
        found.append((_("training took"), took, hardware(view.run)))
    elif view.plan:
        updates = ngettext("{n:,} update", "{n:,} updates", view.plan["updates"])
        found.append((_("iterations planned"), f"{view.plan['iterations']:,}", updates))
        configured = _("of {rate}", rate=rate(view.plan["lr_configured"]))
        found.append((_("peak rate planned"), rate(view.plan["lr_peak"]), configured))
    return found


def hardware(run: Run) -> str:
    machine = run.manifest.get("host", {})
    names = [gpu["name"] for gpu in machine.get("gpus", [])]
    if names:
        return f"{len(names)} × {names[0]}" if len(names) > 1 else names[0]
    return _("{cpus} CPU cores, no GPU", cpus=machine.get("cpus", "?"))


def training_setup(view: RunView) -> Rows:
    """The model, the method and the data of the training."""
    run, s, plan = view.run, view.run.settings, view.plan
    model, config, adapter, data = (run.figures(name) for name in ("model", "config", "adapter", "data"))
    rows: Rows = [*origin(run)]
    if model:
        size = f"{model['bytes'] / 1e6:,.1f} MB"
        rows.append((_("folder"), _("{first}, {second}", first=model["folder"], second=size)))
    lora = config.get("lora", {})
    if lora:
        how = _(
            "{method} in {dtype}, rank {rank}, alpha {alpha}, dropout {dropout}",
            method="LoRA" if config.get("method") == "lora" else "QLoRA",
            dtype=config["dtype"],
            rank=lora.get("r"),
            alpha=lora.get("lora_alpha"),
            dropout=lora.get("lora_dropout"),
        )
        if adapter:
            where = listed(adapter["targets"])
            how = _(
                "{how}, {n:,} parameters on {modules}",
                how=how,
                n=adapter["parameters"],
                modules=where,
            )
        rows.append((_("trained"), how))
    elif config.get("method") == "full":
        rows.append((_("trained"), _("all weights, in {dtype}", dtype=config["dtype"])))
    rows += _vision_rows(view)
    rows.append((_("data"), "; ".join(s.data.files)))
    if data:
        rows.append(
            (
                _("conversations"),
                ngettext(
                    "{conversations:,}, from {n:,} row",
                    "{conversations:,}, from {n:,} rows",
                    data["rows"],
                    conversations=data["conversations"],
                ),
            )
        )
    if plan:
        kept = {"tokens": plan["tokens"], "kept": plan["tokens_kept"], "share": plan["tokens_kept"] / plan["tokens"]}
        rows.append(
            (
                _("tokens"),
                _("{tokens:,}; {kept:,} kept ({share:.1%})", **kept)
                if "image_tokens" in plan
                else _("{tokens:,}; {kept:,} kept by packing ({share:.1%})", **kept),
            )
        )
        tokens, kept_tokens = plan["answer_tokens"], plan["answer_tokens_kept"]
        answers = _(
            "{tokens:,}; {kept:,} kept ({share:.1%})", tokens=tokens, kept=kept_tokens, share=kept_tokens / tokens
        )
        rows.append((_("with loss (answers)"), answers))
    rows.append((_("system prompt"), s.data.system or _("none")))
    rows.append((_("hardware"), hardware(run)))
    return rows


def _vision_rows(view: RunView) -> Rows:
    """The visual encoder and the trained vision parts."""
    run = view.run
    if not preset_facts.has_images(run.settings):
        return []
    chosen, adapter = run.settings.model, run.figures("adapter")
    encoder = chosen.visual_encoder
    if "image_tokens" in view.plan:
        encoder = _("{encoder}, {n} tokens per image", encoder=encoder, n=view.plan["image_tokens"])
    rows: Rows = [(_("visual encoder"), encoder)]
    parts = [
        _("{part}, {n:,} parameters", part=_(VISION_PARTS[name]), n=adapter[name])
        for name in VISION_PARTS
        if name in adapter
    ]
    if parts:
        rows.append((_("trained vision parts"), _("; ").join(parts)))
    if chosen.pretrained_pth:
        begins = _("random weights") if chosen.pretrained_pth == NONE else chosen.pretrained_pth
        rows.append((_("projector initialized from"), begins))
    if run.figures("data"):
        rows.append((_("images"), f"{run.figures('data')['images']:,}"))
    return rows


def compare_with_plan(view: RunView) -> List[Tuple[str, str, str, str]]:
    """(label, planned, actual, "same" | "differs" | "" if not comparable)."""
    plan, trained, log, cost = view.plan, view.figures("train"), view.log, view.plan.get("cost") or {}
    if not plan:
        return []
    rows = []

    def row(what: str, planned: str, happened: str, compared: bool = True) -> None:
        verdict = (mark("same") if planned == happened else mark("differs")) if compared and trained else ""
        rows.append((what, planned, happened if trained or view.steps else _("not yet"), verdict))

    reached = trained.get("iterations", log["reached"])
    row(_("iterations"), f"{plan['iterations']:,}", f"{reached:,}")
    row(_("optimizer updates"), f"{plan['updates']:,}", number(trained.get("updates")))
    peak = rate(trained.get("lr_peak_logged", log["lr_peak"]))
    if log["every"] > 1:
        peak = _("{rate}, logged every {n}th", rate=peak, n=log["every"])
    # A log of every tenth iteration may miss the peak.
    row(_("peak learning rate"), rate(plan["lr_peak"]), peak, log["every"] == 1)
    epochs = plan["iterations"] / plan["iterations_per_epoch"]
    done = reached / plan["iterations_per_epoch"]
    row(
        _("tokens trained on"),
        f"{round(plan['tokens_kept'] * epochs):,}",
        f"{round(plan['tokens_kept'] * done):,}",
    )
    row(
        _("evaluations at"),
        join_numbers(plan["evaluations"]),
        join_numbers([one.iteration for one in view.answers]) or _("not in the log"),
        bool(view.answers),
    )
    planned = _("not estimated")
    if cost.get("seconds"):
        estimate = {"time": seconds(cost["seconds"]), "card": cost["card"]}
        planned = (
            _("at most {time} on {card}", **estimate) if cost.get("at_most") else _("{time} on {card}", **estimate)
        )
    row(_("seconds of iterations"), planned, seconds(iteration_seconds(view)), False)
    planned = _("not estimated")
    if cost.get("memory_mib"):
        planned = _("{memory:,} MiB on {card}", memory=cost["memory_mib"], card=cost["card"])
    happened = f"{log['memory_mib']:,.0f} MiB" if log["memory_mib"] else _("no GPU")
    row(_("GPU memory"), planned, happened, False)
    if trained.get("fast_step"):
        row(_("training step"), stored(plan.get("way", "")), stored(step_summary(trained["fast_step"])), False)
    return rows


def stage_times(view: RunView, price: float) -> Tuple[List[Dict[str, Any]], Dict[str, Any]]:
    """(a row per stage: what, seconds, share, cost, memory in MB), and the total."""
    entries = view.run.manifest["stages"]
    total = sum(entry["seconds"] for entry in entries.values())
    rows = [
        {
            "what": name,
            "seconds": entry["seconds"],
            "share": entry["seconds"] / total if total else 0.0,
            "cost": entry["seconds"] / 3600 * price,
            "memory": entry["peak_memory_mb"],
        }
        for name, entry in entries.items()
    ]
    return rows, {"seconds": total, "cost": total / 3600 * price}


def iteration_seconds(view: RunView) -> Optional[float]:
    """Seconds spent in iterations, from TimingHook if it ran; mmengine's figure includes answers and checkpoints."""
    return view.figures("train").get("time_breakdown", {}).get("iterations", view.log["seconds"])


def time_breakdown(view: RunView) -> Rows:
    """(label, time as text) for the parts of training; [] if training has not finished or did not measure them."""
    found = view.figures("train").get("time_breakdown", {})
    return [(_(what), seconds(found[name])) for name, what in TIME_BREAKDOWN.items() if name in found]


def evaluation_rows(evaluation: Dict[str, Any]) -> List[Tuple[str, str, str]]:
    """(metric, base, tuned) of eval.json."""
    base, tuned = evaluation["models"]["base"], evaluation["models"]["tuned"]
    forms = {
        "loss": (_("loss, nats per token"), ".4f"),
        "perplexity": (_("perplexity"), ",.2f"),
        "bleu4": ("BLEU-4", ".2f"),
        "rouge_l": ("ROUGE-L", ".2f"),
        "chrf": ("chrF", ".2f"),
        "repetition": (_("answers with repetition"), ".1%"),
        "copied": (_("answers copied from training"), ".1%"),
        "never_stops": (_("answers without an end"), ".1%"),
        "answer_length": (_("mean answer length, characters"), ",.1f"),
    }

    def figure(model: Dict[str, Any], name: str, form: str) -> str:
        value = model.get(name)
        if not isinstance(value, (int, float)):
            return "—"
        low, high = model.get(f"{name}_interval") or (None, None)
        shown = format(value, form)
        if low is None:
            return shown
        return _("{figure} ({low} to {high})", figure=shown, low=format(low, form), high=format(high, form))

    return [
        (what, figure(base, name, form), figure(tuned, name, form))
        for name, (what, form) in forms.items()
        if name in base or name in tuned
    ]


def measured(evaluation: Dict[str, Any]) -> str:
    """What the evaluation was measured on, and by how much the losses differ."""
    count, found = evaluation["conversations"], evaluation["difference"]
    size = ngettext("{n} held-out conversation.", "{n} held-out conversations.", count)
    if evaluation.get("tokens"):
        size = ngettext(
            "{n} held-out conversation, {tokens:,} tokens of answers.",
            "{n} held-out conversations, {tokens:,} tokens of answers.",
            count,
            tokens=evaluation["tokens"],
        )
    loss = f"{found['loss']:+.4f}"
    if found.get("interval"):
        low, high = found["interval"]
        loss = _("{figure} ({low} to {high})", figure=loss, low=f"{low:+.4f}", high=f"{high:+.4f}")
    if "lower_in" not in found:
        return sentences(size, _("The loss differs by {loss}.", loss=loss))
    lower = _(
        "The loss differs by {loss}; it is lower in {lower} of {conversations} conversations.",
        loss=loss,
        lower=found["lower_in"],
        conversations=count,
    )
    return sentences(size, lower)


def changed(view: RunView) -> str:
    """Which weights the merge has changed; before the merge, what the adapter has."""
    merge, adapter = view.figures("merge"), view.figures("adapter")
    lost = f"{100 * (adapter.get('underflow_share') or 0.0):.2f} %"
    if merge:
        return sentences(
            _(
                "{n:,} of {weights:,} weights ({share}), in {tensors} of {all_tensors} tensors.",
                n=merge["weights_changed"],
                weights=merge["weights"],
                share=percent(merge["share_changed"]),
                tensors=merge["tensors_changed"],
                all_tensors=merge["tensors"],
            ),
            _(
                "Saved as {dtype}, {share} of the adapter's weights underflow to zero.",
                dtype=adapter["dtype"],
                share=lost,
            )
            if adapter.get("underflow_share")
            else "",
        )
    if not adapter:
        return ""
    if view.figures("config").get("method") == "projector":
        return _(
            "None in the language model: this stage trains only the projector ({n:,} parameters). The second stage "
            "starts from it.",
            n=adapter["projector"],
        )
    return _(
        "Not merged yet. The adapter has {n:,} parameters; saved as {dtype}, {share} of them underflow to zero.",
        n=adapter["parameters"],
        dtype=adapter["dtype"],
        share=lost,
    )


def module_changes(view: RunView) -> List[Dict[str, Any]]:
    """Changed weights per kind of module, from the merge."""
    return [
        {"what": name, "share": kind["weights_changed"] / kind["weights"] if kind["weights"] else 0.0, **kind}
        for name, kind in view.figures("merge").get("kinds", {}).items()
    ]
