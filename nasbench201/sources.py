"""Build the file of an accuracy table from the official .pth of NAS-Bench-201 or from CSV files.

The file is a NumPy archive. `cells` is a (cells, 6) uint8 array with the operation of each edge. Each accuracy is a
float64 array in percent, NaN if unknown. `about` is a JSON text with the sources and the command line.
"""

import gzip
import hashlib
import io
import itertools
import json
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lib.files import check_new_file, check_regular, write_atomically
from nasbench201.cells import OPERATIONS, Cell201, operations_of, parse_cell

Dataset = Literal["cifar10", "cifar10-valid", "cifar100", "imagenet16_120"]
Split = Literal["train", "valid", "test"]
Epochs = Literal[12, 200]
#: separates the name of an accuracy from the seed of a single training
SEED = "_seed"
#: suffixes of the columns that count parameters and multiply-adds, in millions
COSTS = ("_params", "_madds")
DATASETS, SPLITS, EPOCHS = get_args(Dataset), get_args(Split), get_args(Epochs)

#: the official names of the data sets, and of the images on which the accuracy of each split is measured
_OFFICIAL = {
    "cifar10": ("cifar10", {"train": "train", "test": "ori-test"}),
    "cifar10-valid": ("cifar10-valid", {"train": "train", "valid": "x-valid", "test": "ori-test"}),
    "cifar100": ("cifar100", {"train": "train", "valid": "x-valid", "test": "x-test"}),
    "imagenet16_120": ("ImageNet16-120", {"train": "train", "valid": "x-valid", "test": "x-test"}),
}


def column_name(dataset: str, split: str, epochs: int) -> str:
    """The name of an accuracy, such as cifar10_test_200."""
    return f"{dataset}_{split}_{epochs}"


def build(
    sources: Sequence[str | Path],
    out: str | Path,
    epochs: Sequence[Epochs] = (),
    trust: bool = False,
    command: str = "",
) -> None:
    """Build a table from one or more sources with the same cells, in the order of the first source.

    Args:
        epochs: The training budget of each CSV source, 12 or 200.
        trust: Read the official file by full unpickling, which runs any code in it.
        command: The command line, recorded in the file.

    Raises:
        ValueError: A source is invalid, or `out` exists.
        OSError: A source cannot be read, or `out` cannot be written.
    """
    check_new_file(Path(out))
    cells, columns, origins = read_sources(sources, epochs, trust)
    warn_of_units(columns)
    write_table(out, {"cells": operations_of(cells), **columns}, {"sources": origins, "command": command})


def write_table(out: str | Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write the arrays of a table, and a description of them, as one compressed NumPy archive."""
    content = io.BytesIO()
    text = np.array(json.dumps({"operations": OPERATIONS, **about}, ensure_ascii=False))
    np.savez_compressed(content, allow_pickle=False, **arrays, about=text)
    write_atomically(Path(out), content.getvalue())


def read_sources(
    sources: Sequence[str | Path], epochs: Sequence[Epochs], trust: bool = False
) -> tuple[list[Cell201], dict[str, np.ndarray], list[dict[str, str]]]:
    """Read the cells of the first source, their accuracies in all sources, and the sources' names and checksums.

    Raises the same errors as `build`.
    """
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.name.endswith((".pth", ".csv", ".csv.gz")):
            raise ValueError(f"{path}: expected a .pth, .csv or .csv.gz")
    csv_files = sum(path.suffix != ".pth" for path in paths)
    if len(epochs) != csv_files:
        shown = ", ".join(map(str, epochs)) or "none"
        expected = "12 or 200 for each CSV file" if csv_files else "none, because the official file has both budgets"
        raise ValueError(f"--epochs: {shown}, expected {expected} (number of CSV files: {csv_files})")
    budgets = iter(epochs)

    cells: list[Cell201] = []
    columns: dict[str, np.ndarray] = {}
    origins = []
    for path in paths:
        check_regular(path)
        with path.open("rb") as file:
            origins.append({"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
        own, given = _read_official(path, trust) if path.suffix == ".pth" else _read_csv(path, next(budgets))
        cells = cells or own
        if len(own) != len(cells) or set(own) != set(cells):
            counts = f"{len(own):,} and {len(cells):,}"
            raise ValueError(f"{path}: its cells differ from those of {paths[0]} ({counts}); expected the same cells")
        if twice := sorted(columns.keys() & given.keys()):
            raise ValueError(f"{path}: repeats {twice[0]} of an earlier source; name each source and its --epochs once")
        rows = {cell: row for row, cell in enumerate(own)}
        order = [rows[cell] for cell in cells]
        columns |= {name: values[order] for name, values in given.items()}
    return cells, columns, origins


def warn_of_units(columns: dict[str, np.ndarray]) -> None:
    """Warn on stderr if accuracies look like fractions, or like those of another training budget."""
    best = {name: float(np.nanmax(values)) for name, values in columns.items() if not name.endswith(COSTS)}
    for name, highest in best.items():
        if highest <= 1:
            print(f"warning: {name}: no accuracy is over 1; expected percent, not fractions", file=sys.stderr)
    if 1 < best.get("cifar10_test_200", 100) < 94:
        print(
            f"warning: cifar10_test_200: the best accuracy is {best['cifar10_test_200']:.2f} %; the benchmark's is "
            "94.37 %. Are these accuracies after 12 epochs, or of some cells only?",
            file=sys.stderr,
        )
    if best.get("cifar10_test_12", 0) >= 92:
        print(
            f"warning: cifar10_test_12: the best accuracy is {best['cifar10_test_12']:.2f} %; the benchmark's is "
            "89.16 %. Are these accuracies after 200 epochs?",
            file=sys.stderr,
        )


def _read_csv(path: Path, epochs: int) -> tuple[list[Cell201], dict[str, np.ndarray]]:
    """Read a CSV file with a column arch and columns such as cifar10_test, in percent.

    Raises:
        ValueError: The file is invalid.
        OSError: The file cannot be read.
    """
    import pandas

    known = {f"{d}_{s}": column_name(d, s, epochs) for d, s in itertools.product(DATASETS, SPLITS)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # it warns of fields that it leaves out
            frame = pandas.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
        frame = frame.rename(columns=str.strip)
        if not {"arch"} < set(frame) <= {"arch", *known}:
            raise ValueError(f"columns {', '.join(frame)}; expected arch and, each once, some of {', '.join(known)}")
        cells = [parse_cell(arch) for arch in frame.pop("arch")]
        accuracies = frame.apply(pandas.to_numeric, errors="coerce").to_numpy(float)  # (cells, columns)
    except pandas.errors.ParserWarning as error:
        fields = "a row has more fields than the header; expected one value for each column, with a decimal point"
        raise ValueError(f"{path}: {fields}") from error
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not cells:
        raise ValueError(f"{path}: no rows; expected one for each cell")
    if len(set(cells)) < len(cells):
        twice = next(cell for cell, count in Counter(cells).items() if count > 1)
        raise ValueError(f"{path}: {twice.arch} has two rows; expected one for each cell")
    for row, column in np.argwhere(~((accuracies >= 0) & (accuracies <= 100))):
        value = f"{cells[row].arch}, {frame.columns[column]}: {frame.iat[row, column]!r}"
        raise ValueError(f"{path}: {value}; expected a number from 0 to 100")
    return cells, {known[name]: column for name, column in zip(frame, accuracies.T, strict=True)}


def _read_official(path: Path, trust: bool) -> tuple[list[Cell201], dict[str, np.ndarray]]:
    """Read the official .pth: accuracies after the last epoch, as means over the seeds and for single seeds.

    Raises:
        ValueError: The file is not the official one, or cannot be read without `trust`.
        OSError: The file cannot be read.
    """
    content = _load_official(path, trust)
    try:
        cells = [parse_cell(arch) for arch in content["meta_archs"]]
        infos = [content["arch2infos"][index] for index in range(len(cells))]
        rows = [_figures(info["less"], 12) | _figures(info["full"], 200) for info in infos]
        names = dict.fromkeys(itertools.chain(*rows))
        columns = {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: wrong format ({error!r}); expected the official file of NAS-Bench-201") from error
    for split, epochs in itertools.product(SPLITS, EPOCHS):
        half = column_name("cifar10-valid", split, epochs)
        if half in columns:
            columns.setdefault(column_name("cifar10", split, epochs), columns[half])
    return cells, columns


def _figures(results: dict[str, Any], epochs: int) -> dict[str, float]:
    """Return the accuracies and costs of a cell, as far as the file has them."""
    figures = {}
    for dataset, (official, splits) in _OFFICIAL.items():
        seeds = results["dataset_seed"].get(official, [])
        trials = [results["all_results"][official, seed] for seed in seeds]
        for split, images in splits.items() if trials else ():
            accuracies = [
                trial["train_acc1es"][trial["epochs"] - 1]
                if split == "train"
                else trial["eval_acc1es"].get(f"{images}@{trial['epochs'] - 1}", np.nan)
                for trial in trials
            ]
            name = column_name(dataset, split, epochs)
            if not np.isnan(mean := float(np.mean(accuracies))):
                figures[name] = mean
                figures |= {f"{name}{SEED}{seed}": a for seed, a in zip(seeds, accuracies, strict=True)}
        for cost, key in (("params", "params"), ("madds", "flop")) if trials else ():
            figures[f"{dataset}_{cost}"] = float(np.mean([trial[key] for trial in trials]))
    return figures


def _load_official(path: Path, trust: bool) -> dict[str, Any]:
    """Load the official file. Without `trust`, torch reads only plain values and NumPy's numbers."""
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
                f"{path}: it has {refused[1]}, which torch cannot load safely; if you trust its author, "
                "--trust unpickles the whole file, which runs any code in it"
            ) from error
        raise ValueError(f"{path}: damaged or not written by torch; expected the official file") from error
    if not isinstance(content, dict) or not {"meta_archs", "arch2infos"} <= set(content):
        raise ValueError(f"{path}: no meta_archs and arch2infos; expected the official file")
    return content
