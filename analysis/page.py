"""The page of a report, made of what lies in run folders; report.py writes it, and report.html is its form."""

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import cli
from analysis.charts import Line, line_chart, surface_chart
from analysis.draw import COLORS, color
from analysis.runs import ACCURACY, DATASETS, Entry, load_entries
from analysis.samples import Paired, Summary, compare_paired, summarize
from files import read_yaml

HERE = Path(__file__).resolve().parent
#: where no figure of a paper was read in its source
UNKNOWN = "not available"
#: what an address within quotes may have as it is
SAFE = " =/:;,.()-+'"
#: colors of the methods; the page has as many variables
SHADES = 8


@dataclass
class Quantity:
    """A curve over a search's epochs: the columns of metrics.csv that begin so, put together."""

    title: str
    about: str
    column: str
    factor: float = 1
    together: Any = np.mean

    def of(self, entry: Entry) -> np.ndarray | None:
        """The curve of a search, (epochs,); None where it was not measured."""
        if entry.course is None:
            return None
        metrics = entry.course.metrics
        names = [name for name in metrics.dtype.names if name == self.column or name.startswith(f"{self.column}_")]
        values = self.together([metrics[name] for name in names], axis=0) * self.factor if names else None
        return values if values is not None and np.isfinite(values).any() else None


ALIGNMENT = Quantity(
    "Layer alignment Λ",
    "Mean cosine between the layers' architecture gradients, on validation batches (Λ-DARTS, figure 1).",
    "valid_alignment",
)
SKIPS = Quantity(
    "Skip connections",
    "Of the cell that each epoch's alpha stands for: collapse is the rise of this curve.",
    "skip_connect",
    together=np.sum,
)
QUANTITIES = (
    Quantity(
        "The cell's accuracy in the table [%]",
        "Test accuracy, after 200 epochs of training, of the cell that each epoch's alpha stands for.",
        "table_test_accuracy",
    ),
    Quantity(
        "Accuracy of the supernet [%]", "On the half of the training images that alpha sees.", "valid_accuracy", 100
    ),
    ALIGNMENT,
    SKIPS,
    Quantity("Training accuracy of the supernet [%]", "On the half that the weights see.", "train_accuracy", 100),
    Quantity("Entropy of p [nats]", "Of an edge's mixing weights (of its gates): 0 where one is chosen.", "entropy"),
)


@dataclass
class Cost:
    """What a method's runs took, on average; None where there is none yet."""

    search: float | None  # seconds of its epochs
    epoch: float | None  # of one of them
    retraining: float | None
    memory: float | None  # MiB, the most of all searches
    published: str


@dataclass
class Row:
    """A method in a column of a table."""

    method: str
    shade: str
    entries: list[Entry]
    values: dict[int, float]  # seed -> the first figure
    summary: Summary | None
    paired: Paired | None
    published: str
    others: dict[str, str]
    numbers: dict[str, float]  # what the others are sorted by
    published_others: dict[str, str]  # of these, what a paper says; "" where none does
    cost: "Cost"
    skips: Summary | None
    alignment: Summary | None
    params: float | None


def mean_and_deviation(summary: Summary | None, digits: int = 2) -> str:
    """As the papers print it: 93.76 ± 0.12."""
    if summary is None:
        return "–"
    text = f"{summary.mean:.{digits}f}"
    return text if summary.deviation is None else f"{text} ± {summary.deviation:.{digits}f}"


def load_published() -> list[dict[str, Any]]:
    """The figures of the papers that were read in their source (published_results.json)."""
    return json.loads((HERE.parent / "published_results.json").read_text(encoding="utf-8"))


def published(figures: Iterable[dict[str, Any]], origin: dict[str, Any], metric: str) -> str:
    """What a paper says of a method in a space, or "not available"."""
    asked = {name: origin.get(name) for name in ("space", "dataset", "method")}
    if set(origin) <= set(asked):
        for figure in figures:
            if figure["metric"] == metric and all(figure.get(name) == value for name, value in asked.items()):
                deviation = f" ± {figure['deviation']}" if "deviation" in figure else ""
                note = f"{figure['note']}; " if "note" in figure else ""
                return f"{figure['value']:.2f}{deviation} ({note}{figure['source']})"
    return UNKNOWN


def _maybe(values: list[float]) -> Summary | None:
    return summarize(values) if values else None


def rows_of(entries: list[Entry], metric: str, figures: list[dict[str, Any]], shades: dict[str, str]) -> list[Row]:
    """The rows of a column, in the order of `shades`; the first method is what the others are compared with."""
    rows: list[Row] = []
    for method in [method for method in shades if any(entry.method == method for entry in entries)]:
        own = sorted((entry for entry in entries if entry.method == method), key=lambda entry: entry.seed)
        values = {entry.seed: entry.scores[metric] for entry in own if metric in entry.scores}
        searched = [entry for entry in own if entry.course is not None]
        skips = [float(entry.skips) for entry in searched]
        ends = [ALIGNMENT.of(entry) for entry in searched]
        ends = [float(np.nanmean(end[-max(1, len(end) // 4) :])) for end in ends if end is not None]
        others, numbers = {}, {}
        for name in other_metrics(entries, metric):
            summary = _maybe([entry.scores[name] for entry in own if name in entry.scores])
            digits = 0 if name == "rank" else 2
            others[name], numbers[name] = mean_and_deviation(summary, digits), summary.mean if summary else math.nan
        params = [entry.params for entry in own if entry.params is not None]
        rows.append(
            Row(
                method,
                shades[method],
                own,
                values,
                _maybe(list(values.values())),
                compare_paired(rows[0].values, values) if rows else None,
                published(figures, own[0].origin, metric),
                others,
                numbers,
                {
                    name: found if (found := published(figures, own[0].origin, name)) != UNKNOWN else ""
                    for name in others
                },
                cost_of(own, published(figures, own[0].origin, "search GPU-days")),
                _maybe(skips),
                _maybe(ends),
                float(np.mean(params)) if params else None,
            )
        )
    return rows


def cost_of(entries: list[Entry], published: str) -> Cost:
    """What a method's runs took so far."""
    seconds = {step: [e.seconds[step] for e in entries if step in e.seconds] for step in ("search", "retrain")}
    means = {step: float(np.mean(values)) if values else None for step, values in seconds.items()}
    epochs = sum(entry.epochs["search"][0] for entry in entries if "search" in entry.seconds)
    memory = max((entry.memory for entry in entries if entry.memory is not None), default=None)
    each = sum(seconds["search"]) / epochs if epochs else None
    return Cost(means["search"], each, means["retrain"], memory, published)


def first_metric(entries: list[Entry]) -> str:
    """The figure that a column is about: of the data set searched on, where there are several."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.scores))
    searched = DATASETS.get(str(entries[0].origin.get("dataset", "")).replace("-", "_"), "CIFAR-10")
    asked = (ACCURACY, f"{searched} test", f"{searched} test, 12 epochs")
    return next((name for name in asked if name in names), names[0] if names else ACCURACY)


def other_metrics(entries: list[Entry], metric: str) -> list[str]:
    """The other figures of a column."""
    return [name for name in dict.fromkeys(name for e in entries for name in e.scores) if name != metric]


def curves(rows: list[Row], quantity: Quantity) -> Markup | None:
    """A chart of all searches of a column: each seed as a thin line, the mean of a method as a thick one."""
    lines = []
    for row in rows:
        found = [(entry, quantity.of(entry)) for entry in row.entries]
        found = [(entry, values) for entry, values in found if values is not None]
        for entry, values in found:
            title = f"{row.method}, seed {entry.seed}: {values[-1]:.3g} after epoch {len(values)}"
            thin = (1.0, False, 0.45) if len(found) > 1 else (1.8, False, 1.0)
            lines.append(Line(np.arange(1, len(values) + 1), values, row.shade, series(row), title, *thin))
        if len(found) > 1:
            shortest = min(len(values) for _, values in found)
            mean = np.mean([values[:shortest] for _, values in found], axis=0)
            title = f"{row.method}, mean of {len(found)} seeds: {mean[-1]:.3g} after epoch {shortest}"
            lines.append(Line(np.arange(1, shortest + 1), mean, row.shade, series(row), title, 2.2))
    return line_chart(lines, f"{quantity.title} against epoch") if lines else None


def series(row: Row) -> str:
    """The class of a method's curves."""
    return row.shade.removeprefix("var(--").removesuffix(")")


def eigenvalues(rows: list[Row]) -> Markup | None:
    """The dominant eigenvalue of the validation loss's Hessian in alpha, along the searches that have it measured."""
    lines = []
    for row in rows:
        for entry in row.entries:
            if entry.eigenvalues is not None:
                values = entry.eigenvalues["eigenvalue_1"]
                title = f"{row.method}, seed {entry.seed}: {values[-1]:.3g}"
                lines.append(Line(entry.eigenvalues["epoch"], values, row.shade, series(row), title, 1.8))
    return line_chart(lines, "dominant eigenvalue of the Hessian against epoch") if lines else None


def surface(entry: Entry) -> Markup | None:
    """The loss around alpha, where it was measured."""
    if entry.surface is None:
        return None
    x, y = np.unique(entry.surface["x"]), np.unique(entry.surface["y"])
    if len(x) * len(y) != len(entry.surface) or min(len(x), len(y)) < 2:
        return None
    order = np.lexsort((entry.surface["x"], entry.surface["y"]))
    values = entry.surface["loss"][order].reshape(len(y), len(x))
    return surface_chart(x, y, values, f"validation loss around alpha, {entry.method}, seed {entry.seed}")


def operation_color(operation: str) -> str:
    """The page's variable for a kind of operation."""
    return f"var(--{next(kind for kind in COLORS if operation.startswith(kind)).replace('_', '-')})"


def trajectories(entry: Entry) -> dict[str, Markup]:
    """kind of cell -> the mixing weights of its operations over the epochs, mean over the edges."""
    charts = {}
    for kind, mixing in entry.course.mixing.items():
        lines = [
            Line(
                np.arange(len(weights)),
                weights,
                operation_color(operation),
                "operation",
                f"{operation}: {weights[-1]:.3f} at the end",
                1.8,
                operation.endswith("5x5"),
            )
            for operation, weights in mixing.items()
        ]
        charts[kind] = line_chart(lines, f"mixing weights of the {kind} cell, {entry.method}, seed {entry.seed}")
    return charts


def build(paths: Sequence[Path], command: str, refresh: int = 0) -> tuple[str, list[str], bool]:
    """The page of some run folders.

    Args:
        command: that makes the page.
        refresh: seconds after which it loads itself again; 0 for never.

    Returns:
        The page, what could not be read, and whether all runs are finished.

    Raises:
        ValueError: there is no run.
        OSError: a folder cannot be read.
    """
    entries, problems = load_entries(list(paths))
    figures = load_published()
    orders = _orders(entries)
    groups: dict[tuple[Path | None, str, str], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: _place(entry, orders)):
        groups.setdefault((entry.root, entry.table, entry.column), []).append(entry)
    roots = {(root, table) for root, table, _ in groups}
    twice = {table for _, table in roots if sum(table == other for _, other in roots) > 1}
    sections = []
    for number, ((root, table, column), own) in enumerate(groups.items()):
        methods = list(dict.fromkeys(entry.method for entry in own))
        shades = {method: f"var(--method-{index % SHADES})" for index, method in enumerate(methods)}
        metric = first_metric(own)
        rows = rows_of(own, metric, figures, shades)
        values = [value for row in rows for value in row.values.values()]
        sections.append(
            {
                "id": f"s{number}",
                "table": f"{table} ({root})" if table in twice else table,
                "column": column,
                "scale": orders.get(root, {}).get("scale", ""),
                "source": orders.get(root, {}).get("source", ""),
                "metric": metric,
                "others": other_metrics(own, metric),
                "rows": rows,
                "range": (min(values), max(values)) if values else None,
                "references": _references(figures, own[0].origin, metric),
                "pairs": _pairs(rows),
                "common": max((row.paired.count for row in rows if row.paired), default=0),
                "charts": [(q, chart) for q in QUANTITIES if (chart := curves(rows, q)) is not None],
                "alphas": [
                    (row, entry.seed, trajectories(entry))
                    for row in rows
                    if (entry := next((e for e in row.entries if e.course is not None), None))
                ],
                "cells": _cells(rows),
                "eigenvalues": eigenvalues(rows),
                "surfaces": [(e, chart) for row in rows for e in row.entries if (chart := surface(e)) is not None],
                "operations": sorted({name for e in own if e.course for m in e.course.mixing.values() for name in m}),
            }
        )
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"mean": mean_and_deviation, "duration": cli.duration, "picture": _picture, "series": series}
    environment.filters |= {"operation_color": operation_color, "sum_values": lambda seconds: sum(seconds.values())}
    page = environment.get_template("report.html").render(
        sections=sections,
        entries=entries,
        problems=problems,
        command=command,
        refresh=refresh,
        written=time.strftime("%Y-%m-%d %H:%M"),
        operation_colors={kind.replace("_", "-"): color(kind) for kind in COLORS},
        finished=sum(entry.finished for entry in entries),
        devices=sorted({device for entry in entries for device in entry.devices}),
        commits=sorted({commit for entry in entries for commit in entry.commits}),
    )
    return page, problems, all(entry.finished for entry in entries)


def _orders(entries: list[Entry]) -> dict[Path, dict[str, Any]]:
    """What the tables' files say of their entries' order: folder -> scale, source, columns and methods."""
    orders = {}
    for root in dict.fromkeys(entry.root for entry in entries if entry.root is not None):
        try:
            about = read_yaml(root / "table.yaml")
            parts = {axis: [str(name) for name in about["table"][axis]] for axis in ("columns", "methods")}
            orders[root] = {"scale": str(about["scale"]), "source": str(about["table"].get("source", "")), **parts}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # without it the entries stand by name
    return orders


def _place(entry: Entry, orders: dict[Path, dict[str, Any]]) -> tuple:
    """Where an entry stands: as in its table's file; what is in none, behind that and by name."""
    order = orders.get(entry.root, {"columns": [], "methods": []})
    places = [
        order[axis].index(name) if name in order[axis] else len(order[axis])
        for axis, name in (("columns", entry.column), ("methods", entry.method))
    ]
    column, method = places
    return (entry.root is None, str(entry.root), column, entry.column, method, entry.method, entry.seed)


def _references(figures: list[dict[str, Any]], origin: dict[str, Any], metric: str) -> list[tuple[str, str, str]]:
    """What a space's own table says: name, figure and source."""
    return [
        (figure["reference"], f"{figure['value']:.2f}", figure["source"])
        for figure in figures
        if "reference" in figure and figure["space"] == origin.get("space") and figure["metric"] == metric
    ]


def _cells(rows: list[Row]) -> list[tuple[int, list[tuple[Row, Entry, dict[str, bytes]]]]]:
    """seed -> the drawings of all methods, side by side."""
    drawn = [(row, entry, pictures) for row in rows for entry in row.entries if (pictures := entry.pictures)]
    seeds = sorted({entry.seed for _, entry, _ in drawn})
    return [(seed, [cell for cell in drawn if cell[1].seed == seed]) for seed in seeds]


def _pairs(rows: list[Row]) -> list[list[Paired | None]]:
    """Every method against every other, the row's less the column's."""
    return [[None if a is b else compare_paired(b.values, a.values) for b in rows] for a in rows]


def _picture(drawing: bytes) -> str:
    """An SVG file as an address that holds it; a page shows it as an image, in which nothing runs."""
    text = re.sub(r"<!--.*?-->|<title>.*?</title>", "", drawing.decode("utf-8", "replace"), flags=re.DOTALL)
    return f"data:image/svg+xml,{quote(' '.join(text.split()), safe=SAFE)}"
