"""Renders Jinja templates as self-contained HTML pages or Markdown."""

import re
import unicodedata
from pathlib import Path
from typing import Any

import jinja2

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
    return jinja2.utils.markupsafe.Markup(' lang="zh-CN"') if HAN.search(str(text)) else ""


def _cell(text: Any) -> str:
    """`text` escaped for a cell of a Markdown table."""
    flat = " ".join(clean(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#!|~$])", r"\\\1", flat.replace("&", "&amp;"))


def _fence(text: Any) -> str:
    """`text` as a Markdown code block with a fence longer than any in the text."""
    text = clean(text)
    marks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{marks}text\n{text}\n{marks}"


def render(template: str, **values: Any) -> str:
    """Render a template. HTML templates escape automatically; Markdown templates use the filters `cell` and `fence`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(Path(__file__).with_name("templates"))),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=template.endswith(".md"),
        keep_trailing_newline=True,
    )
    environment.filters.update(clean=clean, shorten=shorten, zh=_zh, cell=_cell, fence=_fence)
    return environment.get_template(template).render(**values)
