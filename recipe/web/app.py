"""The page: Streamlit runs this file anew for every session and every click.

Three parts: talk to base and tuned model side by side, the run as it is now, the data. A session's own things (its
conversation, its ticket at the desk) are in st.session_state; what all share is in shared.py.
"""

import dataclasses
import json
import time
from typing import Any, Dict, List, NamedTuple

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.web.server.websocket_headers import _get_websocket_headers

from recipe.core.errors import InputWrong
from recipe.inference import loading
from recipe.reporting import data_report
from recipe.reporting import pages as webpage
from recipe.web import html, live, shared
from recipe.web.desk import PANES, Ticket
from recipe.web.words import LANGUAGES, say

SAMPLES = 6  # questions of the recipe that are offered
OFTEN = 0.1  # seconds between looks at an answer
REFRESH, SELDOM = 2, 10  # and at the run's folder, which page.js asks for: while somebody works on it, and else
LONGEST = 8000  # characters of a question
# How answers are drawn: by default as in `just chat`. Name: default, least, most, step.
PARAMETERS: Dict[str, Any] = {
    "temperature": (0.0, 0.0, 2.0, 0.1),
    "top_p": (0.8, 0.01, 1.0, 0.05),
    "limit": (512, 1, 4096, 32),
    "seed": (0, 0, 2**31 - 1, 1),
}


class Turn(NamedTuple):
    """A question with both answers; `marks`: "", "stopped" or "cut" for each."""

    question: str
    said: Dict[str, str]
    marks: Dict[str, str]
    error: str
    unseen: int


def main() -> None:
    st.set_page_config(page_title="InternLM2", page_icon=None, layout="wide", initial_sidebar_state="collapsed")
    state = st.session_state
    state.setdefault("turns", [])
    state.setdefault("ticket", None)
    state.setdefault("spoken", first_language())
    for name, (default, *_) in PARAMETERS.items():
        state[name] = state.get(name, default)  # said again: Streamlit forgets what a page does not show
    spoken = LANGUAGES[state.spoken]
    try:
        run = shared.find()
    except InputWrong as error:
        st.error(str(error))
        return
    # What page.js says, and in which language.
    told = "".join(f' data-{word}="{say(word, spoken)}"' for word in ("send", "copied", "less", "more"))
    name, title = html.text(run.name), say("title " + state.setdefault("page", "talk"), spoken)
    head = f'<p class="kicker">{name}</p>{html.heading(title, 1)}'
    show(f'<div id="page" lang="{spoken}" data-title="{name}"{told}>{head}</div>')
    left, right = st.columns([3, 2])
    pages = {"talk": talk, "run": watch, "data": data}
    with left:
        page = st.radio(say("page", spoken), list(pages), format_func=lambda key: say(key, spoken), horizontal=True,
                        key="page", label_visibility="collapsed")  # fmt: skip
    with right:
        st.radio("Language · 语言", list(LANGUAGES), horizontal=True, key="spoken", label_visibility="collapsed")
    pages[page](run, spoken)


def show(line: str, place: Any = st) -> None:
    place.markdown(line, unsafe_allow_html=True)


def first_language() -> str:
    """The browser's, where it is Chinese; else English."""
    wanted = (_get_websocket_headers() or {}).get("Accept-Language", "")
    return "中文" if wanted.lower().startswith("zh") else "English"


# --- talk ---


def talk(run: Any, spoken: str) -> None:
    state = st.session_state
    if state.ticket and (state.ticket.done or state.ticket.stopped):
        settle()
    try:
        run = dataclasses.replace(run, settings=run.trained_settings())
        loading.find_model(run)
    except InputWrong as error:
        st.info(str(error))
        return
    system = run.settings.data.system
    parameters(spoken, system)
    # Streamlit replaces elements by their order and takes away those behind the last only when a script ends, which it
    # does not while an answer is awaited. So there are always as many, in the same order.
    offered = not state.turns and not state.ticket
    heading = st.empty()
    questions = list(dict.fromkeys(run.settings.train.evaluation_inputs or []))[:SAMPLES]
    for number, question in enumerate(questions):
        slot = st.empty()
        if offered:
            slot.button(html.label(question), key=f"sample{number}", on_click=ask, args=(question, system))
    if questions and offered:
        show(html.heading(say("samples", spoken), 2), heading)
    with st.container():
        for turn in state.turns:
            show(turned(turn, spoken))
    answer, bar = st.empty(), st.empty()
    buttons = [column.empty() for column in st.columns([2, 2, 2, 3])]
    if state.ticket:
        buttons[0].button(say("stop", spoken), on_click=stop, key="stop", type="primary")
    elif state.turns:
        buttons[0].button(say("new", spoken), on_click=begin, key="new")
        copy = f'<button type="button" class="copy">{say("copy", spoken)}</button>'
        show(f'{copy}<span class="copied" role="status"></span>', buttons[1])
        buttons[2].download_button(
            say("download", spoken), saved(run, system), "conversation.json", "application/json", key="download"
        )
    st.chat_input(say("ask", spoken), key="question", max_chars=LONGEST, on_submit=lambda: ask(state.question, system))
    if state.ticket:
        follow(state.ticket, spoken, answer, bar)


def parameters(spoken: str, system: str) -> None:
    with st.expander(say("sampling", spoken)):
        for column, (name, (_, *limits)) in zip(st.columns(len(PARAMETERS)), PARAMETERS.items()):
            least, most, step = limits
            column.number_input(say(name, spoken), least, most, step=step, key=name)
        show(f'<p class="note">{say("system", spoken)}: {html.text(system or say("none", spoken))}</p>')
        show(f'<p class="note">{say("keys", spoken)}</p>')


def ask(question: str, system: str) -> None:
    """Bring a question to the desk. One that is being answered is stopped: a session has one place."""
    if not (question or "").strip():
        return
    state = st.session_state
    stop()
    heard: Dict[str, List[Any]] = {
        pane: [(turn.question, turn.said[pane]) for turn in state.turns if turn.said.get(pane)] for pane in PANES
    }
    session = get_script_run_ctx().session_id
    sampling = {name: state[name] for name in PARAMETERS}
    state.ticket = Ticket(session, question.strip(), system, heard, sampling)
    shared.desk.take(state.ticket)


def stop() -> None:
    if st.session_state.ticket:
        st.session_state.ticket.stopped = True
        settle()


def begin() -> None:
    stop()
    st.session_state.turns = []


def settle() -> None:
    """The ticket becomes a turn of the conversation, with what was said so far."""
    state = st.session_state
    ticket, state.ticket = state.ticket, None
    said = dict(ticket.said)
    marks = {pane: ticket.marks.get(pane, "stopped") for pane in PANES}
    state.turns.append(Turn(ticket.question, said, marks, ticket.error, ticket.unseen))


def turned(turn: Turn, spoken: str) -> str:
    note = (
        say("failed", spoken, turn.error) if turn.error else say("unseen", spoken, turn.unseen) if turn.unseen else ""
    )
    panes = []
    for pane in PANES:
        mark = turn.marks[pane] and say(turn.marks[pane], spoken)
        panes.append(html.said(say(pane, spoken), turn.said.get(pane, ""), "" if turn.error else mark, pane))
    return html.turn(turn.question, panes, spoken, note)


def follow(ticket: Ticket, spoken: str, answer: Any, bar: Any) -> None:
    """Show the answers as they come; then the page once more, with the ticket as a turn."""
    shown = None
    while not (ticket.done or ticket.stopped):
        before = shared.desk.place(ticket)
        said = dict(ticket.said)
        now = (said, before, shared.desk.loaded)
        if now != shown:
            shown = now
            panes = []
            for pane in PANES:
                note = say("later", spoken) if pane not in said and before == 0 and pane == "tuned" and said else ""
                busy = pane not in ticket.marks
                panes.append(html.said(say(pane, spoken), said.get(pane), note, pane, busy))
            show(html.turn(ticket.question, panes, spoken), answer)
            what = say("waiting", spoken, before) if before else say("answering" if said else "next", spoken)
            if not before and not shared.desk.loaded:
                what = say("loading", spoken)
            show(f'<p class="state" role="status">{what}</p>', bar)
        time.sleep(OFTEN)
        st.session_state.get("ticket")  # lets Streamlit in: at a click this run ends here, and another has begun
    st.experimental_rerun()


def saved(run: Any, system: str) -> str:
    """The conversation as JSON: both sides, and how each turn ended."""
    turns = [{"question": turn.question, **turn.said, "ended": turn.marks} for turn in st.session_state.turns]
    return json.dumps({"recipe": run.name, "system": system, "turns": turns}, ensure_ascii=False, indent=1)


# --- the run, the data ---


def watch(run: Any, spoken: str) -> None:
    """The run as it is now. page.js presses the button again and again, while the page is looked at."""
    found = live.blocks(spoken)
    for block in found.blocks:
        show(block)
    st.button(say("refresh", spoken), key="refresh")
    show(f'<div id="live" data-seconds="{REFRESH if found.working else SELDOM}"></div>')


def data(run: Any, spoken: str) -> None:
    """The report that `just data-report` wrote, else the same without what takes a tokenizer."""
    path = run.folder / "data-report.html"
    newer = path.is_file() and run.dataset.is_file() and path.stat().st_mtime >= run.dataset.stat().st_mtime
    if newer:
        page = path.read_text(encoding="utf-8")
    elif run.dataset.is_file():
        rows, histograms, findings = data_report.brief(run)
        page = webpage.render(
            "data-report.html", name=run.name, rows=rows, histograms=histograms, findings=findings, shown=[]
        )
    else:
        show(f'<p class="note">{say("no data", spoken)}</p>')
        return
    st.components.v1.html(page, height=1200, scrolling=True)


main()
