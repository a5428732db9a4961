"""Charts of the report: SVG from matplotlib. CSS variables set the colors, so they follow the light or dark theme."""

import functools
import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.compare import Quantity, curve_of, mean_curve
from analysis.curves import leave_out_outliers, number
from analysis.draw import kind_of
from analysis.rows import Row
from analysis.runs import Entry

#: placeholder colors, which `_svg` replaces with CSS variables of the page
INK, GRID = "#010101", "#020202"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "chart",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class Line(NamedTuple):
    """A curve of a chart."""

    x: np.ndarray
    y: np.ndarray
    series: str  # CSS class, with which the page hides the curve, and name of the color variable
    title: str  # text of the tooltip
    width: float = 1.0
    dashed: bool = False
    opacity: float = 1.0


def curves(rows: Sequence[Row], panel: Quantity) -> Markup | None:
    """A chart of a quantity for all searches of a column. Thick lines are means of a method; thin lines are seeds."""
    lines = []
    for row in rows:
        measured = [(e.seed, curve_of(e.course.metrics, panel)) for e in row.entries if e.course is not None]
        found = [(f"seed {seed}", values) for seed, values in measured if values is not None]
        style = (1.0, False, 0.45) if len(found) > 1 else (1.8, False, 1.0)
        drawn = [(*curve, style) for curve in found]
        if len(found) > 1:
            mean = mean_curve([values for _, values in found])
            drawn.append((f"mean of {len(found)} seeds", mean, (2.2, False, 1.0)))
        for name, values, style in drawn:
            title = f"{row.method}, {name}: {number(values[-1], '.3g')} after epoch {len(values)}"
            lines.append(Line(np.arange(1, len(values) + 1), values, row.series, title, *style))
    label = f"{panel.title} against epoch"
    return line_chart(lines, label, panel.integer, panel.outliers) if lines else None


def eigenvalues(rows: Sequence[Row]) -> Markup | None:
    """A chart of the dominant eigenvalue of the Hessian in alpha, or None if it was not measured."""
    lines = []
    for row in rows:
        for entry in row.entries:
            if entry.eigenvalues is not None:
                epochs, values = entry.eigenvalues[["epoch", "eigenvalue_1"]].to_numpy().T
                title = f"{row.method}, seed {entry.seed}: {number(values[-1], '.3g')}"
                lines.append(Line(epochs, values, row.series, title, 1.8))
    return line_chart(lines, "dominant eigenvalue of the Hessian against epoch") if lines else None


def operation_series(operation: str) -> str:
    """The CSS variable for the color of an operation."""
    return kind_of(operation).replace("_", "-")


def trajectories(entry: Entry) -> dict[str, Markup]:
    """kind of cell -> a chart of the mixing weight of each operation over the epochs, averaged over the edges."""
    charts = {}
    for kind, mixing in entry.course.mixing.items() if entry.course is not None else ():
        lines = []
        for operation, weights in mixing.items():
            title = f"{operation}: {weights[-1]:.3f} at the end"
            series, dashed = operation_series(operation), operation.endswith("5x5")
            lines.append(Line(np.arange(len(weights)), weights, series, title, 1.8, dashed))
        charts[kind] = line_chart(lines, f"mixing weights of the {kind} cell, {entry.method}, seed {entry.seed}")
    return charts


def line_chart(lines: Sequence[Line], label: str, integer: bool = False, outliers: bool = True) -> Markup:
    """A chart of curves over epochs.

    Args:
        label: Name of the chart for screen readers.
        integer: Place ticks at whole numbers.
        outliers: If False, cut off values far below the others.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _epochs_figure()
        for index, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                color=f"#{index + 16:06x}",
                linewidth=line.width,
                linestyle="--" if line.dashed else "-",
                alpha=line.opacity,
                marker="o" if np.isfinite(line.y).sum() == 1 else None,
                markersize=3,
                gid=f"series-{index}",
            )
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=integer, steps=[1, 2, 5, 10] if integer else None))
        if not outliers:
            leave_out_outliers(axes)
        drawing = _svg(figure, label, lines)
    for artist in [*axes.lines, *axes.collections]:
        artist.remove()
    axes.relim()
    axes.set_autoscale_on(True)
    return drawing


@functools.cache
def _epochs_figure() -> tuple[Figure, Axes]:
    """The figure that all line charts share. Matplotlib would spend most of the time on new axes and ticks."""
    figure, axes = _figure()
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.set_xlabel("epoch", labelpad=1)
    return figure, axes


def surface(entry: Entry) -> Markup | None:
    """A contour plot of the validation loss around alpha, or None if the landscape was not measured."""
    if entry.surface is None:
        return None
    grid = entry.surface.pivot_table(index="y", columns="x", values="loss")
    x, y, values = grid.columns.to_numpy(), grid.index.to_numpy(), grid.to_numpy()
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.contourf(x, y, values, levels=14, cmap="viridis")
        lines = axes.contour(x, y, values, levels=14, colors="white", linewidths=0.4, alpha=0.6)
        levels = np.asarray(lines.levels)
        digits = max(0, math.ceil(-math.log10(levels[1] - levels[0])))  # enough to tell two levels apart
        axes.clabel(lines, levels[::3], fontsize=7, fmt=lambda value: number(value, f".{digits}f"), colors="white")
        axes.plot([0], [0], marker="+", color="white", markersize=9)
        axes.grid(False)
        return _svg(figure, f"validation loss around alpha, {entry.method}, seed {entry.seed}", [])


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4, 2.5))
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.16, 0.155, 0.8, 0.82))
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, label: str, lines: Sequence[Line]) -> Markup:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("viewBox") :]
    drawing = f'<svg role="img" aria-label="{escape(label)}" {drawing}'
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing).replace("xlink:href", "href")
    drawing = re.sub(r"font-family: [^;\"]*", "font-family: inherit", drawing)
    drawing = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 inherit", drawing)
    # Round coordinates, which stand in quotes, to two digits. Labels do not change.
    drawing = re.sub(r'="[^"]*"', lambda quoted: re.sub(r"(\d+\.\d\d)\d+", r"\1", quoted[0]), drawing)

    def named(match: re.Match[str]) -> str:
        line = lines[int(match[1])]
        return f'<g class="{line.series}"><title>{escape(line.title)}</title>'

    drawing = re.sub(r'<g id="series-(\d+)">', named, drawing)
    drawing = re.sub(r' id="[A-Za-z_.0-9]+_\d+"', "", drawing)
    for index, line in enumerate(lines):
        drawing = drawing.replace(f"#{index + 16:06x}", f"var(--{line.series})")
    drawing = drawing.replace(INK, "var(--ink-soft)").replace(GRID, "var(--grid)")
    return Markup(re.sub(r"\n\s*", " ", drawing))
