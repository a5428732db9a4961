"""The accuracies of all cells of NAS-Bench-201, from its official file or CSV files to one file that opens at once.

python nasbench201/table.py build NAS-Bench-201-v1_1-096897.pth table.safetensors
python nasbench201/table.py build epochs200.csv.gz epochs12.csv.gz table.safetensors --epochs 200 12
python nasbench201/table.py query table.safetensors 1462
python nasbench201/table.py best table.safetensors --dataset cifar100 --count 5
python nasbench201/table.py rank table.safetensors runs/nasbench201-... 1835
python nasbench201/table.py plot table.safetensors table.png runs/nasbench201-...

An accuracy is in percent, after the last epoch, the mean over the seeds, and belongs to a data set, a split and a
training budget of 12 or 200 epochs. What the official file calls x, trained or tested on, is here:

    cifar10          train, test: train and ori-test of cifar10, trained on all 50,000 images (where the file has no
                     such runs, as v1_0 for 12 epochs: of cifar10-valid); valid: x-valid of cifar10-valid
    cifar10-valid    train, valid, test: train, x-valid and ori-test of cifar10-valid, trained on half the images
    cifar100         train, valid, test: train, x-valid and x-test
    imagenet16_120   train, valid, test: train, x-valid and x-test of ImageNet16-120

The file is safetensors: one uint8 for each edge of a cell, in the benchmark's order of cells, a float32 array for each
accuracy, where NaN is not known, and in its header where they come from and a checksum. Reading it takes no torch.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from nasbench201.cells import EDGES, OPERATIONS, Cell201, load_cell, make_cell, parse_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROG = "table.py"
FORMAT = "nasbench201-table-1"

Dataset = Literal["cifar10", "cifar10-valid", "cifar100", "imagenet16_120"]
Split = Literal["train", "valid", "test"]
Epochs = Literal[12, 200]
DATASETS, SPLITS, EPOCHS = get_args(Dataset), get_args(Split), get_args(Epochs)

#: the space's number of cells
SPACE = len(OPERATIONS) ** len(EDGES)
SKIP = OPERATIONS.index("skip_connect")
ALL_SKIP = make_cell(["skip_connect"] * len(EDGES))
#: a cell's operations times these, summed, is a number of its own, 0 to SPACE - 1
_PLACES = len(OPERATIONS) ** np.arange(len(EDGES))[::-1]

#: the names of the data sets in the official file
_OFFICIAL = {
    "cifar10": "cifar10",
    "cifar10-valid": "cifar10-valid",
    "cifar100": "cifar100",
    "imagenet16_120": "ImageNet16-120",
}
#: cells that the package takes at a time: it copies what it is given
_CHUNK = 250


def column_name(dataset: str, split: str, epochs: int) -> str:
    """As "cifar10_test_200"."""
    return f"{dataset}_{split}_{epochs}"


@dataclass(eq=False)
class Table:
    """The accuracies of N cells, N = 15,625 unless its source had fewer."""

    cells: np.ndarray  # (N, 6) uint8: the operation of each edge, an index into OPERATIONS
    columns: dict[str, np.ndarray]  # "cifar10_test_200" and so on -> (N,) float32, in percent; NaN: not known
    costs: dict[str, np.ndarray]  # "cifar10_params", "cifar10_madds" and so on -> (N,) float32, in millions
    about: dict[str, Any]  # "sources", the "origins" of the columns, the "command" that made the table

    def __len__(self) -> int:
        return len(self.cells)

    def index(self, cell: Cell201) -> int:
        """The cell's index in the benchmark's order.

        Raises:
            ValueError: the table has no such cell.
        """
        index = int(self._index_of_code[_codes(_operations([cell]))[0]])
        if index < 0:
            raise ValueError(f"{cell.arch} is not among the {len(self):,} cells of the table")
        return index

    def cell(self, index: int) -> Cell201:
        """The cell of an index.

        Raises:
            ValueError: there is none.
        """
        return make_cell([OPERATIONS[operation] for operation in self.cells[self._checked(index)]])

    def column(self, dataset: str, split: str, epochs: int) -> np.ndarray:
        """The accuracies of all cells, (N,) float32, in percent; NaN where not known.

        Raises:
            ValueError: the table has no such accuracies; the message names those that it has.
        """
        try:
            return self.columns[column_name(dataset, split, epochs)]
        except KeyError:
            has = "; ".join(
                f"after {budget} epochs " + ", ".join(f"{d} {s}" for d, s, e in self.available() if e == budget)
                for budget in sorted({e for _, _, e in self.available()})
            )
            message = f"no accuracies for {dataset}, {split}, after {epochs} epochs; the table has {has}"
            raise ValueError(message) from None

    def available(self) -> list[tuple[str, str, int]]:
        """The data sets, splits and epochs that the table has accuracies for."""
        return [(d, s, e) for e in EPOCHS for d in DATASETS for s in SPLITS if column_name(d, s, e) in self.columns]

    def accuracy(self, index: int, dataset: str, split: str, epochs: int = 200) -> float:
        """In percent, NaN where not known.

        Raises:
            ValueError: there is no such cell, or the table has no such accuracies.
        """
        return float(self.column(dataset, split, epochs)[self._checked(index)])

    def rank(self, index: int, dataset: str, split: str = "test", epochs: int = 200) -> int:
        """1 for the best cell; cells that are equal share the best of their ranks.

        Raises:
            ValueError: as `accuracy`, or the cell's accuracy is not known.
        """
        accuracy = self.accuracy(index, dataset, split, epochs)
        if np.isnan(accuracy):
            raise ValueError(f"the accuracy of cell {index} on {dataset}, {split}, after {epochs} epochs is not known")
        return 1 + int((self.column(dataset, split, epochs) > accuracy).sum())

    def regret(self, index: int, dataset: str, split: str = "test", epochs: int = 200) -> float:
        """Percentage points below the best cell; NaN where not known.

        Raises:
            ValueError: as `accuracy`.
        """
        return float(np.nanmax(self.column(dataset, split, epochs))) - self.accuracy(index, dataset, split, epochs)

    def isomorphic(self, index: int) -> list[int]:
        """The indices of the cells with the same canonical form, `index` among them; a quarter of a second, once.

        Raises:
            ValueError: there is no such cell.
        """
        form = self._canonical[self._checked(index)]
        return [other for other, canonical in enumerate(self._canonical) if canonical == form]

    @cached_property
    def _canonical(self) -> list[str]:
        return [self.cell(index).canonical() for index in range(len(self))]

    @cached_property
    def _index_of_code(self) -> np.ndarray:
        """(15625,): the index of the cell of each code, -1 for none."""
        indices = np.full(SPACE, -1)
        indices[_codes(self.cells)] = np.arange(len(self))
        return indices

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise ValueError(f"index {index}, expected 0 to {len(self) - 1}")
        return index


def open_table(path: str | Path) -> Table:
    """Read a table that `build` has made. Milliseconds.

    Raises:
        ValueError: it is damaged, or no such table.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = Path(path).read_bytes()
    again = f"build it again with `python nasbench201/{PROG} build`"
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no table at all ({error}); {again}") from error
    # a safetensors file begins with the length of its header in 8 bytes
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is no table of this format, {FORMAT}; {again}")
    if header.get("sha256") != _checksum(arrays, header.get("about", "")):
        raise ValueError(f"{path} is damaged: its checksum does not match; {again}")
    about = json.loads(header["about"])
    if about["operations"] != list(OPERATIONS):
        raise ValueError(f"{path} has the operations {', '.join(about['operations'])} in this order; {again}")
    cells = arrays.pop("cells")
    columns = {name: array for name, array in arrays.items() if name in about["origins"]}
    costs = {name: array for name, array in arrays.items() if name not in columns}
    return Table(cells, columns, costs, about)


def _checksum(arrays: dict[str, np.ndarray], about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _operations(cells: Iterable[Cell201]) -> np.ndarray:
    """(N, 6) uint8."""
    return np.array([[OPERATIONS.index(name) for name in cell.operations] for cell in cells], dtype=np.uint8)


def _codes(operations: np.ndarray) -> np.ndarray:
    """(N,): a number of its own for each row of (N, 6) operations."""
    return operations @ _PLACES


# Building


class Source(NamedTuple):
    """What one file gives to a table, as in `Table`."""

    cells: np.ndarray
    columns: dict[str, np.ndarray]
    costs: dict[str, np.ndarray]
    origins: dict[str, str]  # column -> what it is in the file


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    epochs: Sequence[int] | None = None,
    trust: bool = False,
    command: str = "",
) -> Table:
    """Make the file of a table from one or more sources, which must have the same cells.

    The order of the first source's cells is the table's: it should be the benchmark's. The official file takes many
    minutes and up to 28 GB of memory, once. A .csv or .csv.gz has a column "arch" and columns such as "cifar10_test", in
    percent.

    Args:
        epochs: the training budget of each CSV source, 12 or 200; 200 for all if None.
        trust: read the official file by full unpickling, which runs any code that is in it.
        command: the command line, to be kept in the file.

    Raises:
        ValueError: a source is not as it should be, or `out` exists.
        OSError: a source cannot be read, or `out` not written.
    """
    out, paths = Path(out), [Path(source) for source in sources]
    _check_new(out)
    for path in paths:
        if not path.name.endswith((".pth", ".csv", ".csv.gz")):
            raise ValueError(f"{path}: expected a .pth, .csv or .csv.gz")
    tables = [path for path in paths if path.suffix != ".pth"]
    budgets = [200] * len(tables) if epochs is None else list(epochs)
    if len(budgets) != len(tables):
        raise ValueError(f"--epochs: {len(budgets)} given for {len(tables)} CSV files, expected one for each")
    if not set(budgets) <= set(EPOCHS):
        given = " ".join(map(str, budgets))
        raise ValueError(f"--epochs: {given}, expected 12 or 200 for each CSV file")

    kept, columns, costs, origins, cells = [], {}, {}, {}, None
    for path in paths:
        kept.append({"file": path.name, "sha256": _sha256(path)})
        source = _read_official(path, trust) if path.suffix == ".pth" else _read_csv(path, budgets[tables.index(path)])
        cells = source.cells if cells is None else cells
        order = _order(cells, source.cells, paths[0], path)
        for given, gathered in ((source.columns, columns), (source.costs, costs)):
            for name, values in given.items():
                if name in gathered:
                    raise ValueError(f"{path}: gives {name} once more; name each source and its --epochs once")
                gathered[name] = values[order]
        origins |= {name: f"{path.name}: {origin}" for name, origin in source.origins.items()}

    about = {"operations": OPERATIONS, "sources": kept, "origins": origins, "command": command}
    _write_table(out, {"cells": cells, **columns, **costs}, json.dumps(about))
    return Table(cells, columns, costs, about)


def _write_table(out: Path, arrays: dict[str, np.ndarray], about: str) -> None:
    from safetensors.numpy import save

    _write_new(out, save(arrays, {"format": FORMAT, "about": about, "sha256": _checksum(arrays, about)}))


def _order(cells: np.ndarray, others: np.ndarray, path: Path, other_path: Path) -> np.ndarray:
    """Where the cells of one source stand in another, (N,)."""
    codes, other_codes = _codes(cells), _codes(others)
    for these, those, has, lacks in (
        (cells, other_codes, path, other_path),
        (others, codes, other_path, path),
    ):
        alone = ~np.isin(_codes(these), those)
        if alone.any():
            cell = make_cell([OPERATIONS[operation] for operation in these[alone.argmax()]])
            raise ValueError(f"{lacks}: lacks {int(alone.sum())} cells that {has} has, the first of them {cell.arch}")
    order = np.argsort(other_codes)
    return order[np.searchsorted(other_codes, codes, sorter=order)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


def _check_new(path: Path) -> None:
    if path.exists():
        raise ValueError(f"{path} exists; name a new file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def _write_new(path: Path, content: bytes) -> None:
    """Write a new file whole or not at all: under another name, synced, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _check_new(path)  # once more: a build takes minutes
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_csv(path: Path, epochs: int) -> Source:
    """Read a CSV file.

    Raises:
        ValueError: it is not as `build` expects it; the message gives the line.
        OSError: it cannot be read.
    """
    import csv
    import gzip
    import zlib

    known = {f"{dataset}_{split}": column_name(dataset, split, epochs) for dataset in DATASETS for split in SPLITS}
    lines: dict[Cell201, int] = {}
    rows: list[list[float]] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            accuracies = [name for name in header if name != "arch"]
            if "arch" not in header:
                raise ValueError(f"no column arch, but {', '.join(header) or 'nothing'}")
            unknown = [name for name in accuracies if name not in known]
            if unknown or not accuracies or len(set(header)) < len(header):
                found = f"column {unknown[0]!r}" if unknown else f"columns {', '.join(header)}"
                raise ValueError(f"{found}, expected arch and, each once, accuracies from {', '.join(known)}")
            for row in reader:
                if not row:
                    continue
                with_names = dict(zip(header, row, strict=False))
                try:
                    if len(row) != len(header):
                        raise ValueError(f"{len(row)} fields, expected {len(header)}")
                    cell = parse_cell(with_names["arch"])
                    if cell in lines:
                        raise ValueError(f"{cell.arch} once more, after line {lines[cell]}")
                    rows.append([_percent(name, with_names[name]) for name in accuracies])
                except ValueError as error:
                    raise ValueError(f"line {reader.line_num}: {error}") from error
                lines[cell] = reader.line_num
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no cells")
    values = np.array(rows, dtype=np.float32).T
    columns = {known[name]: values[i] for i, name in enumerate(accuracies)}
    return Source(_operations(lines), columns, {}, {known[name]: name for name in accuracies})


def _percent(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 100:
        raise ValueError(f"{name} {text!r}, expected a number from 0 to 100")
    return value


def _read_official(path: Path, trust: bool) -> Source:
    """Read the official .pth through the package nas-bench-201.

    The package copies all that it is given. Given some cells at a time, which are dropped then, it does not double the
    memory that the file takes.

    Raises:
        ValueError: it is not what the benchmark distributes, or not to be read without `trust`.
        OSError: it cannot be read.
    """
    from nas_201_api import NASBench201API
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # gone when done and only for a terminal: an error is one line on stderr
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        reading = progress.add_task(f"reading {path.name}", total=None)
        content = _load_official(path, trust)
        progress.remove_task(reading)
        try:
            archs, infos = list(content["meta_archs"]), content["arch2infos"]
            cells = _operations(parse_cell(arch) for arch in archs)
            count = len(cells)
            if len(np.unique(_codes(cells))) < count or not count:
                raise ValueError(f"{count} cells, some more than once")
            missing = sorted(set(range(count)) - set(infos))
            if missing:
                raise ValueError(f"no results for {len(missing)} of {count} cells, the first of them {missing[0]}")
            columns, costs = _empty(count)
            for start in progress.track(range(0, count, _CHUNK), description="averaging over the seeds"):
                part = {index: infos.pop(index) for index in range(start, min(start + _CHUNK, count))}
                api = NASBench201API(
                    {"meta_archs": archs, "arch2infos": part, "evaluated_indexes": list(part)}, verbose=False
                )
                for index in part:
                    _average(api, index, columns, costs)
        # the package checks with assertions and looks up what it expects
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
            detail = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{path}: not as NAS-Bench-201 stores its results ({detail})") from error

    origins = {}
    for dataset, split, epochs in [(d, s, e) for d in DATASETS for s in SPLITS for e in EPOCHS]:
        trained_on = "cifar10-valid" if (dataset, split) == ("cifar10", "valid") else dataset
        if dataset == "cifar10" and np.isnan(columns[column_name(dataset, split, epochs)]).all():
            trained_on = "cifar10-valid"
        name = column_name(dataset, split, epochs)
        columns[name] = columns[column_name(trained_on, split, epochs)]
        test = "ori-test" if dataset in ("cifar10", "cifar10-valid") else "x-test"
        origin = {"train": "train", "valid": "x-valid", "test": test}[split]
        origins[name] = f"{origin} of {_OFFICIAL[trained_on]}"
        known = columns[name][~np.isnan(columns[name])]
        if not ((known >= 0) & (known <= 100)).all():
            raise ValueError(f"{path}: {origins[name]}: expected accuracies from 0 to 100")
    columns = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    costs = {name: values for name, values in costs.items() if not np.isnan(values).all()}
    if not columns:
        raise ValueError(f"{path}: has no accuracies of {', '.join(_OFFICIAL.values())}")
    return Source(cells, columns, costs, {name: origins[name] for name in columns})


def _empty(count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All columns and costs of a table, not known."""

    def unknown(names: Iterable[str]) -> dict[str, np.ndarray]:
        return {name: np.full(count, np.nan, dtype=np.float32) for name in names}

    return (
        unknown(column_name(d, s, e) for d in DATASETS for s in SPLITS for e in EPOCHS),
        unknown(f"{d}_{cost}" for d in DATASETS for cost in ("params", "madds")),
    )


def _average(api: Any, index: int, columns: dict[str, np.ndarray], costs: dict[str, np.ndarray]) -> None:
    """Enter what the package says of a cell."""
    for epochs in EPOCHS:
        results = api.arch2infos_dict[index][str(epochs)]
        for dataset, official in _OFFICIAL.items():
            if official not in results.get_dataset_names():
                continue
            info = api.get_more_info(index, official, hp=str(epochs), is_random=False)
            for split in SPLITS:
                columns[column_name(dataset, split, epochs)][index] = info.get(f"{split}-accuracy", np.nan)
            cost = results.get_compute_costs(official)
            costs[f"{dataset}_params"][index], costs[f"{dataset}_madds"][index] = cost["params"], cost["flops"]


def _load_official(path: Path, trust: bool) -> dict[str, Any]:
    """The official file as the dict it is.

    torch reads no more than plain values and those of numpy: the file comes from the web, and full unpickling runs any
    code that is in it.
    """
    import pickle
    import re
    import struct

    import torch

    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32")]
    scalar = np.float64(0).__reduce__()[0]
    # numpy renamed the module in version 2
    harmless = [np.dtype, *dtypes, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]
    if trust:
        print(
            f"warning: --trust: {path} is read by full unpickling, which runs any code that is in the file",
            file=sys.stderr,
        )
    try:
        with torch.serialization.safe_globals(harmless):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, struct.error, LookupError, TypeError) as error:
        refused = re.search(r"(?:GLOBAL|unrecognized function) (\S+)", str(error))
        if refused:
            raise ValueError(
                f"{path}: holds {refused[1]}, which torch does not read safely; if you trust whoever made the file, "
                "--trust reads it by full unpickling, which runs any code in it"
            ) from error
        raise ValueError(f"{path}: cut short, or no file of torch; expected the official NAS-Bench-201 .pth") from error
    except (AttributeError, ImportError) as error:
        raise ValueError(f"{path}: needs a module that is not here: {error}") from error
    if not isinstance(content, dict) or not {"meta_archs", "arch2infos", "evaluated_indexes"} <= set(content):
        raise ValueError(f"{path}: no meta_archs, arch2infos and evaluated_indexes; expected the official file")
    return content


# The command line


class Row(NamedTuple):
    """A cell among the others."""

    rank: int | None
    of: int  # cells of known accuracy
    index: int
    accuracy: float | None
    regret: float | None
    arch: str


def _row(table: Table, index: int, asked: tuple[str, str, int]) -> Row:
    """Accuracy and regret to 4 digits, as the sources give them; None where not known."""
    accuracy = table.accuracy(index, *asked)
    known = not np.isnan(accuracy)
    return Row(
        table.rank(index, *asked) if known else None,
        int((~np.isnan(table.column(*asked))).sum()),
        index,
        round(accuracy, 4) if known else None,
        round(table.regret(index, *asked), 4) if known else None,
        table.cell(index).arch,
    )


def _text(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _print_aligned(rows: list[list[str]]) -> None:
    """The first row is the header; all but the last column to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*cells, row[-1]]))


def _print_rows(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps([row._asdict() for row in rows]))
        return
    header = ["rank", f"of {rows[0].of:,}: index", "accuracy [%]", "regret [points]", "cell"]
    body = [[_text(r.rank, 0), str(r.index), _text(r.accuracy), _text(r.regret), r.arch] for r in rows]
    _print_aligned([header, *body])


def find(table: Table, spec: str) -> int:
    """The index of a cell: an index, the benchmark's string, a file with one or the folder of a finished run.

    Raises:
        ValueError: it is none of these, or not in the table.
        OSError: the file cannot be read.
    """
    if spec.isdecimal():
        table.cell(int(spec))
        return int(spec)
    return table.index(load_cell(spec))


def query(table: Table, index: int) -> dict[str, Any]:
    """All that the table says of a cell, for JSON; None where not known."""
    twins = table.isomorphic(index)
    accuracies = []
    for dataset, split, epochs in table.available():
        row = _row(table, index, (dataset, split, epochs))
        same = table.column(dataset, split, epochs)[twins]
        spread = None if np.isnan(same).all() else round(float(np.nanmax(same) - np.nanmin(same)), 4)
        accuracies.append(
            {
                "dataset": dataset,
                "split": split,
                "epochs": epochs,
                **{name: getattr(row, name) for name in ("accuracy", "rank", "of", "regret")},
                "isomorphic_spread": spread,
            }
        )
    costs = {name: float(values[index]) for name, values in table.costs.items()}
    return {
        "index": index,
        "of": len(table),
        "arch": table.cell(index).arch,
        "costs": {name: None if np.isnan(cost) else round(cost, 4) for name, cost in costs.items()},
        "isomorphic": twins,
        "accuracies": accuracies,
    }


def _print_query(found: dict[str, Any]) -> None:
    print(f"cell {found['index']} of {found['of']:,}: {found['arch']}")
    for dataset in DATASETS:
        cost = [found["costs"].get(f"{dataset}_{kind}") for kind in ("params", "madds")]
        if None not in cost:
            print(f"{dataset}: {cost[0]:.3f} M parameters, {cost[1]:.2f} M multiply-adds")
    twins = found["isomorphic"]
    listed = ", ".join(map(str, twins[:12])) + (f" and {len(twins) - 12} more" if len(twins) > 12 else "")
    print(f"isomorphic cells: {len(twins)}, {listed}" if len(twins) > 1 else "isomorphic cells: no other")
    print()
    header = ["data set", "split", "epochs", "accuracy [%]", "rank", "regret [points]", "spread of isomorphic [points]"]
    rows = [
        [
            *(row["dataset"], row["split"], str(row["epochs"]), _text(row["accuracy"]), _text(row["rank"], 0)),
            *(_text(row["regret"]), _text(row["isomorphic_spread"]).rjust(len(header[-1]))),
        ]
        for row in found["accuracies"]
    ]
    _print_aligned([header, *rows])


#: the marks of a plot: the best cell, the cell of skip connections only, then the given cells
_BEST_COLOR, _SKIP_COLOR = "#d55e00", "#000000"
_GIVEN_COLORS = ("#c2185b", "#007f5c", "#7b4ea3", "#9c6b00", "#3a5a78")
_GIVEN_MARKERS = ("D", "^", "v", "P", "X", "h")


def figure(table: Table, asked: tuple[str, str, int], given: Sequence[int] = ()) -> "Figure":
    """All cells by their ranks and by their skip connections; the best, the one of skips only and the given marked.

    Raises:
        ValueError: the table has no such accuracies, or a given cell's is not known.
    """
    import matplotlib
    from matplotlib.figure import Figure

    accuracies = table.column(*asked)
    known = np.flatnonzero(~np.isnan(accuracies))
    skips = (table.cells == SKIP).sum(axis=1)
    dataset, split, epochs = asked
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(f"NAS-Bench-201 on {dataset}, {split}, after {epochs} epochs: {len(known):,} cells", fontsize=14)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.1))
    for axes, title in ((left, "Accuracy [%] by rank"), (right, "Accuracy [%] by number of skip connections")):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)

    left.plot(np.arange(1, len(known) + 1), np.sort(accuracies[known])[::-1], color="#0064a8", linewidth=2)
    # the cells that searches find lie close together at the top
    left.set_xscale("log")
    left.set_xlabel("rank")
    left.xaxis.set_major_formatter("{x:,.0f}")

    # where a cell stands beside the others with as many skips is chance, the same in each picture
    shift = np.random.default_rng(0).uniform(-0.34, 0.34, len(table))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(EDGES) + 1))
    for count in range(len(EDGES) + 1):
        group = known[skips[known] == count]
        if len(group):
            shift[group] *= len(group) > 1
            median = np.median(accuracies[group])
            right.plot([count - 0.4, count + 0.4], [median, median], color="black", linewidth=2.2)
    right.scatter((skips + shift)[known], accuracies[known], c=shades[skips[known]], s=5, alpha=0.35, linewidths=0)
    right.plot([], [], color="black", linewidth=2.2, label="median")
    right.set_xticks(range(len(EDGES) + 1))
    right.set_xlim(-0.6, len(EDGES) + 0.6)
    right.set_xlabel("skip connections in the cell, of 6")

    marks = [("best", int(np.nanargmax(accuracies)), "*", _BEST_COLOR, 190)]
    code = _codes(_operations([ALL_SKIP]))[0]
    all_skip = int(table._index_of_code[code])
    if all_skip in known:
        marks.append(("skip connections only", all_skip, "s", _SKIP_COLOR, 60))
    for i, index in enumerate(given):
        style = _GIVEN_MARKERS[i % len(_GIVEN_MARKERS)], _GIVEN_COLORS[i % len(_GIVEN_COLORS)]
        marks.append(("given", index, *style, 75))
    for label, index, marker, shade, size in marks:
        rank, accuracy = table.rank(index, *asked), accuracies[index]
        style = {"marker": marker, "color": shade, "s": size, "edgecolors": "white", "linewidths": 0.8, "zorder": 3}
        text = f"{label}: cell {index}, {accuracy:.2f} %, rank {rank:,}"
        left.scatter(rank, accuracy, label=text, clip_on=False, **style)
        right.scatter(skips[index] + shift[index], accuracy, clip_on=False, **style)
    handles = [*left.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 3 else 3, frameon=False)
    return figure


def _build_command(arguments: Any) -> None:
    import cli

    budgets = {str(epochs): epochs for epochs in EPOCHS}
    # what is no budget goes through as it is: build says so
    epochs = arguments.epochs and [budgets.get(text, text) for text in arguments.epochs]
    table = build(arguments.sources, arguments.out, epochs, arguments.trust, cli.command_line())
    cells = "cells, all of the space" if len(table) == SPACE else f"cells of {SPACE:,}"
    print(f"{arguments.out}: {len(table):,} {cells}, {len(table.columns)} accuracies each")


def _query_command(arguments: Any) -> None:
    import cli

    table = _open(arguments.table)
    with cli.blaming("CELL"):
        found = query(table, find(table, arguments.cell))
    if arguments.json:
        print(json.dumps(found))
    else:
        _print_query(found)


def _best_command(arguments: Any) -> None:
    table = _open(arguments.table)
    asked = _asked(table, arguments)
    # the order of the indices among equals; NaN sorts last
    order = np.argsort(-table.column(*asked), kind="stable")[: arguments.count]
    _print_rows([_row(table, int(index), asked) for index in order], arguments.json)


def _rank_command(arguments: Any) -> None:
    table = _open(arguments.table)
    asked = _asked(table, arguments)
    _print_rows([_row(table, index, asked) for index in _find_all(table, arguments.cells)], arguments.json)


def _plot_command(arguments: Any) -> None:
    import io

    import cli

    table = _open(arguments.table)
    asked = _asked(table, arguments)
    given = _find_all(table, arguments.cells)
    out = Path(arguments.out)
    with cli.blaming("OUT"):
        _check_new(out)
        if out.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"{out}, expected a name that ends in .png, .svg or .pdf")
    with cli.blaming("CELL"):
        picture = figure(table, asked, given)
    content = io.BytesIO()
    picture.savefig(content, format=out.suffix[1:], dpi=150)
    with cli.blaming("OUT"):
        _write_new(out, content.getvalue())
    print(out)


def _open(path: str) -> Table:
    import cli

    with cli.blaming("TABLE"):
        return open_table(path)


def _asked(table: Table, arguments: Any) -> tuple[str, str, int]:
    """The accuracies that the flags name, once it is clear that the table has them."""
    import cli

    asked = arguments.dataset, arguments.split, arguments.epochs
    with cli.blaming("--dataset, --split, --epochs"):
        table.column(*asked)
    return asked


def _find_all(table: Table, cells: Sequence[str]) -> list[int]:
    import cli

    with cli.blaming("CELL"):
        return [find(table, spec) for spec in cells]


COMMANDS: dict[str, tuple[Callable[[Any], None], str]] = {
    "build": (_build_command, "make a table from the official .pth or from CSV files"),
    "query": (_query_command, "all that a table says of a cell"),
    "best": (_best_command, "the best cells"),
    "rank": (_rank_command, "where cells stand among all"),
    "plot": (_plot_command, "a picture of all cells, some of them marked"),
}


def _parser(command: str) -> Any:
    """The parser of a command; the names of what stands without a flag are those in the messages."""
    from jsonargparse.typing import PositiveInt

    import cli

    parser = cli.Parser(prog=f"{PROG} {command}", description=COMMANDS[command][1], allow_abbrev=False)
    cell = "index, string, genotype file or run folder"
    if command == "build":
        help = "the official .pth, or .csv and .csv.gz with a column arch and columns such as cifar10_test, in percent"
        parser.add_argument("sources", metavar="SOURCE", type=str, nargs="+", help=help)
        parser.add_argument("out", metavar="OUT", type=str, help="file to make, such as table.safetensors")
        help = "training budget of each CSV file in turn, 12 or 200 (default: 200)"
        parser.add_argument("--epochs", metavar="N", type=str, nargs="+", help=help)
        help = "read the .pth by full unpickling, which runs any code in it: only from who you trust"
        parser.add_argument("--trust", action="store_true", help=help)
        return parser
    parser.add_argument("table", metavar="TABLE", type=str, help="file that build has made")
    if command == "query":
        parser.add_argument("cell", metavar="CELL", type=str, help=cell)
    elif command == "plot":
        parser.add_argument("out", metavar="OUT", type=str, help="picture to make: .png, .svg or .pdf")
        parser.add_argument("cells", metavar="CELL", type=str, nargs="*", default=[], help=cell)
    elif command == "rank":
        parser.add_argument("cells", metavar="CELL", type=str, nargs="+", help=cell)
    if command != "query":
        parser.add_argument("--dataset", type=Dataset, default="cifar10", help="data set")
        parser.add_argument("--split", type=Split, default="test", help="split of the data set")
        parser.add_argument("--epochs", type=Epochs, default=200, help="training budget")
    if command == "best":
        parser.add_argument("--count", type=PositiveInt, default=10, help="number of cells")
    if command != "plot":
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main() -> None:
    import cli

    parser = cli.Parser(prog=PROG, description=__doc__.splitlines()[0], usage=f"{PROG} COMMAND ...")
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for command, (_, help) in COMMANDS.items():
        subparser = _parser(command)
        subcommands.add_subcommand(command, subparser, help=help)
        subparser.prog = f"{PROG} {command}"
    given = parser.parse_args()
    with cli.blaming(given.command):
        COMMANDS[given.command][0](given[given.command])


if __name__ == "__main__":
    import cli

    cli.run(main, PROG)
