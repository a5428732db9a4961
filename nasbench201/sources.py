"""What a table of NAS-Bench-201 is made from: the official file, or CSV files.

The official file is read through the nas-bench-201 package. That predates torch's safe loading, so the file is loaded
here, as data alone, and the package is handed what was in it.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy._core import multiarray

from files import check_new_file, write_new
from nasbench201.cells import OPERATIONS, Cell201, make_cell, parse_cell
from nasbench201.table import DATASETS, EPOCHS, FORMAT, SPLITS, Table, checksum, codes, column_name, operations_of
from parsing import open_csv

#: the names of the data sets in the official file
_OFFICIAL = {
    "cifar10": "cifar10",
    "cifar10-valid": "cifar10-valid",
    "cifar100": "cifar100",
    "imagenet16_120": "ImageNet16-120",
}
#: what a pickled number of NumPy refers to; NumPy 2 renamed the module
_NUMPY: list[Any] = [
    multiarray.scalar,
    (multiarray.scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd"),  # efd: float16, 32 and 64
]
#: cells that the package takes at a time: it copies what it is given
_CHUNK = 100


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
    minutes and up to 28 GB of memory, once. A .csv or .csv.gz has a column "arch" and columns such as "cifar10_test",
    in percent.

    Args:
        epochs: the training budget of each CSV source, 12 or 200; 200 for all if None.
        trust: read the official file by full unpickling, which runs any code that is in it.
        command: the command line, to be kept in the file.

    Raises:
        ValueError: a source is not as it should be, or `out` exists.
        OSError: a source cannot be read, or `out` not written.
    """
    out, paths = Path(out), [Path(source) for source in sources]
    check_new_file(out)
    for path in paths:
        if not path.name.endswith((".pth", ".csv", ".csv.gz")):
            raise ValueError(f"{path}: expected a .pth, .csv or .csv.gz")
    tables = [path for path in paths if path.suffix != ".pth"]
    budgets = [200] * len(tables) if epochs is None else list(epochs)
    if len(budgets) != len(tables):
        raise ValueError(f"--epochs: {len(budgets)} given for {len(tables)} CSV files, expected one for each")
    if not set(budgets) <= set(EPOCHS):
        listed = " ".join(map(str, budgets))
        raise ValueError(f"--epochs: {listed}, expected 12 or 200 for each CSV file")

    kept: list[dict[str, str]] = []
    columns: dict[str, np.ndarray] = {}
    costs: dict[str, np.ndarray] = {}
    origins: dict[str, str] = {}
    cells: np.ndarray | None = None
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

    assert cells is not None  # there is a source
    about = {"operations": OPERATIONS, "sources": kept, "origins": origins, "command": command}
    _write_table(out, {"cells": cells, **columns, **costs}, json.dumps(about))
    return Table(cells, columns, costs, about)


def _write_table(out: Path, arrays: dict[str, np.ndarray], about: str) -> None:
    from safetensors.numpy import save

    write_new(out, save(arrays, {"format": FORMAT, "about": about, "sha256": checksum(arrays, about)}))


def _order(cells: np.ndarray, others: np.ndarray, path: Path, other_path: Path) -> np.ndarray:
    """Where the cells of one source stand in another, (N,)."""
    ours, theirs = codes(cells), codes(others)
    for these, those, has, lacks in (
        (cells, theirs, path, other_path),
        (others, ours, other_path, path),
    ):
        alone = ~np.isin(codes(these), those)
        if alone.any():
            cell = make_cell([OPERATIONS[operation] for operation in these[alone.argmax()]])
            raise ValueError(f"{lacks}: lacks {int(alone.sum())} cells that {has} has, the first of them {cell.arch}")
    order = np.argsort(theirs)
    return order[np.searchsorted(theirs, ours, sorter=order)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            digest.update(part)
    return digest.hexdigest()


def _read_csv(path: Path, epochs: int) -> Source:
    """Read a CSV file.

    Raises:
        ValueError: it is not as `build` expects it; the message gives the line.
        OSError: it cannot be read.
    """
    known = {f"{dataset}_{split}": column_name(dataset, split, epochs) for dataset in DATASETS for split in SPLITS}
    lines: dict[Cell201, int] = {}
    rows: list[list[float]] = []
    with open_csv(path) as reader:
        header: list[str] = next(reader, [])
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
    if not rows:
        raise ValueError(f"{path}: no cells")
    values = np.array(rows, dtype=np.float32).T
    columns = {known[name]: values[i] for i, name in enumerate(accuracies)}
    return Source(operations_of(lines), columns, {}, {known[name]: name for name in accuracies})


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
            cells = operations_of(parse_cell(arch) for arch in archs)
            count = len(cells)
            if len(np.unique(codes(cells))) < count or not count:
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
        except Exception as error:  # the package takes for granted what it reads
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
    """Load the official file, a dict.

    Unless `trust` is given, torch reads only plain values and NumPy's numbers: full unpickling runs any code in a file.
    """
    import re

    import torch

    if trust:
        print(
            f"warning: --trust: {path} is read by full unpickling, which runs any code that is in the file",
            file=sys.stderr,
        )
    try:
        with torch.serialization.safe_globals(_NUMPY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign pickle's protocol
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises almost any
        if trust and isinstance(error, AttributeError | ImportError):
            raise ValueError(f"{path}: needs a module that is not here: {error}") from error
        refused = re.search(r"(?:GLOBAL|unrecognized function) (\S+)", str(error))
        if refused:
            raise ValueError(
                f"{path}: holds {refused[1]}, which torch does not read safely; if you trust whoever made the file, "
                "--trust reads it by full unpickling, which runs any code in it"
            ) from error
        raise ValueError(f"{path}: cut short, or no file of torch; expected the official NAS-Bench-201 .pth") from error
    if not isinstance(content, dict) or not {"meta_archs", "arch2infos", "evaluated_indexes"} <= set(content):
        raise ValueError(f"{path}: no meta_archs, arch2infos and evaluated_indexes; expected the official file")
    return content
