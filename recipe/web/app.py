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

from recipe.core.errors import InputWrong
from recipe.inference import loading
from recipe.reporting import data_report
from recipe.web import html, live, shared
from recipe.web.inference_queue import PANES, Request
from recipe.web.texts import LANGUAGES, translate

SAMPLES = 6  # sample questions from the recipe
POLL_SECONDS = 0.1  # seconds between updates of an answer
BUSY_REFRESH, IDLE_REFRESH = (
    2,
    10,
)  # seconds between page.js's status refreshes, while a command runs and else
MAX_QUESTION = 8000  # characters of a question
# Sampling; the defaults equal those of `just chat`. Name: default, minimum, maximum, step.
PARAMETERS: Dict[str, Any] = {
    "temperature": (0.0, 0.0, 2.0, 0.1),
    "top_p": (0.8, 0.01, 1.0, 0.05),
    "limit": (512, 1, 4096, 32),
    "seed": (0, 0, 2**31 - 1, 1),
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
    for name, (default, *_) in PARAMETERS.items():
        state[name] = state.get(name, default)  # Streamlit forgets widgets that are not shown
    language = LANGUAGES[state.language]
    try:
        run = shared.find_run()
    except InputWrong as error:
        st.error(str(error))
        return
    # Texts for page.js.
    labels = "".join(f' data-{word}="{translate(word, language)}"' for word in ("send", "copied", "less", "more"))
    name, title = html.escape(run.name), translate("title " + state.setdefault("page", "talk"), language)
    head = f'<p class="kicker">{name}</p>{html.heading(title, 1)}'
    write_html(f'<div id="page" lang="{language}" data-title="{name}"{labels}>{head}</div>')
    left, right = st.columns([3, 2])
    views = {"talk": chat_page, "run": run_page, "data": data_page}
    with left:
        page = st.radio(
            translate("page", language), list(views), format_func=lambda key: translate(key, language),
            horizontal=True, key="page", label_visibility="collapsed",
        )  # fmt: skip
    with right:
        st.radio("Language · 语言", list(LANGUAGES), horizontal=True, key="language", label_visibility="collapsed")
    views[page](run, language)


def write_html(line: str, container: Any = st) -> None:
    container.markdown(line, unsafe_allow_html=True)


def browser_language() -> str:
    """Chinese if the browser prefers it, else English."""
    accepted = (_get_websocket_headers() or {}).get("Accept-Language", "")
    return "中文" if accepted.lower().startswith("zh") else "English"


def chat_page(run: Any, language: str) -> None:
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
    parameters(language, system)
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
        write_html(html.heading(translate("samples", language), 2), heading)
    with st.container():
        for turn in state.turns:
            write_html(turn_html(turn, language))
    answer, bar = st.empty(), st.empty()
    buttons = [column.empty() for column in st.columns([2, 2, 2, 3])]
    if state.request:
        buttons[0].button(translate("stop", language), on_click=stop, key="stop", type="primary")
    elif state.turns:
        buttons[0].button(translate("new", language), on_click=new_chat, key="new")
        copy = f'<button type="button" class="copy">{translate("copy", language)}</button>'
        write_html(f'{copy}<span class="copied" role="status"></span>', buttons[1])
        buttons[2].download_button(
            translate("download", language),
            conversation_json(run, system),
            "conversation.json",
            "application/json",
            key="download",
        )
    st.chat_input(
        translate("ask", language),
        key="question",
        max_chars=MAX_QUESTION,
        on_submit=lambda: ask(state.question, system),
    )
    if state.request:
        stream_answers(state.request, language, answer, bar)


def parameters(language: str, system: str) -> None:
    with st.expander(translate("sampling", language)):
        for column, (name, (_, *limits)) in zip(st.columns(len(PARAMETERS)), PARAMETERS.items()):
            least, most, step = limits
            column.number_input(translate(name, language), least, most, step=step, key=name)
        write_html(
            f'<p class="note">{translate("system", language)}: {html.escape(system or translate("none", language))}</p>'
        )
        write_html(f'<p class="note">{translate("keys", language)}</p>')


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
    state.request = Request(session, question.strip(), system, history, sampling)
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


def turn_html(turn: Turn, language: str) -> str:
    note = (
        translate("failed", language, turn.error)
        if turn.error
        else translate("dropped", language, turn.dropped_turns)
        if turn.dropped_turns
        else ""
    )
    panes = []
    for pane in PANES:
        ending = turn.endings[pane] and translate(turn.endings[pane], language)
        panes.append(
            html.answer_box(translate(pane, language), turn.answers.get(pane, ""), "" if turn.error else ending, pane)
        )
    return html.turn(turn.question, panes, language, note)


def stream_answers(request: Request, language: str, answer: Any, bar: Any) -> None:
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
                note = (
                    translate("later", language)
                    if pane not in answers and before == 0 and pane == "tuned" and answers
                    else ""
                )
                busy = pane not in request.endings
                panes.append(html.answer_box(translate(pane, language), answers.get(pane), note, pane, busy))
            write_html(html.turn(request.question, panes, language), answer)
            what = (
                translate("waiting", language, before)
                if before
                else translate("answering" if answers else "next", language)
            )
            if not before and not shared.queue.loaded:
                what = translate("loading", language)
            write_html(f'<p class="state" role="status">{what}</p>', bar)
        time.sleep(POLL_SECONDS)
        st.session_state.get("request")  # lets Streamlit end this script run after a click
    st.experimental_rerun()


def conversation_json(run: Any, system: str) -> str:
    """The conversation as JSON, with both answers and how they ended."""
    turns = [{"question": turn.question, **turn.answers, "ended": turn.endings} for turn in st.session_state.turns]
    return json.dumps({"recipe": run.name, "system": system, "turns": turns}, ensure_ascii=False, indent=1)


def run_page(run: Any, language: str) -> None:
    """Training status. page.js clicks the refresh button while the page is visible."""
    status = live.run_status(language)
    for block in status.blocks:
        write_html(block)
    st.button(translate("refresh", language), key="refresh")
    write_html(f'<div id="live" data-seconds="{BUSY_REFRESH if status.is_running else IDLE_REFRESH}"></div>')


def data_page(run: Any, language: str) -> None:
    """The report of `just data-report` if it is up to date, else a new one without token counts."""
    path = run.folder / "data-report.html"
    newer = path.is_file() and run.dataset.is_file() and path.stat().st_mtime >= run.dataset.stat().st_mtime
    if newer:
        page = path.read_text(encoding="utf-8")
    elif run.dataset.is_file():
        page = data_report.page(run, *data_report.summarize(run))
    else:
        write_html(f'<p class="note">{translate("no data", language)}</p>')
        return
    st.components.v1.html(page, height=1200, scrolling=True)


main()
