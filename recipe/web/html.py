"""Pieces of the page as HTML of one line: Streamlit's Markdown reads no further into a line that begins with a tag.

What users and models say is escaped here, and shown as it is: no Markdown, which could bring pictures of other hosts.
"""

import html
import re
from typing import Dict, Optional, Sequence

from recipe.reporting.pages import HAN, clean
from recipe.web.words import say


def text(value: object) -> str:
    return html.escape(clean(value)).replace("\n", "&#10;")


def label(value: str) -> str:
    """A button's text, which Streamlit takes for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", clean(value))


def _zh(value: str) -> str:
    return ' lang="zh-CN"' if HAN.search(value) else ""


def said(name: str, value: Optional[str], note: str = "", kind: str = "", busy: bool = False) -> str:
    """A box with what one model said (None: nothing yet); `note` beside its name."""
    empty = f'<span class="muted">{text(note)}</span>' if value is None else ""
    beside = f" <small>{text(note)}</small>" if note and value is not None else ""
    told = f'role="group" aria-label="{text(name)}" aria-busy="{str(busy).lower()}"{_zh(value or "")}'
    return (
        f'<div class="pane {kind}"><div class="name">{text(name)}{beside}</div>'
        f'<div class="said" tabindex="0" {told}>{text(value or "")}{empty}</div></div>'
    )


def turn(question: str, panes: Sequence[str], language: str, note: str = "") -> str:
    """A question above the boxes of both answers."""
    more = f'<p class="muted">{text(note)}</p>' if note else ""
    asked = f'<p class="asked"{_zh(question)}><b>{text(say("you", language))}</b><span>{text(question)}</span></p>'
    return f'<div class="turn">{asked}<div class="panes">{"".join(panes)}</div>{more}</div>'


def heading(value: str, level: int) -> str:
    """Not h1 or h2, into which Streamlit puts links without a name."""
    return f'<div role="heading" aria-level="{level}" class="h{level}">{text(value)}</div>'


def tiles(rows: Dict[str, str]) -> str:
    cells = "".join(f"<div><dt>{text(what)}</dt><dd>{text(figure)}</dd></div>" for what, figure in rows.items())
    return f'<dl class="tiles">{cells}</dl>'
