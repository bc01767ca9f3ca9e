"""Draws curves with matplotlib: as PNG, and as SVG for pages with light and dark colours.

An SVG keeps its text as text and takes the page's fonts and colours. A PNG needs fonts on this machine: without one
for the user's language its texts are English, and the name of a run that no font can draw is replaced by A or B.
"""

import contextlib
import io
import math
import re
from html import escape
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from recipe.core.translation import _, english, mark, ngettext, stored

# In the SVG, these colours are replaced by the page's CSS variables of the same names.
PALETTE = {"ink": "#1c2431", "muted": "#5c6675", "line": "#dde2e9", "first": "#2457d6", "second": "#c2410c"}
CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
           "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Droid Sans Fallback")  # fmt: skip
ITERATION, LEARNING_RATE = mark("iteration"), mark("learning rate")
SIZE = (5.4, 2.9)  # inches of 72 points


class Line(NamedTuple):
    """One curve: iteration → value. `style`: "thin" for raw values, "dashed" for planned values, else solid."""

    label: str
    values: Dict[int, float]
    style: str = ""
    colour: str = "first"


class Chart(NamedTuple):
    """A chart of curves over iterations; `name`: of its file. `level`: (label, value) of a dashed line.

    The texts are English messages; with `of_runs` the lines' labels are names of runs.
    """

    name: str
    title: str
    lines: Sequence[Line]
    log_scale: bool = False
    level: Optional[Tuple[str, float]] = None
    note: str = ""
    of_runs: bool = False


class Picture(NamedTuple):
    """A drawn chart; title, note and SVG are in the user's language."""

    name: str
    title: str
    note: str
    svg: str
    png: bytes


def draw(charts: Sequence[Chart]) -> List[Picture]:
    """Draw charts. Imports matplotlib late, because that takes half a second."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(font_settings()), matplotlib.rc_context(
        {
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "recipe",
            "axes.unicode_minus": True,
        }
    ):
        return [_draw_chart(chart) for chart in charts]


def font_settings() -> Dict[str, Any]:
    """matplotlib's settings for fonts that have Chinese characters, if any is installed."""
    return {"font.family": _fonts()}


def _fonts() -> List[str]:
    return ["DejaVu Sans", *_chinese_fonts()[:1]]


def _chinese_fonts() -> List[str]:
    """Names of the installed fonts with Chinese characters."""
    from matplotlib import font_manager

    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in CHINESE_FONTS if name in installed]


def has_glyphs(text: str, fonts: Sequence[str]) -> bool:
    """Whether `fonts` can draw every character of `text`."""
    from matplotlib import font_manager

    charmaps = [font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts]
    return all(any(ord(character) in charmap for charmap in charmaps) for character in text)


def can_draw(*texts: str) -> bool:
    """Whether the fonts here can draw the translations of these messages."""
    return has_glyphs("".join(map(stored, texts)), _fonts())


def save_learning_rate(plan: Dict[str, Any], path: Path) -> None:
    """Plot the planned learning rate, the configured peak, evaluations and checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    peak, configured = f"{plan['lr_peak']:.3g}", f"{plan['lr_configured']:.3g}"
    # Without a font that has Chinese characters, the picture's texts are English.
    has_fonts = can_draw(ITERATION, LEARNING_RATE)
    with contextlib.nullcontext() if has_fonts else english(), pyplot.rc_context(font_settings()):
        figure, axes = pyplot.subplots(figsize=(8, 4))
        iterations = range(1, len(plan["lr_trace"]) + 1)
        axes.plot(iterations, plan["lr_trace"], label=_("learning rate (peak {rate})", rate=peak))
        axes.axhline(plan["lr_configured"], linestyle="--", color="grey", label=_("configured {rate}", rate=configured))
        for name, label, marker in (("checkpoints", _("checkpoints"), "s"), ("evaluations", _("evaluations"), "o")):
            at = [n for n in plan[name] if n > 0]
            axes.plot(at, [plan["lr_trace"][n - 1] for n in at], marker, fillstyle="none", label=label)
        updates = ngettext("{n} optimizer update", "{n} optimizer updates", plan["updates"])
        axes.set(xlabel=_(ITERATION), ylabel=_(LEARNING_RATE), yscale="log", title=updates)
        axes.legend()
        figure.tight_layout()
        figure.savefig(str(path), format="png", dpi=120)
        pyplot.close(figure)


def _draw_chart(chart: Chart) -> Picture:
    labels = [] if chart.of_runs else [line.label for line in chart.lines]
    texts = [ITERATION, chart.title, *labels, *([chart.level[0]] if chart.level else [])]
    if can_draw(*texts):
        return _draw(chart)
    with english():
        drawn = _draw(chart)
    svg = drawn.svg
    for text in texts:
        for form in (">{}</text>", 'aria-label="{}"'):
            svg = svg.replace(form.format(escape(text)), form.format(escape(stored(text))))
    return drawn._replace(title=stored(chart.title), note=stored(chart.note), svg=svg)


def _draw(chart: Chart) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for line in chart.lines:
        _plot(axes, line, chart)
    if chart.level:
        label, value = chart.level
        axes.axhline(value, color=PALETTE["muted"], linestyle=(0, (4, 3)), linewidth=1, label=stored(label))
    if chart.log_scale:
        axes.set_yscale("log")
    else:
        _set_y_limits(axes, [v for line in chart.lines for v in line.values.values() if math.isfinite(v)])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel(stored(ITERATION), color=PALETTE["muted"])
    axes.tick_params(which="both", colors=PALETTE["muted"], length=0)
    axes.grid(True, axis="y", color=PALETTE["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(PALETTE["line"])
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, labelcolor=PALETTE["ink"], fontsize=8.5, handlelength=1.6)
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(
        svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
    )
    axes.set_title(stored(chart.title), loc="left", color=PALETTE["ink"], fontsize=11)
    figure.savefig(png, format="png", dpi=144, facecolor="white")
    inline = _inline_svg(svg.getvalue(), chart)
    return Picture(chart.name, stored(chart.title), stored(chart.note), inline, png.getvalue())


def _plot(axes: Any, line: Line, chart: Chart) -> None:
    iterations = downsample(line.values)
    label = line.label if chart.of_runs else stored(line.label)
    if not has_glyphs(label, _fonts()):
        label = "AB"[[other.label for other in chart.lines].index(line.label) % 2]
    style: Dict[str, Any] = {"linewidth": 1.8}
    if line.style == "thin":
        style = {"linewidth": 0.8, "alpha": 0.4}
    elif line.style == "dashed":
        style = {"linewidth": 1.2, "linestyle": (0, (2, 4))}
    if len(iterations) < 12 and line.style != "dashed":
        style.update(marker="o", markersize=3.5)
    axes.plot(iterations, [line.values[n] for n in iterations], color=PALETTE[line.colour], label=label, **style)


def downsample(values: Dict[int, float], limit: int = 1500) -> List[int]:
    """At most `limit` iterations that draw the same curve: the minimum and maximum of each range."""
    iterations = sorted(values)
    if len(iterations) <= limit:
        return iterations
    ranges = [
        iterations[len(iterations) * i // (limit // 2) : len(iterations) * (i + 1) // (limit // 2)]
        for i in range(limit // 2)
    ]
    return sorted({pick(part, key=values.__getitem__) for part in ranges for pick in (min, max)})


def _set_y_limits(axes: Any, values: Sequence[float]) -> None:
    """Start the axis at 0 if that does not flatten the curve; keep a change of a few percent small."""
    if not values or min(values) < 0:
        return
    low, high = min(values), max(values)
    if low < 0.35 * high:
        axes.set_ylim(bottom=0)
    elif high - low < 0.2 * high:
        middle = (low + high) / 2
        axes.set_ylim(0.9 * middle, 1.1 * middle)


def _inline_svg(svg: str, chart: Chart) -> str:
    """matplotlib's SVG for inlining: no prolog or URLs, the page's colours and fonts, unique ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _svg_tag(chart), svg, count=1)
    for name, value in PALETTE.items():
        svg = svg.replace(value, f"var(--{name})")
    svg = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'(\bid="|#)([\w.-]+)(?=["\)])', rf"\1{chart.name}-\2", svg)
    return re.sub(r"\bxlink:href", "href", svg)


def _svg_tag(chart: Chart) -> str:
    title = re.sub(r"[^\w ,.()，（）-]", "", stored(chart.title))
    return rf'<svg viewBox="\1" role="img" aria-label="{title}">'
