"""The page. Streamlit runs this file again for every session and every click.

Three views: chat with base and tuned model side by side, training status, data report. st.session_state holds a
session's conversation and request; shared.py holds what all sessions share.
"""

import dataclasses
import json
import time
from typing import Any, Dict, List, NamedTuple

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.web.server.websocket_headers import _get_websocket_headers

from recipe.core import translation
from recipe.core.errors import InputWrong
from recipe.core.translation import _, mark, ngettext
from recipe.inference import loading
from recipe.reporting import data_report, pages
from recipe.web import html, live, shared
from recipe.web.inference_queue import PANES, Request

LANGUAGES = {"English": "en", "中文": "zh_CN"}
VIEWS = {"talk": mark("Talk"), "run": mark("Run"), "data": mark("Data")}
TITLES = {
    "talk": mark("Base and tuned models side by side"), "run": mark("Training status"), "data": mark("Data report"),
}  # fmt: skip
NAMES = {"base": mark("Base"), "tuned": mark("Tuned")}  # of PANES
ENDINGS = {"stopped": mark("stopped"), "cut": mark("length limit reached")}
SAMPLES = 6  # sample questions from the recipe
POLL_SECONDS = 0.1  # seconds between updates of an answer
BUSY_REFRESH, IDLE_REFRESH = (
    2,
    10,
)  # seconds between page.js's status refreshes, while a command runs and else
MAX_QUESTION = 8000  # characters of a question
# Sampling; the defaults equal those of `just chat`. Name: label, default, minimum, maximum, step.
PARAMETERS: Dict[str, Any] = {
    "temperature": (mark("Temperature (0: most likely answer)"), 0.0, 0.0, 2.0, 0.1),
    "top_p": (mark("Top-p"), 0.8, 0.01, 1.0, 0.05),
    "limit": (mark("Maximum answer length (tokens)"), 512, 1, 4096, 32),
    "seed": (mark("Seed"), 0, 0, 2**31 - 1, 1),
}


class Turn(NamedTuple):
    """A question with both answers; `endings`: "", "stopped" or "cut" for each."""

    question: str
    answers: Dict[str, str]
    endings: Dict[str, str]
    error: str
    dropped_turns: int


def main() -> None:
    st.set_page_config(page_title="InternLM2", page_icon=None, layout="wide", initial_sidebar_state="collapsed")
    state = st.session_state
    state.setdefault("turns", [])
    state.setdefault("request", None)
    state.setdefault("language", browser_language())
    for name, (_label, default, *_limits) in PARAMETERS.items():
        state[name] = state.get(name, default)  # Streamlit forgets widgets that are not shown
    with translation.use(LANGUAGES[state.language]):
        show_page()


def show_page() -> None:
    """The page in the visitor's language."""
    state = st.session_state
    try:
        run = shared.find_run()
    except InputWrong as error:
        st.error(str(error))
        return
    # Texts for page.js.
    words = {"send": _("Send"), "copied": _("Copied"), "less": _("less"), "more": _("more")}
    labels = "".join(f' data-{name}="{html.escape(word)}"' for name, word in words.items())
    name, title = html.escape(run.name), _(TITLES[state.setdefault("page", "talk")])
    head = f'<p class="kicker">{name}</p>{html.heading(title, 1)}'
    write_html(f'<div id="page" lang="{pages.lang()}" data-title="{name}"{labels}>{head}</div>')
    left, right = st.columns([3, 2])
    views = {"talk": chat_page, "run": run_page, "data": data_page}
    with left:
        page = st.radio(
            _("Page"), list(views), format_func=lambda key: _(VIEWS[key]), horizontal=True, key="page",
            label_visibility="collapsed",
        )  # fmt: skip
    with right:
        st.radio("Language · 语言", list(LANGUAGES), horizontal=True, key="language", label_visibility="collapsed")
    views[page](run)


def write_html(line: str, container: Any = st) -> None:
    container.markdown(line, unsafe_allow_html=True)


def browser_language() -> str:
    """Chinese if the browser prefers it, else English."""
    accepted = (_get_websocket_headers() or {}).get("Accept-Language", "")
    return next(name for name, code in LANGUAGES.items() if code == translation.known(accepted))


def chat_page(run: Any) -> None:
    state = st.session_state
    if state.request and (state.request.done or state.request.stopped):
        finish_request()
    try:
        run = dataclasses.replace(run, settings=run.trained_settings())
        loading.find_model(run)
    except InputWrong as error:
        st.info(str(error))
        return
    system = run.settings.data.system
    parameters(system)
    # Streamlit matches elements by order and removes surplus ones only when the script ends, which it does not do while
    # an answer is generated. So always create the same number in the same order.
    is_offered = not state.turns and not state.request
    heading = st.empty()
    questions = list(dict.fromkeys(run.questions))[:SAMPLES]
    for number, question in enumerate(questions):
        slot = st.empty()
        if is_offered:
            slot.button(html.button_label(question), key=f"sample{number}", on_click=ask, args=(question, system))
    if questions and is_offered:
        write_html(html.heading(_("Questions to try"), 2), heading)
    with st.container():
        for turn in state.turns:
            write_html(turn_html(turn))
    answer, bar = st.empty(), st.empty()
    buttons = [column.empty() for column in st.columns([2, 2, 2, 3])]
    if state.request:
        buttons[0].button(_("Stop"), on_click=stop, key="stop", type="primary")
    elif state.turns:
        buttons[0].button(_("New chat"), on_click=new_chat, key="new")
        copy = f'<button type="button" class="copy">{_("Copy")}</button>'
        write_html(f'{copy}<span class="copied" role="status"></span>', buttons[1])
        buttons[2].download_button(
            _("Download"),
            conversation_json(run, system),
            "conversation.json",
            "application/json",
            key="download",
        )
    st.chat_input(
        _("Ask both models"),
        key="question",
        max_chars=MAX_QUESTION,
        on_submit=lambda: ask(state.question, system),
    )
    if state.request:
        stream_answers(state.request, answer, bar)


def parameters(system: str) -> None:
    with st.expander(_("Parameters")):
        for column, (name, (label, _default, *limits)) in zip(st.columns(len(PARAMETERS)), PARAMETERS.items()):
            least, most, step = limits
            column.number_input(_(label), least, most, step=step, key=name)
        prompt = _("System prompt: {text}", text=system or _("none"))
        write_html(f'<p class="note">{html.escape(prompt)}</p>')
        write_html(f'<p class="note">{html.escape(_("Enter sends, Shift+Enter starts a new line."))}</p>')


def ask(question: str, system: str) -> None:
    """Submit a question. Stops the session's current request first."""
    if not (question or "").strip():
        return
    state = st.session_state
    stop()
    history: Dict[str, List[Any]] = {
        pane: [(turn.question, turn.answers[pane]) for turn in state.turns if turn.answers.get(pane)] for pane in PANES
    }
    session = get_script_run_ctx().session_id
    sampling = {name: state[name] for name in PARAMETERS}
    state.request = Request(session, question.strip(), system, history, sampling, LANGUAGES[state.language])
    shared.queue.submit(state.request)


def stop() -> None:
    if st.session_state.request:
        st.session_state.request.stopped = True
        finish_request()


def new_chat() -> None:
    stop()
    st.session_state.turns = []


def finish_request() -> None:
    """Turn the request into a turn of the conversation, with the answers so far."""
    state = st.session_state
    request, state.request = state.request, None
    answers = dict(request.answers)
    endings = {pane: request.endings.get(pane, "stopped") for pane in PANES}
    state.turns.append(Turn(request.question, answers, endings, request.error, request.dropped_turns))


def turn_html(turn: Turn) -> str:
    note = ""
    if turn.error:
        note = _("No answer: {why}", why=turn.error)
    elif turn.dropped_turns:
        note = ngettext(
            "{n} earlier turn did not fit and was left out.",
            "{n} earlier turns did not fit and were left out.",
            turn.dropped_turns,
        )
    panes = []
    for pane in PANES:
        ending = turn.endings[pane] and _(ENDINGS[turn.endings[pane]])
        panes.append(html.answer_box(_(NAMES[pane]), turn.answers.get(pane, ""), "" if turn.error else ending, pane))
    return html.turn(turn.question, panes, note)


def stream_answers(request: Request, answer: Any, bar: Any) -> None:
    """Show the answers while they are generated, then rerun the page."""
    displayed = None
    while not (request.done or request.stopped):
        before = shared.queue.position(request)
        answers = dict(request.answers)
        now = (answers, before, shared.queue.loaded)
        if now != displayed:
            displayed = now
            panes = []
            for pane in PANES:
                waits = pane not in answers and before == 0 and pane == "tuned" and answers
                note = _("after the base model") if waits else ""
                busy = pane not in request.endings
                panes.append(html.answer_box(_(NAMES[pane]), answers.get(pane), note, pane, busy))
            write_html(html.turn(request.question, panes), answer)
            if before:
                what = _("Waiting: {n} ahead of you.", n=before)
            elif not shared.queue.loaded:
                what = _("Loading the model.")
            else:
                what = _("Answering.") if answers else _("You are next.")
            write_html(f'<p class="state" role="status">{html.escape(what)}</p>', bar)
        time.sleep(POLL_SECONDS)
        st.session_state.get("request")  # lets Streamlit end this script run after a click
    st.experimental_rerun()


def conversation_json(run: Any, system: str) -> str:
    """The conversation as JSON, with both answers and how they ended."""
    turns = [{"question": turn.question, **turn.answers, "ended": turn.endings} for turn in st.session_state.turns]
    return json.dumps({"recipe": run.name, "system": system, "turns": turns}, ensure_ascii=False, indent=1)


def run_page(run: Any) -> None:
    """Training status. page.js clicks the refresh button while the page is visible."""
    status = live.run_status()
    for block in status.blocks:
        write_html(block)
    st.button(_("Refresh"), key="refresh")
    write_html(f'<div id="live" data-seconds="{BUSY_REFRESH if status.is_running else IDLE_REFRESH}"></div>')


def data_page(run: Any) -> None:
    """The report of `just data-report` if it is current and in this language, else a new one without token counts."""
    path = run.folder / "data-report.html"
    page = ""
    if path.is_file() and run.dataset.is_file() and path.stat().st_mtime >= run.dataset.stat().st_mtime:
        page = path.read_text(encoding="utf-8")
    if f'<html lang="{pages.lang()}">' not in page and run.dataset.is_file():
        page = data_report.page(run, *data_report.summarize(run))
    if not page:
        write_html(f'<p class="note">{html.escape(_("The data stage has not run yet."))}</p>')
        return
    st.components.v1.html(page, height=1200, scrolling=True)


main()
