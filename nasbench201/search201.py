"""The search in NAS-Bench-201: its supernet, its cells and its accuracy table."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from genotypes import AnyCell
from lib.cli import blaming
from lib.datasets import DataSet
from model_search import AnySupernet
from nasbench201.accuracies import SHIPPED, SPACE, open_table
from nasbench201.cells import TITLES, Cell201, make_cell, table_dataset
from nasbench201.networks import Supernet201
from nasbench201.settings import SearchSettings201
from search.state import SearchState
from selection import Chosen


class SearchState201(SearchState):
    """The state of a search in NAS-Bench-201."""

    settings: SearchSettings201

    def __init__(self, settings: SearchSettings201, dataset: DataSet, device: torch.device) -> None:
        self.table_dataset = table_dataset(settings.table_dataset, settings.dataset)
        with blaming("--table"):
            self.table = open_table(settings.table or SHIPPED)
            if len(self.table) < SPACE:
                raise ValueError(f"{settings.table} has {len(self.table):,} cells; expected all {SPACE:,}")
            self.table.column(self.table_dataset, "test", 200)
        super().__init__(settings, dataset, device)

    def make_supernet(self) -> AnySupernet:
        """Make the supernet for the settings and the data."""
        settings, dataset = self.settings, self.dataset
        sizes = (settings.init_channels, settings.cells_per_stage, len(dataset.classes), dataset.in_channels)
        return Supernet201(*sizes, settings.auxiliary_skip, self.edges_class)

    def assemble(self, chosen: Chosen, pairs: bool) -> AnyCell:
        """Make the cell with the chosen operations. Edges without one have `none`."""
        names = {(edge.source, edge.target): edge.operation for edge in chosen["cell"]}
        return make_cell([names.get(edge, "none") for edge in self.space.edges])

    def look_up(self, cell: AnyCell) -> dict[str, float | None]:
        """The table's accuracies of the cell in percent, its rank by test accuracy, and its regret in points.

        Accuracies are those after 200 epochs. If the table has none, they are those after 12 epochs, and their names
        end in _12. Unknown figures are None.
        """
        assert isinstance(cell, Cell201)
        table, dataset = self.table, self.table_dataset
        index = table.index(cell)
        row = {}
        for split in ("valid", "test"):
            for epochs, suffix in ((200, ""), (12, "_12")):
                if f"{dataset}_{split}_{epochs}" in table.columns:
                    row[f"table_{split}_accuracy{suffix}"] = _known(table.accuracy(index, dataset, split, epochs))
                    break
        known = row["table_test_accuracy"] is not None
        row["table_rank"] = table.rank(index, dataset) if known else None
        row["table_regret"] = table.regret(index, dataset) if known else None
        return row

    def describe(self, row: Mapping[str, Any]) -> str:
        """Describe the figures of `look_up`; empty if they are unknown."""
        if row["table_rank"] is None:
            return ""
        return (
            f"{TITLES[self.table_dataset]} accuracy in NAS-Bench-201 {row['table_test_accuracy']:.2f} %, "
            f"rank {row['table_rank']:,}, regret {row['table_regret']:.2f}"
        )


def _known(accuracy: float) -> float | None:
    return None if math.isnan(accuracy) else accuracy
