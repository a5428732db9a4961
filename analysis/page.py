"""The page of a report, from run folders and the template report.html."""

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.charts import curves, eigenvalues, operation_series, surface, trajectories
from analysis.colors import METHODS, assign
from analysis.compare import QUANTITIES
from analysis.curves import number
from analysis.draw import COLORS, color
from analysis.runs import ACCURACY, DATASETS, Entry, load_entries
from analysis.samples import Paired, compare_paired, interval
from lib import cli
from lib.files import read_yaml

HERE = Path(__file__).resolve().parent
#: shown without a published figure
UNKNOWN = "not available"
#: characters that need no quoting in a data URI
SAFE = " =/:;,.()-+'"


@dataclass
class Row:
    """A method in a column of a table.

    Attributes:
        series: The method whose color the row has.
        runs: The seed, scores and figures of each entry.
    """

    method: str
    series: str
    entries: list[Entry]
    runs: pd.DataFrame

    def values(self, name: str) -> pd.Series:
        """seed -> a score or figure, without the entries that lack it."""
        return self.runs.set_index("seed")[name].dropna() if name in self.runs else pd.Series(dtype=float)

    def mean(self, name: str, digits: int = 2) -> str:
        """Mean and deviation as the papers print them: 93.76 ± 0.12."""
        values = self.values(name)
        deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return shown(values.mean(), digits) + deviation

    @property
    def note(self) -> str:
        return self.entries[0].note

    def published(self, figures: Iterable[dict[str, Any]], metric: str) -> str:
        return published(figures, self.entries[0].origin, metric)


def shown(value: float | None, digits: int = 2, sign: str = "") -> str:
    """A number in a table, or a dash."""
    return "–" if value is None or pd.isna(value) else number(value, f"{sign}z.{digits}f")


def small(text: object, note: str) -> str:
    """The text of a cell, followed by a note."""
    return Markup("{} <small>{}</small>").format(text, note) if note else str(text)


def load_published() -> list[dict[str, Any]]:
    """The published figures (published_results.json)."""
    return json.loads((HERE.parent / "published_results.json").read_text(encoding="utf-8"))


def published(figures: Iterable[dict[str, Any]], origin: dict[str, Any], metric: str) -> str:
    """The figure of a paper for a method in a space, or "not available"."""
    asked = {name: origin.get(name) for name in ("space", "dataset", "method")}
    if set(origin) <= set(asked):
        for figure in figures:
            if figure["metric"] == metric and all(figure.get(name) == value for name, value in asked.items()):
                deviation = f" ± {figure['deviation']}" if "deviation" in figure else ""
                note = f"{figure['note']}; " if "note" in figure else ""
                return f"{figure['value']:.2f}{deviation} ({note}{figure['source']})"
    return UNKNOWN


def rows_of(entries: list[Entry]) -> list[Row]:
    """The rows of a column, in the order of the entries."""
    runs = pd.DataFrame([{"method": e.method, "seed": e.seed, **e.scores, **e.figures} for e in entries])
    shades = assign({entry.method: str(entry.origin.get("method")) for entry in entries})
    groups = runs.groupby("method", sort=False)
    return [Row(name, shades[name], [entries[index] for index in own.index], own) for name, own in groups]


def first_metric(entries: list[Entry]) -> str:
    """The score that a column shows: that on the data set of the search, if there are several."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.scores))
    searched = DATASETS.get(str(entries[0].origin.get("dataset", "")).replace("-", "_"), "CIFAR-10")
    asked = (ACCURACY, f"{searched} test", f"{searched} test, 12 epochs")
    return next((name for name in asked if name in names), names[0] if names else ACCURACY)


def results(rows: list[Row], metric: str, figures: list[dict[str, Any]]) -> pd.DataFrame:
    """Measured and published scores. The other methods are compared with the first one."""
    lines = []
    for row in rows:
        values = row.values(metric)
        low, high = interval(values)
        pair = compare_paired(rows[0].values(metric).to_dict(), values.to_dict()) if row is not rows[0] else None
        lines.append(
            {
                "Seeds": small(len(values), f"of {len(row.entries)}"),
                metric + (" [%]" if metric != "rank" else ""): row.mean(metric),
                "95 % interval": "–" if low is None else f"{shown(low)} – {shown(high)}",
                "Every seed": ", ".join(map(shown, values)) or "–",
                f"Against {rows[0].method}": difference(pair),
                "Published": row.published(figures, metric),
                "Skips": ", ".join(f"{skips:.0f}" for skips in row.values("skips")) or "–",
                "Alignment": row.mean("alignment"),
                "Params [M]": shown(row.values("params").mean() / 1e6, 3),
            }
        )
    table = pd.DataFrame(lines)
    return table if (table["Params [M]"] != "–").any() else table.drop(columns="Params [M]")


def difference(pair: Paired | None) -> str:
    """The mean difference of two methods and its p-value."""
    if pair is None:
        return "–"
    note = "" if pair.p is None else f"p = {number(pair.p, '.3g')}, {pair.pairs} pairs"
    return small(shown(pair.difference, sign="+"), note)


def others(rows: list[Row], names: list[str], figures: list[dict[str, Any]]) -> pd.DataFrame:
    """The other scores of a column."""

    def cell(row: Row, name: str) -> str:
        found = row.published(figures, name)
        return small(row.mean(name, 0 if name == "rank" else 2), f"published: {found}" if found != UNKNOWN else "")

    return pd.DataFrame([{name: cell(row, name) for name in names} for row in rows])


def pairs(rows: list[Row], metric: str) -> pd.DataFrame:
    """Every method against every other: the row's values minus the column's."""
    values = {row.method: row.values(metric).to_dict() for row in rows}

    def cell(own: dict[int, float], against: dict[int, float]) -> str:
        return "–" if own is against else difference(compare_paired(against, own))

    return pd.DataFrame([{other: cell(own, values[other]) for other in values} for own in values.values()])


def cost(rows: list[Row], figures: list[dict[str, Any]]) -> pd.DataFrame:
    """Time and memory of each method's runs so far."""
    lines = []
    for row in rows:
        search, epochs = row.values("search"), row.values("search_epochs").sum()
        lines.append(
            {
                "Search [min]": shown(search.mean() / 60, 1),
                "Seconds an epoch": shown(search.sum() / epochs if epochs else None, 1),
                "Retraining [min]": shown(row.values("retrain").mean() / 60, 1),
                "Memory of the search [MiB]": shown(row.values("memory").max(), 0),
                "Published search cost": row.published(figures, "search GPU-days"),
            }
        )
    return pd.DataFrame(lines)


def state(rows: list[Row], metric: str) -> pd.DataFrame:
    """The state and the commands of every entry."""
    opening, lines = Markup('<details><summary>{}</summary><pre tabindex="0">{}</pre></details>'), []
    for entry in (entry for row in rows for entry in row.entries):
        progress = ", ".join(f"{step} {done} of {total} epochs" for step, (done, total) in entry.progress.items())
        lines.append(
            {
                "Seed": str(entry.seed),
                "State": "finished" if entry.finished else progress or "waiting",
                metric: shown(entry.scores.get(metric)),
                "Folder": opening.format(entry.folder, "\n".join(entry.commands)),
            }
        )
    return pd.DataFrame(lines)


def section(index: int, entries: list[Entry], order: dict[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of the page for one column of a table."""
    rows, metric = rows_of(entries), first_metric(entries)
    names = [name for name in dict.fromkeys(name for e in entries for name in e.scores) if name != metric]
    return {
        "id": f"s{index}",
        "column": entries[0].column,
        "scale": order.get("scale", ""),
        "source": order.get("source", ""),
        "metric": metric,
        "rows": rows,
        "commands": [line for entry in entries for line in entry.commands],
        "measurements": [line for entry in entries for line in entry.measurements],
        "results": results(rows, metric, figures),
        "references": _references(figures, entries[0].origin, metric),
        "others": others(rows, names, figures) if names else None,
        "pairs": pairs(rows, metric) if len(rows) > 2 else None,
        "cost": cost(rows, figures),
        "listed": [row for row in rows for _ in row.entries],
        "state": state(rows, metric),
        "alphas": [(row, e, trajectories(e)) for row in rows for e in [e for e in row.entries if e.course][:1]],
        "charts": [(panel, chart) for panel in QUANTITIES if (chart := curves(rows, panel)) is not None],
        "cells": _cells(rows),
        "eigenvalues": eigenvalues(rows),
        "surfaces": [(r, e, chart) for r in rows for e in r.entries if (chart := surface(e)) is not None],
        "operations": sorted({name for e in entries if e.course for m in e.course.mixing.values() for name in m}),
    }


def build(paths: Sequence[Path], command: str, refresh: int = 0) -> tuple[str, list[str], bool]:
    """The page of some run folders.

    Args:
        command: The command that makes the page.
        refresh: Seconds after which the page reloads itself; 0 for never.

    Returns:
        The page, the reasons why runs could not be read, and whether all runs are finished.

    Raises:
        ValueError: There is no run.
        OSError: A folder cannot be read.
    """
    entries, problems = load_entries(list(paths))
    figures, orders = load_published(), _orders(entries)
    groups: dict[tuple[Path | None, str, str], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: _place(entry, orders)):
        groups.setdefault((entry.root, entry.table, entry.column), []).append(entry)
    roots = {(root, table) for root, table, _ in groups}
    twice = {table for _, table in roots if sum(table == other for _, other in roots) > 1}
    sections = [
        {
            "table": f"{table} ({root})" if table in twice else table,
            **section(index, own, orders.get(root, {}), figures),
        }
        for index, ((root, table, _), own) in enumerate(groups.items())
    ]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"picture": _picture, "operation_series": operation_series, "shown": shown}
    page = environment.get_template("report.html").render(
        sections=sections,
        entries=entries,
        problems=problems,
        command=command,
        refresh=refresh,
        written=time.strftime("%Y-%m-%d %H:%M"),
        computing=cli.duration(sum(e.figures.get(step, 0) for e in entries for step in ("search", "retrain"))),
        method_colors=METHODS,
        operation_colors={kind.replace("_", "-"): color(kind) for kind in COLORS},
        finished=sum(entry.finished for entry in entries),
        devices=sorted(set().union(*(entry.devices for entry in entries))),
        commits=sorted(set().union(*(entry.commits for entry in entries))),
    )
    return page, problems, all(entry.finished for entry in entries)


def _orders(entries: list[Entry]) -> dict[Path | None, dict[str, Any]]:
    """folder of a table -> its scale and source, and the order of its columns and methods."""
    orders: dict[Path | None, dict[str, Any]] = {}
    for root in {entry.root for entry in entries if entry.root is not None}:
        if (root / "table.yaml").is_file():
            about = read_yaml(root / "table.yaml")
            axes = {axis: list(about["table"][axis]) for axis in ("columns", "methods")}
            orders[root] = {"scale": about["scale"], "source": about["table"].get("source", ""), **axes}
    return orders


def _place(entry: Entry, orders: dict[Path | None, dict[str, Any]]) -> tuple[Any, ...]:
    """The position of an entry: that in its table's file, then by name."""
    order = orders.get(entry.root, {"columns": [], "methods": []})
    column, method = (
        order[axis].index(name) if name in order[axis] else len(order[axis])
        for axis, name in (("columns", entry.column), ("methods", entry.method))
    )
    return (entry.root is None, str(entry.root), column, entry.column, method, entry.method, entry.seed)


def _references(figures: list[dict[str, Any]], origin: dict[str, Any], metric: str) -> list[tuple[str, str, str]]:
    """(name, figure, source) of the published references in a space, such as the best cell of a table."""
    return [
        (figure["reference"], f"{figure['value']:.2f}", figure["source"])
        for figure in figures
        if "reference" in figure and figure["space"] == origin.get("space") and figure["metric"] == metric
    ]


def _cells(rows: list[Row]) -> dict[int, list[tuple[Row, Entry]]]:
    """seed -> the entries with a drawing of their cells."""
    seeds = sorted({entry.seed for row in rows for entry in row.entries if entry.pictures})
    return {s: [(row, e) for row in rows for e in row.entries if e.seed == s and e.pictures] for s in seeds}


def _picture(drawing: bytes) -> str:
    """An SVG file as a data URI. A browser runs no scripts in an image."""
    text = re.sub(r"<!--.*?-->|<title>.*?</title>", "", drawing.decode("utf-8", "replace"), flags=re.DOTALL)
    return f"data:image/svg+xml,{quote(' '.join(text.split()), safe=SAFE)}"
