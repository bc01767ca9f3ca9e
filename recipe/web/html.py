"""Builds HTML for the page, each piece on one line: Streamlit does not parse Markdown in a line that starts with a tag.

Escapes questions and answers, so their Markdown is not rendered: it could load images from other hosts.
"""

import html
import re
from typing import Dict, Optional, Sequence

from recipe.core.translation import _
from recipe.reporting.pages import HAN, clean


def escape(value: object) -> str:
    return html.escape(clean(value)).replace("\n", "&#10;")


def button_label(value: str) -> str:
    """A button's text, escaped because Streamlit parses it as Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", clean(value))


def _zh(value: str) -> str:
    return ' lang="zh-CN"' if HAN.search(value) else ""


def answer_box(name: str, value: Optional[str], note: str = "", kind: str = "", busy: bool = False) -> str:
    """A box with one model's answer (None: not started); `note` stands beside its name."""
    empty = f'<span class="muted">{escape(note)}</span>' if value is None else ""
    suffix = f" <small>{escape(note)}</small>" if note and value is not None else ""
    attributes = f'role="group" aria-label="{escape(name)}" aria-busy="{str(busy).lower()}"{_zh(value or "")}'
    return (
        f'<div class="pane {kind}"><div class="name">{escape(name)}{suffix}</div>'
        f'<div class="said" tabindex="0" {attributes}>{escape(value or "")}{empty}</div></div>'
    )


def turn(question: str, panes: Sequence[str], note: str = "") -> str:
    """A question above the boxes of both answers."""
    note_line = f'<p class="muted">{escape(note)}</p>' if note else ""
    label = escape(_("You asked"))
    asked = f'<p class="asked"{_zh(question)}><b>{label}</b><span>{escape(question)}</span></p>'
    return f'<div class="turn">{asked}<div class="panes">{"".join(panes)}</div>{note_line}</div>'


def heading(value: str, level: int) -> str:
    """A heading without h1 or h2, to which Streamlit adds links without a name."""
    return f'<div role="heading" aria-level="{level}" class="h{level}">{escape(value)}</div>'


def tiles(rows: Dict[str, str]) -> str:
    cells = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(figure)}</dd></div>" for what, figure in rows.items())
    return f'<dl class="tiles">{cells}</dl>'
