"""Curves as pictures: each as a PNG, and as SVG for a page that has light and dark colours. matplotlib draws.

The SVG's text is text in the reader's own fonts, its colours are the page's. A PNG needs its fonts here: names that
none of them can draw are left out, so that no boxes appear.
"""

import io
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

# Colours stand in the SVG as these values and are replaced by the page's variables of the same name.
PALETTE = {"ink": "#1c2431", "muted": "#5c6675", "line": "#dde2e9", "first": "#2457d6", "second": "#c2410c"}
CHINESE = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei",
           "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC", "Droid Sans Fallback")  # fmt: skip
SIZE = (5.4, 2.9)  # inches of 72 points


class Line(NamedTuple):
    """One curve: iteration → value. `style`: "thin" for raw values, "dashed" for what was planned, else full."""

    label: str
    values: Dict[int, float]
    style: str = ""
    colour: str = "first"


class Chart(NamedTuple):
    """A chart of curves over iterations; `name` is its file's. `level`: (label, value) of a dashed line."""

    name: str
    title: str
    lines: Sequence[Line]
    log: bool = False
    level: Optional[Tuple[str, float]] = None
    note: str = ""


class Picture(NamedTuple):
    name: str
    title: str
    note: str
    svg: str
    png: bytes


def draw(charts: Sequence[Chart]) -> List[Picture]:
    """Draw charts. Importing matplotlib takes half a second: here, not with the module."""
    import matplotlib

    matplotlib.use("Agg")
    fonts = ["DejaVu Sans", *_chinese()[:1]]
    with matplotlib.rc_context(
        {
            "font.family": fonts,
            "font.size": 9,
            "svg.fonttype": "none",
            "svg.hashsalt": "recipe",
            "axes.unicode_minus": True,
        }
    ):
        return [_draw(chart, fonts) for chart in charts]


def _chinese() -> List[str]:
    """Fonts with Chinese characters that this machine has, by name."""
    from matplotlib import font_manager

    there = {entry.name for entry in font_manager.fontManager.ttflist}
    return [name for name in CHINESE if name in there]


def drawable(text: str, fonts: Sequence[str]) -> bool:
    """Whether every sign of `text` is in one of `fonts`."""
    from matplotlib import font_manager

    sets = [font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts]
    return all(any(ord(sign) in known for known in sets) for sign in text)


def _draw(chart: Chart, fonts: Sequence[str]) -> Picture:
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
    if chart.log:
        axes.set_yscale("log")
    else:
        _room(axes, [v for line in chart.lines for v in line.values.values() if math.isfinite(v)])
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
    return Picture(chart.name, chart.title, chart.note, _for_page(svg.getvalue(), chart), png.getvalue())


def _plot(axes: Any, line: Line, among: Sequence[Line], fonts: Sequence[str]) -> None:
    at = thinned(line.values)
    label = line.label
    if not drawable(label, fonts):
        label = "AB"[[other.label for other in among].index(label) % 2]
    look: Dict[str, Any] = {"linewidth": 1.8}
    if line.style == "thin":
        look = {"linewidth": 0.8, "alpha": 0.4}
    elif line.style == "dashed":
        look = {"linewidth": 1.2, "linestyle": (0, (2, 4))}
    if len(at) < 12 and line.style != "dashed":
        look.update(marker="o", markersize=3.5)
    axes.plot(at, [line.values[n] for n in at], color=PALETTE[line.colour], label=label, **look)


def thinned(values: Dict[int, float], most: int = 1500) -> List[int]:
    """Iterations that draw the same curve: of many, the lowest and the highest of each stretch."""
    at = sorted(values)
    if len(at) <= most:
        return at
    stretches = [at[len(at) * i // (most // 2) : len(at) * (i + 1) // (most // 2)] for i in range(most // 2)]
    return sorted({pick(stretch, key=values.__getitem__) for stretch in stretches for pick in (min, max)})


def _room(axes: Any, values: Sequence[float]) -> None:
    """The axis begins at 0 where that flattens nothing, and never makes a hill of a change of a few percent."""
    if not values or min(values) < 0:
        return
    low, high = min(values), max(values)
    if low < 0.35 * high:
        axes.set_ylim(bottom=0)
    elif high - low < 0.2 * high:
        middle = (low + high) / 2
        axes.set_ylim(0.9 * middle, 1.1 * middle)


def _for_page(svg: str, chart: Chart) -> str:
    """matplotlib's SVG inside a page: no prologue or addresses, the page's colours and fonts, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(chart), svg, count=1)
    for name, value in PALETTE.items():
        svg = svg.replace(value, f"var(--{name})")
    svg = re.sub(r"font: (?:\w+ )?([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r'(\bid="|#)([\w.-]+)(?=["\)])', rf"\1{chart.name}-\2", svg)
    return re.sub(r"\bxlink:href", "href", svg)


def _opening(chart: Chart) -> str:
    title = re.sub(r"[^\w ,.()-]", "", chart.title)
    return rf'<svg viewBox="\1" role="img" aria-label="{title}">'
