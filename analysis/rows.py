"""Rows of the tables in a report: a method in a column of a table, its runs, and published figures."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.colors import assign
from analysis.curves import number
from analysis.runs import ACCURACY, Entry
from nasbench201.cells import TITLES

#: shown if there is no published figure
UNKNOWN = "not available"


@dataclass
class Row:
    """A method in a column of a table.

    Attributes:
        series: The method that gives the row its color.
        entries: The search and retraining of each seed.
        runs: The seed, the scores and the figures of each entry.
    """

    method: str
    series: str
    entries: list[Entry]
    runs: pd.DataFrame

    def values(self, name: str) -> pd.Series:
        """seed -> a score or figure. Entries without it are left out."""
        return self.runs.set_index("seed")[name].dropna() if name in self.runs else pd.Series(dtype=float)

    def mean(self, name: str, digits: int = 2) -> str:
        """Format the mean and the standard deviation as in papers: 93.76 ± 0.12."""
        values = self.values(name)
        deviation = f" ± {values.std():.{digits}f}" if len(values) > 1 else ""
        return format_number(values.mean(), digits) + deviation

    @property
    def note(self) -> str:
        return self.entries[0].note

    def published(self, figures: Iterable[dict[str, Any]], metric: str) -> str:
        return published(figures, self.entries[0].origin, metric)


def format_number(value: float | None, digits: int = 2, sign: str = "") -> str:
    """Format a number for a table. A missing number becomes a dash."""
    return "–" if value is None or pd.isna(value) else number(value, f"{sign}z.{digits}f")


def load_published() -> list[dict[str, Any]]:
    """Read the published figures from published_results.json."""
    return json.loads((Path(__file__).parent.parent / "published_results.json").read_text(encoding="utf-8"))


def published(figures: Iterable[dict[str, Any]], origin: dict[str, Any], metric: str) -> str:
    """The published figure for a method, a space and a data set, or "not available"."""
    asked = {name: origin.get(name) for name in ("space", "dataset", "method")}
    if set(origin) <= set(asked):
        for figure in figures:
            if figure["metric"] == metric and all(figure.get(name) == value for name, value in asked.items()):
                deviation = f" ± {figure['deviation']}" if "deviation" in figure else ""
                return f"{figure['value']:.2f}{deviation} ({with_note(figure)})"
    return UNKNOWN


def with_note(figure: dict[str, Any]) -> str:
    """The note, if there is one, and the source of a published figure."""
    return "; ".join(figure[name] for name in ("note", "source") if name in figure)


def rows_of(entries: list[Entry]) -> list[Row]:
    """The rows of a column, one for each method, in the order of the entries."""
    runs = pd.DataFrame([{"method": e.method, "seed": e.seed, **e.scores, **e.figures} for e in entries])
    shades = assign({entry.method: str(entry.origin.get("method")) for entry in entries})
    groups = runs.groupby("method", sort=False)
    return [Row(name, shades[name], [entries[index] for index in own.index], own) for name, own in groups]


def first_metric(entries: list[Entry]) -> str:
    """The main score of a column. Among several scores it is the one on the data set of the search."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.scores))
    searched = TITLES.get(str(entries[0].origin.get("dataset", "")).replace("-", "_"), "CIFAR-10")
    asked = (ACCURACY, f"{searched} test", f"{searched} test, 12 epochs")
    return next((name for name in asked if name in names), names[0] if names else ACCURACY)
