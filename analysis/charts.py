"""Charts for a page: matplotlib's SVG, whose colors are the page's own, so that they follow its light or dark theme."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

#: stand for the page's variables until the drawing is done
INK, GRID = "#010101", "#020202"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "chart",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class Line(NamedTuple):
    """A curve of a chart."""

    x: np.ndarray
    y: np.ndarray
    color: str  # a CSS color, such as var(--method-0)
    series: str  # its class, by which the page shows and hides it
    title: str  # what it is, for whoever points at it
    width: float = 1.0
    dashed: bool = False
    opacity: float = 1.0


def line_chart(lines: Sequence[Line], label: str) -> Markup:
    """Curves over epochs.

    Args:
        label: what the chart shows, for those who cannot see it.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for number, line in enumerate(lines):
            (drawn,) = axes.plot(
                line.x,
                line.y,
                color=f"#{number + 16:06x}",
                linewidth=line.width,
                linestyle="--" if line.dashed else "-",
                alpha=line.opacity,
                marker="o" if np.isfinite(line.y).sum() == 1 else None,
                markersize=3,
            )
            drawn.set_gid(f"series-{number}")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.set_xlabel("epoch", labelpad=1)
        return _svg(figure, label, lines)


def surface_chart(x: np.ndarray, y: np.ndarray, values: np.ndarray, label: str) -> Markup:
    """Contours of a surface around the point 0, 0.

    Args:
        x, y: (points,) the two axes.
        values: (points of y, points of x).
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.contourf(x, y, values, levels=14, cmap="viridis")
        lines = axes.contour(x, y, values, levels=14, colors="white", linewidths=0.4, alpha=0.6)
        axes.clabel(lines, lines.levels[::3], fontsize=7, fmt="%.2f", colors="white")
        axes.plot([0], [0], marker="+", color="white", markersize=9)
        axes.grid(False)
        return _svg(figure, label, [])


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4, 2.5))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.13, 0.155, 0.855, 0.82))
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, label: str, lines: Sequence[Line]) -> Markup:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = text.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = drawing[drawing.index("viewBox") :]
    drawing = f'<svg role="img" aria-label="{escape(label)}" {drawing}'
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing).replace("xlink:href", "href")
    drawing = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawing)
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 inherit", drawing)

    def named(match: re.Match) -> str:
        line = lines[int(match[1])]
        return f'<g class="{line.series}"><title>{escape(line.title)}</title>'

    drawing = re.sub(r'<g id="series-(\d+)">', named, drawing)
    drawing = re.sub(r' id="[A-Za-z_.0-9]+_\d+"', "", drawing)
    for number, line in enumerate(lines):
        drawing = drawing.replace(f"#{number + 16:06x}", line.color)
    drawing = drawing.replace(INK, "var(--ink-soft)").replace(GRID, "var(--grid)")
    drawing = re.sub(r"(\d+\.\d\d)\d+", r"\1", drawing)
    return Markup(re.sub(r"\n\s*", " ", drawing))
