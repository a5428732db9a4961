"""Build the file of an accuracy table from the official .pth of NAS-Bench-201 or from CSV files.

The file is safetensors: `cells`, a (cells, 6) uint8 array with the operation of each edge, and for each accuracy a
float32 array in percent, NaN where unknown. Its header has a checksum and the origin of each array.
"""

import csv
import gzip
import hashlib
import itertools
import json
import sys
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from files import check_new_file, write_new
from nasbench201.cells import OPERATIONS, Cell201, operations_of, parse_cell

FORMAT = "nasbench201-table-1"

Dataset = Literal["cifar10", "cifar10-valid", "cifar100", "imagenet16_120"]
Split = Literal["train", "valid", "test"]
Epochs = Literal[12, 200]
DATASETS, SPLITS, EPOCHS = get_args(Dataset), get_args(Split), get_args(Epochs)

#: the official names of the data sets, and of the images that give the accuracy of a split
_OFFICIAL = {
    "cifar10": ("cifar10", {"train": "train", "test": "ori-test"}),
    "cifar10-valid": ("cifar10-valid", {"train": "train", "valid": "x-valid", "test": "ori-test"}),
    "cifar100": ("cifar100", {"train": "train", "valid": "x-valid", "test": "x-test"}),
    "imagenet16_120": ("ImageNet16-120", {"train": "train", "valid": "x-valid", "test": "x-test"}),
}


class Source(NamedTuple):
    """The content of one source: a float32 array of N values for each name, such as cifar10_test_200."""

    cells: list[Cell201]
    columns: dict[str, np.ndarray]
    origins: dict[str, str]  # name of a column -> its name in the source


def column_name(dataset: str, split: str, epochs: int) -> str:
    """The name of an accuracy, such as cifar10_test_200."""
    return f"{dataset}_{split}_{epochs}"


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    epochs: Sequence[int] | None = None,
    trust: bool = False,
    command: str = "",
) -> None:
    """Write a table of one or more sources with the same cells, in the order of the first source.

    Args:
        epochs: The training budget of each CSV source, 12 or 200. The default is 200 for all.
        trust: Read the official file by full unpickling, which runs any code in it.
        command: The command line, recorded in the file.

    Raises:
        ValueError: A source is invalid, or `out` exists.
        OSError: A source cannot be read, or `out` cannot be written.
    """
    paths = [Path(source) for source in sources]
    check_new_file(Path(out))
    for path in paths:
        if not path.name.endswith((".pth", ".csv", ".csv.gz")):
            raise ValueError(f"{path}: expected a .pth, .csv or .csv.gz")
    csv_files = sum(path.suffix != ".pth" for path in paths)
    if epochs and len(epochs) != csv_files:
        raise ValueError(f"--epochs: {len(epochs)} given for {csv_files} CSV files, expected one for each")
    budgets = iter(epochs or [200] * csv_files)

    cells: list[Cell201] = []
    columns: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {"operations": OPERATIONS, "sources": [], "origins": {}, "command": command}
    for path in paths:
        with path.open("rb") as file:
            about["sources"].append({"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
        source = _read_official(path, trust) if path.suffix == ".pth" else _read_csv(path, next(budgets))
        cells = cells or source.cells
        if len(source.cells) != len(cells) or set(source.cells) != set(cells):
            counts = f"{len(source.cells):,} and {len(cells):,}"
            raise ValueError(f"{path}: its cells differ from those of {paths[0]} ({counts}); expected the same cells")
        if twice := sorted(columns.keys() & source.columns.keys()):
            raise ValueError(f"{path}: gives {twice[0]} again; name each source and its --epochs once")
        rows = {cell: row for row, cell in enumerate(source.cells)}
        order = [rows[cell] for cell in cells]
        columns |= {name: values[order] for name, values in source.columns.items()}
        about["origins"] |= {name: f"{path.name}: {origin}" for name, origin in source.origins.items()}
    _write({"cells": operations_of(cells), **columns}, json.dumps(about), Path(out))


def _write(arrays: dict[str, np.ndarray], about: str, out: Path) -> None:
    from safetensors.numpy import save

    write_new(out, save(arrays, {"format": FORMAT, "about": about, "sha256": checksum(arrays, about)}))


def checksum(arrays: Mapping[str, np.ndarray], about: str) -> str:
    """SHA-256 of the arrays and of the text about them."""
    digest = hashlib.sha256(about.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _read_csv(path: Path, epochs: int) -> Source:
    """Read a CSV file with a column arch and columns such as cifar10_test, in percent.

    Raises:
        ValueError: The file is invalid; the message gives the line.
        OSError: The file cannot be read.
    """
    known = {f"{d}_{s}": column_name(d, s, epochs) for d, s in itertools.product(DATASETS, SPLITS)}
    cells: dict[Cell201, list[float]] = {}
    line = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header: list[str] = next(reader, [])
            if "arch" not in header or not 2 <= len(set(header)) == len(header):
                raise ValueError(f"columns {', '.join(header) or 'none'}; expected arch and, each once, accuracies")
            if unknown := set(header) - {"arch"} - set(known):
                raise ValueError(f"column {min(unknown)!r}, expected arch and some of {', '.join(known)}")
            for row in filter(None, reader):
                line = reader.line_num
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} fields, expected {len(header)}")
                fields = dict(zip(header, row, strict=True))
                cell = parse_cell(fields.pop("arch"))
                if cell in cells:
                    raise ValueError(f"{cell.arch} again")
                cells[cell] = [_percent(name, text) for name, text in fields.items()]
    except (ValueError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {f'line {line}: ' if line else ''}{error}") from error
    if not cells:
        raise ValueError(f"{path}: no cells")
    origins = {known[name]: name for name in header if name != "arch"}
    return Source(list(cells), dict(zip(origins, np.array(list(cells.values()), np.float32).T, strict=True)), origins)


def _percent(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value <= 100:
        raise ValueError(f"{name} {text!r}, expected a number from 0 to 100")
    return value


def _read_official(path: Path, trust: bool) -> Source:
    """Read the official .pth: the mean over the seeds of each accuracy after the last epoch.

    Raises:
        ValueError: The file is not the official one, or cannot be read without `trust`.
        OSError: The file cannot be read.
    """
    content = _load_official(path, trust)
    try:
        cells = [parse_cell(arch) for arch in content["meta_archs"]]
        if len(set(cells)) < len(cells) or not cells:
            raise ValueError(f"{len(cells)} cells, some more than once")
        columns: dict[str, np.ndarray] = {}
        for index in range(len(cells)):
            for epochs, key in ((12, "less"), (200, "full")):
                for name, value in _means(content["arch2infos"][index][key], epochs).items():
                    columns.setdefault(name, np.full(len(cells), np.nan, np.float32))[index] = value
    except Exception as error:  # anything may be missing or of another type
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path}: not as NAS-Bench-201 stores its results ({detail})") from error

    origins = {}
    for dataset, split, epochs in itertools.product(DATASETS, SPLITS, EPOCHS):
        name, trained_on = column_name(dataset, split, epochs), dataset
        if dataset == "cifar10" and name not in columns:
            trained_on = "cifar10-valid"
        if (values := columns.get(column_name(trained_on, split, epochs))) is None:
            continue
        columns[name], (official, images) = values, _OFFICIAL[trained_on]
        origins[name] = f"{images[split]} of {official}"
        if np.nanmin(values) < 0 or np.nanmax(values) > 100:
            raise ValueError(f"{path}: {origins[name]}: expected accuracies from 0 to 100")
    if not origins:
        raise ValueError(f"{path}: has no accuracies of {', '.join(official for official, _ in _OFFICIAL.values())}")
    return Source(cells, columns, origins)


def _means(results: dict[str, Any], epochs: int) -> dict[str, float]:
    """The accuracies and costs of a cell, where the file has them."""
    means = {}
    for dataset, (official, splits) in _OFFICIAL.items():
        trials = [results["all_results"][official, seed] for seed in results["dataset_seed"].get(official, [])]
        for split, images in splits.items() if trials else ():
            accuracies = [
                trial["train_acc1es"][trial["epochs"] - 1]
                if split == "train"
                else trial["eval_acc1es"].get(f"{images}@{trial['epochs'] - 1}", np.nan)
                for trial in trials
            ]
            if not np.isnan(mean := float(np.mean(accuracies))):
                means[column_name(dataset, split, epochs)] = mean
        for cost, key in (("params", "params"), ("madds", "flop")) if trials else ():
            means[f"{dataset}_{cost}"] = float(np.mean([trial[key] for trial in trials]))
    return means


def _load_official(path: Path, trust: bool) -> dict[str, Any]:
    """Load the official file. Unless `trust` is given, torch reads only plain values and NumPy's numbers."""
    import re

    import torch
    from numpy._core import multiarray

    # The classes of a pickled NumPy number (efd: float16, 32 and 64). NumPy 2 renamed their module.
    numpy: list[Any] = [multiarray.scalar, (multiarray.scalar, "numpy.core.multiarray.scalar"), np.dtype]
    numpy += [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + "efd"]
    if trust:
        print(f"warning: --trust: unpickling {path} runs any code that is in it", file=sys.stderr)
    try:
        with torch.serialization.safe_globals(numpy), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the old pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises many kinds of errors
        if refused := re.search(r"(?:GLOBAL|unrecognized function) (\S+)", str(error)):
            raise ValueError(
                f"{path}: holds {refused[1]}, which torch does not read safely; if you trust its author, "
                "--trust reads it by full unpickling, which runs any code in it"
            ) from error
        raise ValueError(f"{path}: damaged or not written by torch ({type(error).__name__})") from error
    if not isinstance(content, dict) or not {"meta_archs", "arch2infos"} <= set(content):
        raise ValueError(f"{path}: no meta_archs and arch2infos; expected the official NAS-Bench-201 file")
    return content
