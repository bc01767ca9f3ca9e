"""The run as it is now, as HTML: curves, progress, answers so far. Drawn once for all who look."""

import threading
from typing import Any, Dict, List, NamedTuple, Tuple

from recipe.core.hashing import stamp
from recipe.core.run import is_locked
from recipe.reporting import charts as curves
from recipe.reporting import collect, format, sections
from recipe.reporting.collect import Seen
from recipe.training import log
from recipe.web import html, shared
from recipe.web.words import CHARTS, say

ANSWERED = 3  # times of asking that are shown, the last first


class Found(NamedTuple):
    """Blocks of HTML, each of one line; `working`: somebody is at work on the run."""

    blocks: List[str]
    working: bool


_lock = threading.Lock()  # matplotlib draws for one at a time
_drawn: Dict[str, Tuple[Any, Found]] = {}  # language → (of what, what was made of it)


def blocks(language: str) -> Found:
    """The run as it is now; drawn anew where its folder has changed. Raises InputWrong while there is no run."""
    run = shared.find()
    with _lock:
        place = log.training_folder(run)
        files = [run.folder / "run.json", *(sorted(place.glob("*/vis_data/scalars.json")) if place else [])]
        files += [place / "train.log"] if place else []
        working = is_locked(run.folder)
        now = [[stamp(file) for file in files], working]
        if language not in _drawn or _drawn[language][0] != now:
            _drawn[language] = (now, Found(_blocks(collect.see(run, working), language), working))
        return _drawn[language][1]


def _blocks(seen: Seen, language: str) -> List[str]:
    found = [_head(seen, language)]
    charts = sections.charts(seen)
    pictures = "".join(_figure(one, language) for one in curves.draw(charts)) if charts else ""
    found.append(f'<div class="charts">{pictures}</div>' if pictures else _note("no curve", language))
    found.append(html.heading(say("said", language), 2))
    found += [_answers(one, language, n == 0) for n, one in enumerate(reversed(seen.answers[-ANSWERED:]))]
    return found if seen.answers else [*found, _note("no answers", language)]


def _note(key: str, language: str) -> str:
    return f'<p class="note">{html.text(say(key, language))}</p>'


def _state(seen: Seen) -> str:
    if seen.figures("train"):
        return "trained"
    if seen.steps:
        return "under way" if seen.working else "halted"
    return "begins" if seen.working and seen.run.figures("model") else "not yet"


def _head(seen: Seen, language: str) -> str:
    """State, progress and the figures of the last iteration."""
    reached, planned = seen.log["reached"], seen.plan.get("iterations", 0)
    state = _state(seen)
    if seen.figures("train"):
        reached = planned = seen.figures("train")["iterations"]
    line = f'<p class="state {state.replace(" ", "-")}" role="status">{html.text(say(state, language))}</p>'
    if not planned:
        return line
    name = html.text(say("progress", language))
    bar = f'<progress max="{planned}" value="{reached}" aria-label="{name}">{reached / planned:.0%}</progress>'
    last = seen.steps[max(seen.steps)] if seen.steps else {}
    rows = {say("iteration", language): f"{reached:,} / {planned:,}"}
    if "loss" in last:
        rows[say("loss", language)] = f"{seen.log['loss_first']:.3f} → {last['loss']:.3f}"
    if "lr" in last:
        rows[say("lr", language)] = format.rate(last["lr"])
    if seen.log["seconds"]:
        rows[say("took", language)] = format.seconds(seen.log["seconds"])
        if state == "under way" and reached:
            rows[say("left", language)] = format.seconds(seen.log["seconds"] / reached * (planned - reached))
    if seen.log["memory_mib"]:
        rows[say("memory_mb", language)] = f"{seen.log['memory_mib']:,.0f} MiB"
    return line + bar + html.tiles(rows)


def _figure(picture: curves.Picture, language: str) -> str:
    svg, title = " ".join(picture.svg.split()), picture.title
    if language == "zh-CN":
        title = CHARTS.get(title, title)
        for english, chinese in CHARTS.items():
            for place in (">{}</text>", 'aria-label="{}"'):
                svg = svg.replace(place.format(english), place.format(chinese))
    return f"<figure><figcaption>{html.text(title)}</figcaption>{svg}</figure>"


def _answers(one: log.Answers, language: str, shown: bool) -> str:
    summary = html.text(say("at", language, f"{one.iteration:,}"))
    said = ""
    for question, answer, ended in one.replies:
        note = "" if ended else say("cut", language)
        box = html.said(say("tuned", language), answer or say("nothing", language), note, "tuned")
        said += html.turn(question, [box], language)
    return f"<details{' open' if shown else ''}><summary>{summary}</summary>{said}</details>"
