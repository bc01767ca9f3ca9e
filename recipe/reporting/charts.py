"""Draws curves with matplotlib: as PNG, and as SVG for pages with light and dark colours.

An SVG keeps its text as text and takes the page's fonts and colours. A PNG needs fonts on this machine: a label that
they cannot draw is replaced by A or B.
"""

import io
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

# In the SVG, these colours are replaced by the page's CSS variables of the same names.
PALETTE = {"ink": "#1c2431", "muted": "#5c6675", "line": "#dde2e9", "first": "#2457d6", "second": "#c2410c"}
CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
           "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Droid Sans Fallback")  # fmt: skip
SIZE = (5.4, 2.9)  # inches of 72 points


class Line(NamedTuple):
    """One curve: iteration → value. `style`: "thin" for raw values, "dashed" for planned values, else solid."""

    label: str
    values: Dict[int, float]
    style: str = ""
    colour: str = "first"


class Chart(NamedTuple):
    """A chart of curves over iterations; `name`: of its file. `level`: (label, value) of a dashed line."""

    name: str
    title: str
    lines: Sequence[Line]
    log_scale: bool = False
    level: Optional[Tuple[str, float]] = None
    note: str = ""


class Picture(NamedTuple):
    name: str
    title: str
    note: str
    svg: str
    png: bytes


def draw(charts: Sequence[Chart]) -> List[Picture]:
    """Draw charts. Imports matplotlib late, because that takes half a second."""
    import matplotlib

    matplotlib.use("Agg")
    fonts = ["DejaVu Sans", *_chinese_fonts()[:1]]
    with matplotlib.rc_context(
        {
            "font.family": fonts,
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "recipe",
            "axes.unicode_minus": True,
        }
    ):
        return [_draw_chart(chart, fonts) for chart in charts]


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


def _draw_chart(chart: Chart, fonts: Sequence[str]) -> Picture:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for line in chart.lines:
        _plot(axes, line, chart.lines, fonts)
    if chart.level:
        label, value = chart.level
        axes.axhline(value, color=PALETTE["muted"], linestyle=(0, (4, 3)), linewidth=1, label=label)
    if chart.log_scale:
        axes.set_yscale("log")
    else:
        _set_y_limits(axes, [v for line in chart.lines for v in line.values.values() if math.isfinite(v)])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("iteration", color=PALETTE["muted"])
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
    axes.set_title(chart.title, loc="left", color=PALETTE["ink"], fontsize=11)
    figure.savefig(png, format="png", dpi=144, facecolor="white")
    return Picture(chart.name, chart.title, chart.note, _inline_svg(svg.getvalue(), chart), png.getvalue())


def _plot(axes: Any, line: Line, lines: Sequence[Line], fonts: Sequence[str]) -> None:
    iterations = downsample(line.values)
    label = line.label
    if not has_glyphs(label, fonts):
        label = "AB"[[other.label for other in lines].index(label) % 2]
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
    title = re.sub(r"[^\w ,.()-]", "", chart.title)
    return rf'<svg viewBox="\1" role="img" aria-label="{title}">'
