"""Renders the run's current state as HTML: progress, curves, answers. All sessions share the result."""

import threading
from typing import Any, Dict, List, NamedTuple, Tuple

from recipe.core.hashing import stamp
from recipe.core.run import is_locked
from recipe.reporting import charts, format, run_view, sections
from recipe.reporting.run_view import RunView
from recipe.training import log
from recipe.web import html, shared
from recipe.web.texts import CHARTS, translate

MAX_ANSWERS = 3  # evaluations to show, newest first


class RunStatus(NamedTuple):
    """Blocks of HTML, each on one line; `is_running`: whether a command is running in the run's folder."""

    blocks: List[str]
    is_running: bool


_lock = threading.Lock()  # matplotlib is not thread-safe
_drawn: Dict[str, Tuple[Any, RunStatus]] = {}  # language → (version of the files, result)


def run_status(language: str) -> RunStatus:
    """The run's current state; rendered again only if its files changed. Raises InputWrong if there is no run."""
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
        if language not in _drawn or _drawn[language][0] != version:
            _drawn[language] = (version, RunStatus(_render(run_view.read_run(run, is_running), language), is_running))
        return _drawn[language][1]


def _render(view: RunView, language: str) -> List[str]:
    found = [_head(view, language)]
    run_charts = sections.run_charts(view)
    pictures = "".join(_figure(one, language) for one in charts.draw(run_charts)) if run_charts else ""
    found.append(f'<div class="charts">{pictures}</div>' if pictures else _note("no curve", language))
    found.append(html.heading(translate("said", language), 2))
    found += [_answers(one, language, n == 0) for n, one in enumerate(reversed(view.answers[-MAX_ANSWERS:]))]
    return found if view.answers else [*found, _note("no answers", language)]


def _note(key: str, language: str) -> str:
    return f'<p class="note">{html.escape(translate(key, language))}</p>'


def _state(view: RunView) -> str:
    if view.figures("train"):
        return "trained"
    if view.steps:
        return "under way" if view.is_running else "halted"
    return "begins" if view.is_running and view.run.figures("model") else "not yet"


def _head(view: RunView, language: str) -> str:
    """State, progress and figures of the last iteration."""
    reached, planned = view.log["reached"], view.plan.get("iterations", 0)
    state = _state(view)
    if view.figures("train"):
        reached = planned = view.figures("train")["iterations"]
    line = f'<p class="state {state.replace(" ", "-")}" role="status">{html.escape(translate(state, language))}</p>'
    if not planned:
        return line
    name = html.escape(translate("progress", language))
    bar = f'<progress max="{planned}" value="{reached}" aria-label="{name}">{reached / planned:.0%}</progress>'
    last = view.steps[max(view.steps)] if view.steps else {}
    rows = {translate("iteration", language): f"{reached:,} / {planned:,}"}
    if "loss" in last:
        rows[translate("loss", language)] = f"{view.log['loss_first']:.3f} → {last['loss']:.3f}"
    if "lr" in last:
        rows[translate("lr", language)] = format.rate(last["lr"])
    if view.log["seconds"]:
        rows[translate("took", language)] = format.seconds(view.log["seconds"])
        if state == "under way" and reached:
            rows[translate("left", language)] = format.seconds(view.log["seconds"] / reached * (planned - reached))
    if view.log["memory_mib"]:
        rows[translate("memory_mb", language)] = f"{view.log['memory_mib']:,.0f} MiB"
    return line + bar + html.tiles(rows)


def _figure(picture: charts.Picture, language: str) -> str:
    svg, title = " ".join(picture.svg.split()), picture.title
    if language == "zh-CN":
        title = CHARTS.get(title, title)
        for english, chinese in CHARTS.items():
            for pattern in (">{}</text>", 'aria-label="{}"'):
                svg = svg.replace(pattern.format(english), pattern.format(chinese))
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"


def _answers(one: log.Answers, language: str, is_open: bool) -> str:
    summary = html.escape(translate("at", language, f"{one.iteration:,}"))
    said = ""
    for question, answer, ended in one.replies:
        note = "" if ended else translate("cut", language)
        box = html.answer_box(translate("tuned", language), answer or translate("nothing", language), note, "tuned")
        said += html.turn(question, [box], language)
    return f"<details{' open' if is_open else ''}><summary>{summary}</summary>{said}</details>"
