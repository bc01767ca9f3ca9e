"""Judges a run in one line."""

import shlex
from typing import Any, Dict, NamedTuple

from recipe.core.commands import command_line
from recipe.reporting.format import number, rate
from recipe.reporting.run_view import RunView

LEARNED = 0.05  # a smaller relative drop of the training loss hardly counts

CAUSES = ("peak-not-reached", "few-updates")  # faults that leave a model unchanged


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
    updates = f"{trained['updates']:,} updates"
    loss = _loss_change(trained)
    if learned_nothing(view):
        left = (
            f"left all {merged['weights']:,} weights of the model unchanged"
            if merged
            else "left an adapter that is zero" if view.figures("adapter") else "change nothing"
        )  # fmt: skip
        reasons = " ".join(one["why"] for one in plan.get("refusals", []) if one["fault"] in CAUSES)
        return Verdict(
            "bad",
            f"The model learned nothing: {updates} at a learning rate of at most {rate(plan['lr_peak'])} {left}.",
            f"{loss} {reasons}".strip(),
        )
    changed = f"{merged['share_changed']:.1%} of the weights changed. " if merged else ""
    unseen = f"Answers to unseen questions were not evaluated; run {command_line('eval', shlex.quote(run.name))}."
    if view.evaluation:
        kind = {"better": "good", "worse": "bad"}.get(view.evaluation["verdict"], "flat")
        word = {"good": "Better than the base model", "bad": "Worse than the base model"}.get(
            kind, "No difference from the base model"
        )
        headline = view.evaluation["summary"].replace(f"{view.evaluation['verdict']}: ", "", 1)
        if not run.settings.model.is_tiny:
            return Verdict(kind, f"{word}: {headline}", f"{updates}. {changed}{loss}")
        # A tiny model with random weights only memorizes, so held-out data does not judge the recipe.
        unseen = f"{word} on held-out data, as expected for a model with random weights: {headline}."
    first, last = trained["loss_first"], trained["loss_last"]
    if not view.log["finite"] and view.steps:
        return Verdict("bad", f"Training diverged: the loss became {last} within {updates}.", changed)
    if first is None or last is None:
        return Verdict(
            "open", f"Trained, {updates}; the loss is unknown because the trainer's log was deleted.", changed
        )
    if 1 - last / first >= LEARNED:
        how = f"the training loss fell from {first:.3f} to {last:.3f} in {updates}"
        return Verdict("good", f"The model learned its training data: {how}.", f"{changed}{unseen}")
    how = f"the training loss changed from {first:.4f} to {last:.4f} in {updates}"
    return Verdict("flat", f"The model learned hardly anything: {how}.", f"{changed}{unseen}")


def _loss_change(trained: Dict[str, Any]) -> str:
    if trained["loss_first"] is None:
        return ""
    return f"Training loss {trained['loss_first']:.4f} → {trained['loss_last']:.4f}."


def learned_nothing(view: RunView) -> bool:
    """Whether the run changed nothing, judged by the merge, else by the adapter, else by the plan's learning rate."""
    if view.figures("merge"):
        return not view.figures("merge")["weights_changed"]
    if view.figures("adapter"):
        return view.figures("adapter")["underflow_share"] == 1.0
    return any(refusal["fault"] == "peak-not-reached" for refusal in view.plan.get("refusals", []))


def _not_trained(view: RunView) -> Verdict:
    run, plan = view.run, view.plan
    yet = "yet"
    if "train" in view.left_out:
        yet = "with these settings and data yet (the existing model was trained with others)"
    if view.steps and plan:
        at = f"iteration {view.log['reached']:,} of {plan['iterations']:,}"
        loss = f"Training loss {number(view.log['loss_first'], '.4f')} → {number(view.log['loss_last'], '.4f')}."
        if view.is_running:
            return Verdict("open", f"Training is running: {at}.", loss)
        return Verdict(
            "open", f"Training stopped at {at}.", f"{loss} Resume with {command_line('train', shlex.quote(run.name))}."
        )
    if view.is_running and run.figures("model"):
        return Verdict("open", "Training is about to start.")
    if plan and "plan" not in run.manifest["stages"]:
        why = " ".join(refusal["why"] for refusal in plan["refusals"])
        return Verdict("bad", "Nothing was trained: the plan refuses this run.", why)
    if plan and learned_nothing(view):
        why = " ".join(one["why"] for one in plan["refusals"] if one["fault"] in CAUSES)
        return Verdict(
            "bad",
            f"Nothing is trained {yet}, and the plan would learn nothing: {plan['updates']:,} updates at a "
            f"learning rate of at most {rate(plan['lr_peak'])}.",
            why,
        )
    if plan:
        headline = (
            f"Nothing is trained {yet}; the plan has {plan['updates']:,} updates in {plan['iterations']:,} iterations."
        )
        return Verdict("open", headline, f"Start training with {command_line('train', shlex.quote(run.name))}.")
    count = run.figures("data").get("conversations")
    headline = f"only the data stage has run: {count:,} conversations." if count else "no stage has finished."
    return Verdict(
        "open",
        f"Nothing is trained {yet}; {headline}",
        f"Predict the training with {command_line('plan', shlex.quote(run.name))}.",
    )
