"""Renders Jinja templates as self-contained HTML pages or Markdown, in the language of the command that writes them."""

import re
import unicodedata
from pathlib import Path
from typing import Any, Dict

import jinja2
from markupsafe import Markup, escape

from recipe.core import translation

HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff]")
BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def clean(text: Any) -> str:
    """`text` with control characters, lone surrogates and bidi controls replaced by �; keeps line ends and tabs."""
    return "".join(
        "�"
        if character in BIDI_CONTROLS or (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t")
        else character
        for character in str(text)
    )


def shorten(text: Any, limit: int = 200) -> str:
    text = " ".join(str(text).split())
    return text[:limit] + "…" if len(text) > limit else text


def _zh(text: Any) -> str:
    """The lang attribute for a Chinese text, else ""."""
    return Markup(' lang="zh-CN"') if HAN.search(str(text)) else ""


def _cell(text: Any) -> str:
    """`text` escaped for a cell of a Markdown table."""
    flat = " ".join(clean(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#!|~$])", r"\\\1", flat.replace("&", "&amp;"))


def _fence(text: Any) -> str:
    """`text` as a Markdown code block with a fence longer than any in the text."""
    text = clean(text)
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}text\n{text}\n{marks}"


def lang() -> str:
    """The language of messages as HTML names it."""
    return "zh-CN" if translation.language() == "zh_CN" else "en"


def _message(text: str, /, **values: Any) -> Markup:
    """A template's message, which may hold tags; its values may not."""
    return Markup(translation._(text, **_escaped(values)))


def _counted(one: str, many: str, n: int, /, **values: Any) -> Markup:
    return Markup(translation.ngettext(one, many, n, **_escaped(values)))


def _escaped(values: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value if isinstance(value, (int, float)) else escape(value) for name, value in values.items()}


def render(template: str, **values: Any) -> str:
    """Render a template. HTML templates escape automatically; Markdown templates use the filters `cell` and `fence`."""
    is_html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(Path(__file__).with_name("templates"))),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=template.endswith(".md"),
        keep_trailing_newline=True,
    )
    environment.globals.update(
        _=_message if is_html else translation._,
        ngettext=_counted if is_html else translation.ngettext,
        stored=translation.stored,
        listed=translation.listed,
        lang=lang,
    )
    environment.filters.update(clean=clean, shorten=shorten, zh=_zh, cell=_cell, fence=_fence)
    return environment.get_template(template).render(**values)
