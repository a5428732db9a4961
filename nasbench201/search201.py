"""The search of search/bilevel.py in NAS-Bench-201: its supernet, its cells and its accuracy table."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from genotypes import AnyCell
from lib import datasets
from lib.cli import InputError, blaming
from lib.datasets import DataSet, ImageSet
from model_search import AnySupernet
from nasbench201.cells import EDGES, Cell201, make_cell
from nasbench201.networks import Supernet
from nasbench201.settings import SearchSettings
from search.bilevel import Search


class Search201(Search):
    """A search in NAS-Bench-201."""

    settings: SearchSettings

    def __init__(self, settings: SearchSettings, dataset: DataSet, device: torch.device) -> None:
        self.table, self.table_dataset = None, table_dataset(settings.table_dataset, settings.dataset)
        if settings.table:
            from nasbench201.table import SPACE, open_table

            with blaming("--table"):
                self.table = open_table(settings.table)
                if len(self.table) < SPACE:
                    raise ValueError(f"{settings.table} has {len(self.table):,} cells; expected all {SPACE:,}")
                self.table.column(self.table_dataset, "test", 200)
        super().__init__(settings, dataset, device)

    def make_supernet(self) -> AnySupernet:
        """The supernet of the settings, for the data."""
        settings, dataset = self.settings, self.dataset
        if settings.selection == "threshold_edge":
            raise InputError(
                "--selection: threshold_edge is for edges of several operations, and an edge of NAS-Bench-201 has one; "
                "expected threshold_sparse"
            )
        return Supernet(
            settings.init_channels,
            settings.cells_per_stage,
            len(dataset.classes),
            dataset.in_channels,
            settings.auxiliary_skip,
        )

    def split(self) -> tuple[ImageSet, ImageSet]:
        """The halves that the benchmark lists for CIFAR-10, where its file is given; else random ones."""
        if not self.settings.halves:
            return super().split()
        if self.settings.dataset != "cifar10":
            raise InputError(f"--halves: they are CIFAR-10's, and the data set is {self.settings.dataset}")
        with blaming("--halves"):
            return datasets.benchmark_halves(self.dataset.train, Path(self.settings.halves))

    def derive(self, weights: Mapping[str, np.ndarray], rule: str) -> Cell201:
        """The strongest operation of every edge, `none` too; by a threshold, `none` where that is not reached."""
        (table,) = weights.values()
        names = np.array(self.space.cells["cell"])
        strongest = table.argmax(axis=1)
        operations = names[np.arange(len(names)), strongest]
        if rule.startswith("threshold"):
            operations = np.where(table.max(axis=1) >= self.settings.threshold, operations, "none")
        return make_cell(operations.tolist())

    def assemble(self, kept: Mapping[str, Mapping[int, str]]) -> Cell201:
        """The cell of the operations of its edges."""
        return make_cell([kept["cell"][edge] for edge in range(len(EDGES))])

    def missing_cell(self, genotype: AnyCell) -> str | None:
        """None: the table has every cell, those without a path from input to output too."""
        return None

    def measure(self, genotype: AnyCell) -> dict[str, float | None]:
        """What the table says of the cell: accuracies in percent, rank by that on the test images, regret in points.

        Accuracies are those after 200 epochs; a name that ends in _12 is that after 12, where the table has no other.
        None is not known.
        """
        if self.table is None:
            return {}
        assert isinstance(genotype, Cell201)
        table, dataset = self.table, self.table_dataset
        index = table.index(genotype)
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


def _known(accuracy: float) -> float | None:
    return None if math.isnan(accuracy) else accuracy


def table_dataset(asked: str, searched: str) -> str:
    """The data set whose accuracies are looked up: the one asked for, or with "auto" that of the search."""
    if asked != "auto":
        return asked
    return {"cifar100": "cifar100", "imagenet16-120": "imagenet16_120"}.get(searched, "cifar10")
