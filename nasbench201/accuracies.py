"""The accuracy table of NAS-Bench-201: accuracies, ranks and regrets of its cells.

`table.py` is its command line and describes the sources of its figures. Nothing here imports torch.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.files import check_regular
from nasbench201.cells import EDGES, OPERATIONS, TITLES, Cell201, make_cell, operations_of
from nasbench201.sources import COSTS, DATASETS, EPOCHS, SEED, SPLITS, column_name

#: the number of cells of the space
SPACE = len(OPERATIONS) ** len(EDGES)
#: the table that comes with the project
SHIPPED = Path(__file__).with_name("accuracies.npz")


@dataclass(eq=False)
class Table:
    """The accuracies of N cells, in the order of the first source.

    The project's own table has all 15,625 cells, in the benchmark's order.
    """

    cells: np.ndarray  # (N, 6) uint8: the operation of each edge, an index into OPERATIONS
    #: cifar10_test_200 and so on, (N,) in percent; cifar10_params, cifar10_madds and so on, in millions; NaN if unknown
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.cells)

    def index(self, cell: Cell201) -> int:
        """The index of a cell. Raises a ValueError if the table does not have it."""
        found = np.flatnonzero((self.cells == operations_of([cell])).all(axis=1))
        if not len(found):
            raise ValueError(f"{cell.arch} is not among the {len(self):,} cells of the table")
        return int(found[0])

    def cell(self, index: int) -> Cell201:
        """The cell at an index. Raises a ValueError if there is none."""
        if not 0 <= index < len(self):
            raise ValueError(f"index {index}, expected 0 to {len(self) - 1}")
        return make_cell([OPERATIONS[operation] for operation in self.cells[index]])

    def available(self) -> list[tuple[str, str, int]]:
        """The data sets, splits and epochs of the table's accuracies."""
        return [(d, s, e) for e in EPOCHS for d in DATASETS for s in SPLITS if column_name(d, s, e) in self.columns]

    def column(self, dataset: str, split: str, epochs: int) -> np.ndarray:
        """The accuracies of all cells in percent, (N,). Raises a ValueError if the table does not have them."""
        name = column_name(dataset, split, epochs)
        if name not in self.columns:
            has = ", ".join(column_name(*asked) for asked in self.available())
            raise ValueError(f"no accuracies for {dataset}, {split}, after {epochs} epochs; the table has {has}")
        return self.columns[name]

    def accuracy(self, index: int, dataset: str, split: str, epochs: int = 200) -> float:
        """The accuracy of a cell in percent, NaN if unknown."""
        return float(self.column(dataset, split, epochs)[index])

    def seeds(self, index: int, dataset: str, split: str, epochs: int = 200) -> dict[int, float]:
        """The accuracies of single trainings in percent, by seed. Only a table of the official file has them."""
        prefix = column_name(dataset, split, epochs) + SEED
        names = {int(name.removeprefix(prefix)): name for name in self.columns if name.startswith(prefix)}
        found = {seed: float(self.columns[name][index]) for seed, name in sorted(names.items())}
        return {seed: accuracy for seed, accuracy in found.items() if not np.isnan(accuracy)}

    def rank(self, index: int, dataset: str, split: str = "test", epochs: int = 200) -> int:
        """The rank of a cell, 1 for the best. Cells with equal accuracies share the best of their ranks.

        Raises:
            ValueError: The accuracy of the cell is unknown, or the table does not have the accuracies.
        """
        accuracy = self.accuracy(index, dataset, split, epochs)
        if np.isnan(accuracy):
            raise ValueError(f"the accuracy of cell {index} on {dataset}, {split}, after {epochs} epochs is unknown")
        return 1 + int((self.column(dataset, split, epochs) > accuracy).sum())

    def regret(self, index: int, dataset: str, split: str = "test", epochs: int = 200) -> float:
        """The regret of a cell: its percentage points below the best cell, NaN if unknown."""
        return float(np.nanmax(self.column(dataset, split, epochs))) - self.accuracy(index, dataset, split, epochs)

    def isomorphic(self, index: int) -> list[int]:
        """The indices of the cells with the same canonical form, including `index`. Takes a quarter of a second."""
        form = self.cell(index).canonical()
        return [other for other in range(len(self)) if self.cell(other).canonical() == form]


def open_table(path: str | Path = SHIPPED) -> Table:
    """Read a table: the one that comes with the project, or one that `build` wrote.

    Raises:
        ValueError: The file is damaged or not a table.
        OSError: The file cannot be read.
    """
    check_regular(Path(path))
    try:
        with Path(path).open("rb") as file, zipfile.ZipFile(file):
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            arrays = {name: archive[name] for name in archive if name != "about"}
        table = Table(arrays.pop("cells"), {name: _as_float(name, values) for name, values in arrays.items()})
        if not _is_whole(table):
            raise ValueError("its arrays are not those of a table")
        return table
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        again = "expected a file that this version's `nasbench201/table.py build` has made"
        if path == SHIPPED:
            again = "restore it with `git checkout nasbench201/accuracies.npz`"
        raise ValueError(f"{path} is damaged or not a table; {again}") from error


def _is_whole(table: Table) -> bool:
    """True if the arrays are those of a table: an operation for each edge of each cell, and accuracies."""
    cells = table.cells
    return (
        cells.ndim == 2
        and cells.shape[1] == len(EDGES)
        and cells.dtype == np.uint8
        and bool((cells < len(OPERATIONS)).all())
        and all(values.shape == (len(cells),) for values in table.columns.values())
        and bool(table.available())
    )


def _as_float(name: str, values: np.ndarray) -> np.ndarray:
    """Convert a column to float. Integer columns count fractions of a percent, parameters or multiply-adds."""
    if values.dtype.kind == "f":
        return values
    return values / (1e6 if name.endswith(COSTS) else parts_of_percent(name))


def parts_of_percent(name: str) -> int:
    """The units of an integer column in one percent. The highest accuracy fits into 16 bits."""
    return 900 if name.startswith("imagenet16_120") else 600


def describe(dataset: str, split: str, epochs: int) -> str:
    """A heading such as "CIFAR-10 test accuracy after 200 epochs"."""
    title = TITLES.get(dataset, "CIFAR-10, trained on half of the images,")
    return f"{title} {split} accuracy after {epochs} epochs"
