"""What became of a run, in one line."""

from typing import Any, Dict, NamedTuple

from recipe.core.commands import command_line
from recipe.reporting.format import number, rate
from recipe.reporting.run_view import RunView, is_tiny

LEARNED = 0.05  # a fall of the training loss below this share is hardly one

CAUSES = ("peak-not-reached", "few-updates")  # of what the plan refuses, what leaves a model as it was


class Verdict(NamedTuple):
    """What became of the run: `kind` is good, bad, flat or open, `headline` one line, `details` the figures behind it."""

    kind: str
    headline: str
    details: str = ""


def judge_run(view: RunView) -> Verdict:
    """One line on what was learned: by eval.json, else by the weights changed and the loss."""
    run, plan, trained, merged = view.run, view.plan, view.figures("train"), view.figures("merge")
    if not trained:
        return _not_trained(view)
    updates = f"{trained['updates']:,} updates"
    loss = _loss_change(trained)
    if learned_nothing(view):
        left = (
            f"leave all {merged['weights']:,} weights of the model as they were"
            if merged
            else "leave an adapter that is zero" if view.figures("adapter") else "are none"
        )  # fmt: skip
        reasons = " ".join(one["why"] for one in plan.get("refusals", []) if one["fault"] in CAUSES)
        return Verdict(
            "bad",
            f"Nothing was learned: {updates} at a learning rate of at most {rate(plan['lr_peak'])} {left}.",
            f"{loss} {reasons}".strip(),
        )
    changed = f"{merged['share_changed']:.1%} of the weights changed. " if merged else ""
    unseen = (
        f"How it does on questions that it was not trained on was not measured: {command_line('eval')} {run.name} does."
    )
    if view.evaluation:
        kind = {"better": "good", "worse": "bad"}.get(view.evaluation["verdict"], "flat")
        word = {"good": "Better than before", "bad": "Worse than before"}.get(kind, "No difference from before")
        headline = view.evaluation["summary"].replace(f"{view.evaluation['verdict']}: ", "", 1)
        if not is_tiny(run):
            return Verdict(kind, f"{word}: {headline}", f"{updates}. {changed}{loss}")
        # A model of random weights learns by heart and nothing that holds: what was held out judges no recipe.
        unseen = f"{word} on what was held out, which is right for a model of random weights: {headline}."
    first, last = trained["loss_first"], trained["loss_last"]
    if not view.log["finite"] and view.steps:
        return Verdict("bad", f"Training failed to hold: its loss became {last}, no number, in {updates}.", changed)
    if first is None or last is None:
        return Verdict("open", f"Trained, {updates}; the trainer's log is gone, so its loss is not known.", changed)
    if 1 - last / first >= LEARNED:
        how = f"the training loss fell from {first:.3f} to {last:.3f} in {updates}"
        return Verdict("good", f"It learned what it was trained on: {how}.", f"{changed}{unseen}")
    how = f"the training loss went from {first:.4f} to {last:.4f} in {updates}"
    return Verdict("flat", f"Hardly anything was learned: {how}.", f"{changed}{unseen}")


def _loss_change(trained: Dict[str, Any]) -> str:
    if trained["loss_first"] is None:
        return ""
    return f"Training loss {trained['loss_first']:.4f} → {trained['loss_last']:.4f}."


def learned_nothing(view: RunView) -> bool:
    """Whether the run cannot have changed anything: by the merge, else by the adapter, else by the plan's rate."""
    if view.figures("merge"):
        return not view.figures("merge")["weights_changed"]
    if view.figures("adapter"):
        return view.figures("adapter")["underflow_share"] == 1.0
    return any(refusal["fault"] == "peak-not-reached" for refusal in view.plan.get("refusals", []))


def _not_trained(view: RunView) -> Verdict:
    run, plan = view.run, view.plan
    yet = "yet"
    if "train" in view.left_out:
        yet = "with these settings and data yet (the model that is here was with others)"
    if view.steps and plan:
        at = f"iteration {view.log['reached']:,} of {plan['iterations']:,}"
        loss = f"Training loss {number(view.log['loss_first'], '.4f')} → {number(view.log['loss_last'], '.4f')}."
        if view.is_running:
            return Verdict("open", f"Training is under way: {at}.", loss)
        return Verdict(
            "open", f"Training stopped at {at}.", f"{loss} {command_line('train')} {run.name} goes on from there."
        )
    if view.is_running and run.figures("model"):
        return Verdict("open", "Training is about to begin.")
    if plan and "plan" not in run.manifest["stages"]:
        why = " ".join(refusal["why"] for refusal in plan["refusals"])
        return Verdict("bad", "Nothing was trained: the plan refuses this run.", why)
    if plan and learned_nothing(view):
        why = " ".join(one["why"] for one in plan["refusals"] if one["fault"] in CAUSES)
        return Verdict(
            "bad",
            f"Nothing is trained {yet}, and as planned nothing will be learned: {plan['updates']:,} updates at a "
            f"learning rate of at most {rate(plan['lr_peak'])}.",
            why,
        )
    if plan:
        headline = (
            f"Nothing is trained {yet}; planned are {plan['updates']:,} updates in {plan['iterations']:,} iterations."
        )
        return Verdict("open", headline, f"{command_line('train')} {run.name} trains.")
    count = run.figures("data").get("conversations")
    headline = f"only the data are read: {count:,} conversations." if count else "no stage has come to its end."
    return Verdict(
        "open",
        f"Nothing is trained {yet}; {headline}",
        f"{command_line('plan')} {run.name} says what training will do.",
    )
