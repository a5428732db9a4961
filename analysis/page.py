"""Build the page of a report from run folders and the template report.html."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.charts import curves, eigenvalues, operation_series, surface, trajectories
from analysis.colors import METHODS
from analysis.compare import quantities_of
from analysis.curves import number
from analysis.draw import COLORS, color
from analysis.rows import UNKNOWN, Row, first_metric, format_number, load_published, rows_of, with_note
from analysis.runs import Entry, load_entries
from analysis.samples import Paired, compare_paired, interval
from lib import cli
from lib.files import read_yaml
from spaces import SPACES

HERE = Path(__file__).resolve().parent
#: characters that a data URI may contain unquoted
SAFE = " =/:;,.()-+'"


def cells_of(lines: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """A table of texts. Without dtype=object, pandas with pyarrow would turn Markup into plain strings."""
    return pd.DataFrame(lines, dtype=object)


def small_note(text: object, note: str) -> str:
    """The text of a table cell, with an optional note in small letters."""
    return Markup("{} <small>{}</small>").format(text, note) if note else str(text)


def results(rows: list[Row], metric: str, figures: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of measured and published scores. All methods are compared with the first one."""
    lines = []
    for row in rows:
        values = row.values(metric)
        low, high = interval(values)
        pair = compare_paired(rows[0].values(metric).to_dict(), values.to_dict()) if row is not rows[0] else None
        lines.append(
            {
                "Seeds": small_note(len(values), f"of {len(row.entries)}"),
                metric + (" [%]" if metric != "rank" else ""): row.mean(metric),
                "95 % interval": "–" if low is None else f"{format_number(low)} – {format_number(high)}",
                "Every seed": ", ".join(map(format_number, values)) or "–",
                f"Against {rows[0].method}": difference(pair),
                "Published": row.published(figures, metric),
                "Skips": ", ".join(f"{skips:.0f}" for skips in row.values("skips")) or "–",
                "Alignment": row.mean("alignment"),
                "Params [M]": format_number(row.values("params").mean() / 1e6, 3),
            }
        )
    table = cells_of(lines)
    return table if (table["Params [M]"] != "–").any() else table.drop(columns="Params [M]")


def difference(pair: Paired | None) -> str:
    """The text for the mean difference of two methods and its p-value."""
    if pair is None:
        return "–"
    note = "" if pair.p is None else f"p = {number(pair.p, '.3g')}, {pair.pairs} pairs"
    return small_note(format_number(pair.difference, sign="+"), note)


def other_scores(rows: list[Row], names: list[str], figures: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of the other scores in a column."""

    def cell(row: Row, name: str) -> str:
        found = row.published(figures, name)
        return small_note(row.mean(name, 0 if name == "rank" else 2), f"published: {found}" if found != UNKNOWN else "")

    return cells_of([{name: cell(row, name) for name in names} for row in rows])


def pair_table(rows: list[Row], metric: str) -> pd.DataFrame:
    """A table that compares each pair of methods: the method of the row minus the method of the column."""
    values = {row.method: row.values(metric).to_dict() for row in rows}

    def cell(own: dict[int, float], against: dict[int, float]) -> str:
        return "–" if own is against else difference(compare_paired(against, own))

    return cells_of([{other: cell(own, values[other]) for other in values} for own in values.values()])


def cost_table(rows: list[Row], figures: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of the time and memory that the runs of each method have used so far."""
    lines = []
    for row in rows:
        search, epochs = row.values("search"), row.values("search_epochs").sum()
        lines.append(
            {
                "Search [min]": format_number(search.mean() / 60, 1),
                "Seconds an epoch": format_number(search.sum() / epochs if epochs else None, 1),
                "Retraining [min]": format_number(row.values("retrain").mean() / 60, 1),
                "Memory of the search [MiB]": format_number(row.values("memory").max(), 0),
                "Published search cost": row.published(figures, "search GPU-days"),
            }
        )
    return cells_of(lines)


def state_table(rows: list[Row], metric: str) -> pd.DataFrame:
    """A table of the state and the commands of each entry."""
    opening, lines = Markup('<details><summary>{}</summary><pre tabindex="0">{}</pre></details>'), []
    for entry in (entry for row in rows for entry in row.entries):
        progress = ", ".join(f"{step} {done} of {total} epochs" for step, (done, total) in entry.progress.items())
        lines.append(
            {
                "Seed": str(entry.seed),
                "State": "finished" if entry.finished else progress or "waiting",
                metric: format_number(entry.scores.get(metric)),
                "Folder": opening.format(entry.folder, "\n".join(entry.commands)),
            }
        )
    return cells_of(lines)


def section(index: int, entries: list[Entry], order: dict[str, Any], figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The template variables for one column of a table."""
    rows, metric = rows_of(entries), first_metric(entries)
    quantities = quantities_of([entry.course for entry in entries if entry.course is not None])
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
        "references": references(figures, [entry.origin for entry in entries], metric),
        "others": other_scores(rows, names, figures) if names else None,
        "pairs": pair_table(rows, metric) if len(rows) > 2 else None,
        "cost": cost_table(rows, figures),
        "listed": [row for row in rows for _ in row.entries],
        "state": state_table(rows, metric),
        "alphas": [(row, e, trajectories(e)) for row in rows for e in [e for e in row.entries if e.course][:1]],
        "charts": [(panel, chart) for panel in quantities if (chart := curves(rows, panel)) is not None],
        "cells": _cells(rows),
        "eigenvalues": eigenvalues(rows),
        "surfaces": [(r, e, chart) for r in rows for e in r.entries if (chart := surface(e)) is not None],
        "operations": sorted({name for e in entries if e.course for m in e.course.mixing.values() for name in m}),
    }


def build(paths: Sequence[Path], command: str, refresh: int = 0) -> tuple[str, list[str], bool]:
    """Build the page for run folders.

    Args:
        paths: Folders that contain runs.
        command: The command that writes the page. The page shows it.
        refresh: Seconds after which the page reloads itself; 0 for never.

    Returns:
        The page, a message for each run that could not be read, and True if all runs are finished.

    Raises:
        ValueError: The folders contain no readable run.
        OSError: A folder cannot be read.
    """
    entries, problems = load_entries(list(paths))
    figures, orders = load_published(), _table_orders(entries)
    groups: dict[tuple[Path | None, str, str], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: _sort_key(entry, orders)):
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
    environment.filters |= {"picture": _picture, "operation_series": operation_series, "format_number": format_number}
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


def _table_orders(entries: list[Entry]) -> dict[Path | None, dict[str, Any]]:
    """folder of a table -> its scale, its source, and the order of its columns and methods."""
    orders: dict[Path | None, dict[str, Any]] = {}
    for root in {entry.root for entry in entries if entry.root is not None}:
        if (root / "table.yaml").is_file():
            about = read_yaml(root / "table.yaml")
            axes = {axis: list(about["table"][axis]) for axis in ("columns", "methods")}
            orders[root] = {"scale": about["scale"], "source": about["table"].get("source", ""), **axes}
    return orders


def _sort_key(entry: Entry, orders: dict[Path | None, dict[str, Any]]) -> tuple[Any, ...]:
    """The sort key of an entry: position in the file of its table, then name and seed."""
    order = orders.get(entry.root, {"columns": [], "methods": []})
    column, method = (
        order[axis].index(name) if name in order[axis] else len(order[axis])
        for axis, name in (("columns", entry.column), ("methods", entry.method))
    )
    return (entry.root is None, str(entry.root), column, entry.column, method, entry.method, entry.seed)


def references(figures: list[dict[str, Any]], origins: list[dict[str, Any]], metric: str) -> list[tuple[str, str, str]]:
    """(name, figure, note and source) of published references, such as a published cell or the best cell of a table.

    Only references for the spaces and the data sets of the rows are included. References in spaces that this project
    does not implement match every space.
    """
    spaces, datasets = ({origin.get(name) for origin in origins} for name in ("space", "dataset"))
    return [
        (figure["reference"], f"{figure['value']:.2f}", with_note(figure))
        for figure in figures
        if "reference" in figure
        and figure["metric"] == metric
        and (figure["space"] in spaces or figure["space"] not in SPACES)
        and ("dataset" not in figure or figure["dataset"] in datasets)
    ]


def _cells(rows: list[Row]) -> dict[int, list[tuple[Row, Entry]]]:
    """seed -> the entries that have pictures of their cells."""
    seeds = sorted({entry.seed for row in rows for entry in row.entries if entry.pictures})
    return {s: [(row, e) for row in rows for e in row.entries if e.seed == s and e.pictures] for s in seeds}


def _picture(drawing: bytes) -> str:
    """Convert an SVG file to a data URI. Browsers do not run scripts inside images."""
    text = re.sub(r"<!--.*?-->|<title>.*?</title>", "", drawing.decode("utf-8", "replace"), flags=re.DOTALL)
    return f"data:image/svg+xml,{quote(' '.join(text.split()), safe=SAFE)}"
