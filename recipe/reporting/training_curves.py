"""The curves of a training, from the trainer's logs: loss, learning rate, gradient norm, memory or seconds."""

from typing import Dict, List

from recipe.core.translation import _, english
from recipe.reporting import charts
from recipe.reporting.run_view import RunView
from recipe.training import log


def run_charts(view: RunView) -> List[charts.Chart]:
    """Charts of the values in the trainer's logs. Their texts are English: `charts.draw` translates them."""
    with english():
        return _run_charts(view)


def _run_charts(view: RunView) -> List[charts.Chart]:
    steps, plan = view.steps, view.plan

    def curve(name: str) -> Dict[int, float]:
        return {n: step[name] for n, step in steps.items() if name in step}

    if not steps:
        return []
    found: List[charts.Chart] = []
    for name, title in (("loss", _("Training loss")), ("grad_norm", _("Gradient norm"))):
        # With gradient accumulation the window counts updates, so single values cannot be recovered.
        raw = log.per_iteration(steps, name) if name == "loss" or plan.get("accumulative_counts") == 1 else {}
        lines = [charts.Line(_("each iteration"), raw, "thin")] if raw else []
        lines.append(charts.Line(_("mean over {n}", n=log.WINDOW), curve(name)))
        note = _(
            "Mean over ten values, logged every {n} iterations; the log has no single values.", n=view.log["every"]
        )
        note = "" if raw else note
        if curve(name):
            found.append(charts.Chart(name.replace("_", "-"), title, lines, note=note))
    lines = [charts.Line(_("actual"), curve("lr"))]
    if plan.get("lr_trace"):
        lines.append(charts.Line(_("planned"), dict(enumerate(plan["lr_trace"], 1)), "dashed", "ink"))
    configured = plan.get("lr_configured") or 0.0
    low = plan.get("lr_peak", configured) < 0.1 * configured
    level = (_("configured"), configured) if low else None
    found.insert(1, charts.Chart("learning-rate", _("Learning rate"), lines, log_scale=low, level=level))
    if curve("memory_mb"):
        found.append(charts.Chart("memory", _("GPU memory, MiB"), [charts.Line(_("peak so far"), curve("memory_mb"))]))
    else:
        whole = log.per_iteration(steps, "seconds")
        lines = [charts.Line(_("each iteration"), whole, "thin")] if whole else []
        lines.append(charts.Line(_("mean over {n}", n=log.WINDOW), curve("seconds")))
        note = _("The log has no GPU memory: the run had no GPU.")
        found.append(charts.Chart("seconds", _("Seconds per iteration"), lines, note=note))
    return found
