"""Renders the run's current state as HTML: progress, curves, answers. All sessions share the result."""

import threading
from typing import Any, Dict, List, NamedTuple, Tuple

from recipe.core.hashing import stamp
from recipe.core.run import is_locked
from recipe.core.translation import _, language, mark
from recipe.reporting import charts, format, run_view, training_curves
from recipe.reporting.run_view import RunView
from recipe.training import log
from recipe.web import html, shared

STATES = {
    "under-way": mark("Training is running"), "trained": mark("Trained"), "begins": mark("Training is about to start"),
    "halted": mark("Training was interrupted; run the same command to resume"),
    "not-yet": mark("Nothing is trained yet"),
}  # fmt: skip
MAX_ANSWERS = 3  # evaluations to show, newest first


class RunStatus(NamedTuple):
    """Blocks of HTML, each on one line; `is_running`: whether a command is running in the run's folder."""

    blocks: List[str]
    is_running: bool


_lock = threading.Lock()  # matplotlib is not thread-safe
_drawn: Dict[str, Tuple[Any, RunStatus]] = {}  # language → (version of the files, result)


def run_status() -> RunStatus:
    """The run's current state in the user's language; rendered again only if its files changed.

    Raises InputWrong if there is no run.
    """
    name = language()
    run = shared.find_run()
    with _lock:
        trainer_folder = log.training_folder(run)
        files = [
            run.folder / "run.json",
            *(sorted(trainer_folder.glob("*/vis_data/scalars.json")) if trainer_folder else []),
        ]
        files += [trainer_folder / "train.log"] if trainer_folder else []
        is_running = is_locked(run.folder)
        version = [[stamp(file) for file in files], is_running]
        if name not in _drawn or _drawn[name][0] != version:
            run = shared.find_run()  # again: it may have changed before its version was taken
            _drawn[name] = (version, RunStatus(_render(run_view.read_run(run, is_running)), is_running))
        return _drawn[name][1]


def _render(view: RunView) -> List[str]:
    found = [_head(view)]
    run_charts = training_curves.run_charts(view)
    pictures = "".join(map(_figure, charts.draw(run_charts))) if run_charts else ""
    found.append(f'<div class="charts">{pictures}</div>' if pictures else _note(_("No training log yet.")))
    found.append(html.heading(_("Answers during training"), 2))
    found += [_answers(one, n == 0) for n, one in enumerate(reversed(view.answers[-MAX_ANSWERS:]))]
    return found if view.answers else [*found, _note(_("No answers yet."))]


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _state(view: RunView) -> str:
    if view.figures("train"):
        return "trained"
    if view.steps:
        return "under-way" if view.is_running else "halted"
    return "begins" if view.is_running and view.run.figures("model") else "not-yet"


def _head(view: RunView) -> str:
    """State, progress and figures of the last iteration."""
    reached, planned = view.log["reached"], view.plan.get("iterations", 0)
    state = _state(view)
    if view.figures("train"):
        reached = planned = view.figures("train")["iterations"]
    line = f'<p class="state {state}" role="status">{html.escape(_(STATES[state]))}</p>'
    if not planned:
        return line
    name = html.escape(_("Progress"))
    bar = f'<progress max="{planned}" value="{reached}" aria-label="{name}">{reached / planned:.0%}</progress>'
    last = view.steps[max(view.steps)] if view.steps else {}
    rows = {_("Iteration"): f"{reached:,} / {planned:,}"}
    if "loss" in last:
        rows[_("Training loss")] = f"{view.log['loss_first']:.3f} → {last['loss']:.3f}"
    if "lr" in last:
        rows[_("Learning rate")] = format.rate(last["lr"])
    if view.log["seconds"]:
        rows[_("Time in iterations")] = format.seconds(view.log["seconds"])
        if state == "under-way" and reached:
            rows[_("Time left")] = format.seconds(view.log["seconds"] / reached * (planned - reached))
    if view.log["memory_mib"]:
        rows[_("GPU memory")] = f"{view.log['memory_mib']:,.0f} MiB"
    return line + bar + html.tiles(rows)


def _figure(picture: charts.Picture) -> str:
    svg = " ".join(picture.svg.split())
    return f"<figure><figcaption>{html.escape(picture.title)}</figcaption>{svg}</figure>"


def _answers(one: log.Answers, is_open: bool) -> str:
    summary = html.escape(_("at iteration {number:,}", number=one.iteration))
    said = ""
    for question, answer, ended in one.replies:
        note = "" if ended else _("length limit reached")
        box = html.answer_box(_("Tuned"), answer or _("(empty)"), note, "tuned")
        said += html.turn(question, [box])
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{said}</details>"
