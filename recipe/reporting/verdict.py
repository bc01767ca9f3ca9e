"""Judges a run in one line."""

import shlex
from typing import Any, Dict, List, NamedTuple

from recipe.core.commands import command_line
from recipe.core.translation import _, mark, ngettext, sentences, stored
from recipe.reporting.format import number, rate
from recipe.reporting.run_view import RunView

LEARNED = 0.05  # a smaller relative drop of the training loss hardly counts

CAUSES = ("peak-not-reached", "few-updates")  # faults that leave a model unchanged

# eval.json's summary without its first word (recipe/inference/evaluate.py).
MEASURED = mark(
    "held-out loss {base} → {tuned} nats per token, difference {loss} (95 % interval {low} to {high}), lower in "
    "{lower} of {conversations} conversations"
)


class Verdict(NamedTuple):
    """The verdict on a run: `kind` is good, bad, flat or open, `headline` one line, `details` the figures behind it."""

    kind: str
    headline: str
    details: str = ""


def judge_run(view: RunView) -> Verdict:
    """Judge what the run learned: by eval.json, else by the changed weights and the training loss."""
    run, plan, trained, merged = view.run, view.plan, view.figures("train"), view.figures("merge")
    if not trained:
        return _not_trained(view)
    updates = ngettext("{n:,} update", "{n:,} updates", trained["updates"])
    loss = _loss_change(trained)
    if learned_nothing(view):
        values = {"updates": updates, "rate": rate(plan["lr_peak"])}
        if merged:
            headline = _(
                "The model learned nothing: {updates} at a learning rate of at most {rate} left all {weights:,} "
                "weights of the model unchanged.",
                weights=merged["weights"],
                **values,
            )
        elif view.figures("adapter"):
            headline = _(
                "The model learned nothing: {updates} at a learning rate of at most {rate} left an adapter that "
                "is zero.",
                **values,
            )
        else:
            headline = _(
                "The model learned nothing: {updates} at a learning rate of at most {rate} change nothing.", **values
            )
        return Verdict("bad", headline, sentences(loss, *_causes(plan)))
    changed = _("{share:.1%} of the weights changed.", share=merged["share_changed"]) if merged else ""
    unseen = _(
        "Answers to unseen questions were not evaluated; run {command}.",
        command=command_line("eval", shlex.quote(run.name)),
    )
    if view.evaluation:
        kind = {"better": "good", "worse": "bad"}.get(view.evaluation["verdict"], "flat")
        figures = stored(view.evaluation["summary"].replace(f"{view.evaluation['verdict']}: ", "", 1))
        if not run.settings.model.is_tiny:
            headlines = {
                "good": mark("Better than the base model: {figures}"),
                "bad": mark("Worse than the base model: {figures}"),
                "flat": mark("No difference from the base model: {figures}"),
            }
            return Verdict(
                kind, _(headlines[kind], figures=figures), sentences(_("{text}.", text=updates), changed, loss)
            )
        # A tiny model with random weights only memorizes, so held-out data does not judge the recipe.
        expected = {
            "good": mark(
                "Better than the base model on held-out data, as expected for a model with random weights: {figures}."
            ),
            "bad": mark(
                "Worse than the base model on held-out data, as expected for a model with random weights: {figures}."
            ),
            "flat": mark(
                "No difference from the base model on held-out data, as expected for a model with random weights: "
                "{figures}."
            ),
        }
        unseen = _(expected[kind], figures=figures)
    first, last = trained["loss_first"], trained["loss_last"]
    if not view.log["finite"] and view.steps:
        diverged = _("Training diverged: the loss became {loss} within {updates}.", loss=last, updates=updates)
        return Verdict("bad", diverged, changed)
    if first is None or last is None:
        unknown = _("Trained, {updates}; the loss is unknown because the trainer's log was deleted.", updates=updates)
        return Verdict("open", unknown, changed)
    values = {"first": first, "last": last, "updates": updates}
    details = sentences(changed, unseen)
    if 1 - last / first >= LEARNED:
        learned = _(
            "The model learned its training data: the training loss fell from {first:.3f} to {last:.3f} in {updates}.",
            **values,
        )
        return Verdict("good", learned, details)
    hardly = _(
        "The model learned hardly anything: the training loss changed from {first:.4f} to {last:.4f} in {updates}.",
        **values,
    )
    return Verdict("flat", hardly, details)


def _causes(plan: Dict[str, Any]) -> List[str]:
    """Why a plan's training changes nothing."""
    return [stored(one["why"]) for one in plan.get("refusals", []) if one["fault"] in CAUSES]


def _loss_change(trained: Dict[str, Any]) -> str:
    if trained["loss_first"] is None:
        return ""
    return _loss(f"{trained['loss_first']:.4f}", f"{trained['loss_last']:.4f}")


def _loss(first: str, last: str) -> str:
    return _("Training loss {first} → {last}.", first=first, last=last)


def learned_nothing(view: RunView) -> bool:
    """Whether the run changed nothing, judged by the merge, else by the adapter, else by the plan's learning rate."""
    if view.figures("merge"):
        return not view.figures("merge")["weights_changed"]
    if view.figures("adapter"):
        return view.figures("adapter")["underflow_share"] == 1.0
    return any(refusal["fault"] == "peak-not-reached" for refusal in view.plan.get("refusals", []))


def _not_trained(view: RunView) -> Verdict:
    run, plan = view.run, view.plan
    name = shlex.quote(run.name)
    if view.steps and plan:
        at = {"reached": view.log["reached"], "iterations": plan["iterations"]}
        loss = _loss(number(view.log["loss_first"], ".4f"), number(view.log["loss_last"], ".4f"))
        if view.is_running:
            return Verdict("open", _("Training is running: iteration {reached:,} of {iterations:,}.", **at), loss)
        stopped = _("Training stopped at iteration {reached:,} of {iterations:,}.", **at)
        again = _("Resume with {command}.", command=command_line("train", name))
        return Verdict("open", stopped, sentences(loss, again))
    if view.is_running and run.figures("model"):
        return Verdict("open", _("Training is about to start."))
    if plan and "plan" not in run.manifest["stages"]:
        why = sentences(*(stored(refusal["why"]) for refusal in plan["refusals"]))
        return Verdict("bad", _("Nothing was trained: the plan refuses this run."), why)
    yet = _("Nothing is trained yet")
    if "train" in view.left_out:
        yet = _("Nothing is trained with these settings and data yet (the existing model was trained with others)")
    if plan and learned_nothing(view):
        nothing = ngettext(
            "{yet}, and the plan would learn nothing: {n:,} update at a learning rate of at most {rate}.",
            "{yet}, and the plan would learn nothing: {n:,} updates at a learning rate of at most {rate}.",
            plan["updates"],
            yet=yet,
            rate=rate(plan["lr_peak"]),
        )
        return Verdict("bad", nothing, sentences(*_causes(plan)))
    if plan:
        headline = _(
            "{yet}; the plan has {updates} in {iterations}.",
            yet=yet,
            updates=ngettext("{n:,} update", "{n:,} updates", plan["updates"]),
            iterations=ngettext("{n:,} iteration", "{n:,} iterations", plan["iterations"]),
        )
        return Verdict("open", headline, _("Start training with {command}.", command=command_line("train", name)))
    count = run.figures("data").get("conversations")
    if count:
        headline = ngettext(
            "{yet}; only the data stage has run: {n:,} conversation.",
            "{yet}; only the data stage has run: {n:,} conversations.",
            count,
            yet=yet,
        )
    else:
        headline = _("{yet}; no stage has finished.", yet=yet)
    return Verdict("open", headline, _("Predict the training with {command}.", command=command_line("plan", name)))
