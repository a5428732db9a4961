"""Readers of files from elsewhere, each with valid files, for tests/test_fuzz.py.

A target is a folder in which one file is replaced. Its reader returns a value, or raises an error that it documents.
"""

import contextlib
import csv
import gzip
import io
import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from nas_201_api import ResultsCount
from nas_201_api.api_utils import ArchResults
from PIL import Image
from scipy.io import savemat

import cli
import data
from analysis import card
from analysis.curves import load_course
from analysis.hessian import kept_rows
from analysis.page import build
from analysis.runs import load_entries
from cli import InputError
from genotypes import CELLS, load_genotype
from imagenet.images import Decoder, Key, read_tree
from imagenet.prepare import read_devkit, read_kaggle
from nasbench201 import sources
from nasbench201.cells import all_cells, load_any, load_cell
from nasbench201.table import open_table
from scripts.grid import expand, load_table
from search.settings import SCRIPT, SearchSettings, load_settings
from tests.helpers import TABLE

CELLS_201 = [cell.arch for cell in itertools.islice(all_cells(), 3)]
EPOCHS, LAYERS = 2, 4


@dataclass(frozen=True)
class Target:
    """A reader and its valid files.

    Attributes:
        file: the file that is replaced, below the folder.
        read: the reader, of the folder.
        seeds: contents of valid files.
        beside: the other files of the folder: name -> content.
        raises: the errors that the reader documents.
    """

    file: str
    read: Callable[[Path], Any]
    seeds: Callable[[], list[bytes]]
    beside: Callable[[], Mapping[str, bytes]] = dict
    raises: tuple[type[BaseException], ...] = (ValueError, OSError)

    def prepare(self, folder: Path) -> None:
        """Write the other files."""
        for name, content in {**self.beside(), self.file: b""}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    def run(self, folder: Path, content: bytes) -> BaseException | None:
        """Read a file with this content in a prepared folder; returns the documented error, None without one."""
        (folder / self.file).write_bytes(content)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                self.read(folder)
        except self.raises as error:
            return error
        return None


# Valid files


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def to_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


def to_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


ORIGIN = {"command": "python x.py", "commit": "0", "device": "cpu", "versions": {"python": "3.11"}}
SEARCH = {**asdict(SearchSettings()), "epochs": EPOCHS, "layers": LAYERS, "provenance": ORIGIN}
RETRAIN = {"arch": "DARTS_V2", "dataset": "digits", "data": "data", "seed": 1, "epochs": EPOCHS, "provenance": ORIGIN}
RESULT = {"accuracy": 0.97, "test_images": 360, "params": 3349342, "multiply_adds": 5e8, "classes": ["a", "b"]}
SCORE = {"command": "python train/test.py retrain", "accuracy": 0.97, "loss": 0.1}
UNIT = {
    "table": "S1 to S4",
    "column": "S5",
    "method": "DARTS",
    "seed": 0,
    "published_for": {"space": "s5", "dataset": "cifar10", "method": "darts"},
    "scored": True,
    "steps": {"search": {"script": "search/train_search.py"}, "retrain": {"script": "train/train.py"}},
}
EIGENVALUES = ["epoch", "eigenvalue_1", "loss"]
MEASURED = {"batches": 1, "batch_size": 64, "precision": "32-true"}


def rows(*names: str) -> bytes:
    """A metrics.csv with these columns."""
    return to_csv([{"epoch": epoch, **dict.fromkeys(names, 0.5 * epoch)} for epoch in range(1, EPOCHS + 1)])


SEARCH_METRICS = rows(
    *("train_loss", "valid_loss", "train_accuracy", "valid_accuracy", "train_alignment", "valid_alignment"),
    *("loss_gradient_norm", "entropy_normal", "entropy_reduce", "skip_connect_normal", "skip_connect_reduce"),
    *(*(f"gradient_norm_layer_{layer}" for layer in range(LAYERS)), "seconds", "peak_memory_mib"),
)
METRICS = rows("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")


ROWS_201 = to_csv([{"arch": arch, "cifar10_valid": 50.5, "cifar10_test": 60.25} for arch in CELLS_201])


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@cache
def search_run() -> dict[str, bytes]:
    alpha = np.zeros((EPOCHS + 1, 14, 7), np.float32)
    return {
        "config.yaml": to_yaml(SEARCH),
        "metrics.csv": SEARCH_METRICS,
        "alphas.npz": npz(normal=alpha, reduce=alpha),
        "genotype.json": CELLS["DARTS_V2"].to_json().encode(),
        "hessian.csv": to_csv([{"epoch": 1, "eigenvalue_1": 2.5, "loss": 0.5}]),
        "hessian.json": to_json({"command": "python analysis/hessian.py", **MEASURED}),
        "landscape.csv": to_csv([dict.fromkeys(("epoch", "x", "y", "loss", "accuracy"), 1.0)] * 4),
        "landscape.json": to_json({"command": "python analysis/landscape.py"}),
    }


@cache
def unit() -> dict[str, bytes]:
    """The folder of a table's entry."""
    retrain = {"config.yaml": to_yaml(RETRAIN), "metrics.csv": METRICS, "result.json": to_json(RESULT)}
    return {
        "unit.json": to_json(UNIT),
        "score.json": to_json(SCORE),
        **{f"search/{name}": content for name, content in search_run().items()},
        **{f"retrain/{name}": content for name, content in retrain.items()},
    }


def pictures() -> list[bytes]:
    """A small picture in each format that an image folder may have."""
    ramp = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3))
    saved = []
    for mode, format in (
        *(("RGB", name) for name in ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF")),
        *(("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")),
    ):
        content = io.BytesIO()
        ramp.convert(mode).save(content, format)
        saved.append(content.getvalue())
    return saved


def official_201() -> list[bytes]:
    """NAS-Bench-201's file of one cell, as torch writes it today and as it did in 2020."""

    def trained(epochs: int) -> dict[str, Any]:
        per_epoch = [dict.fromkeys(range(epochs), 50.0) for _ in range(4)]
        config = {"channel": 16, "num_cells": 5, "arch_str": CELLS_201[0], "class_num": 100}
        result = ResultsCount("cifar100", None, *per_epoch[:2], np.float64(0.5), 80.25, config, 777, epochs, [0.01])
        result.update_train_info(*per_epoch)
        scores = {f"{name}@{epoch}": 60.0 for name in ("x-valid", "x-test") for epoch in range(epochs)}
        result.update_eval(scores, scores, scores)
        results = ArchResults(0, CELLS_201[0])
        results.update("cifar100", 777, result)
        return results.state_dict()

    infos = {0: {"less": trained(12), "full": trained(200)}}
    content = {"meta_archs": CELLS_201[:1], "arch2infos": infos, "evaluated_indexes": [0]}
    files = []
    for zip_file in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zip_file)
        files.append(file.getvalue())
    return files


def table_201() -> list[bytes]:
    """An accuracy table made from `ROWS_201`."""
    with TemporaryDirectory() as folder:
        source, made = Path(folder, "rows.csv"), Path(folder, "table.safetensors")
        source.write_bytes(ROWS_201)
        sources.build([source], made)
        return [made.read_bytes()]


def meta_mat() -> bytes:
    """meta.mat of ILSVRC's development kit."""
    synsets = np.array([(1, "n01440764"), (2, "n01443537")], dtype=[("ILSVRC2012_ID", int), ("WNID", object)])
    file = io.BytesIO()
    savemat(file, {"synsets": synsets})
    return file.getvalue()


# Readers, of a folder


def read_card(folder: Path) -> None:
    """The files of a card; its pictures are made by other programs, from what has been read by then."""
    with mock.patch.multiple(card, draw_genotype=mock.DEFAULT, plot_retraining=mock.DEFAULT):
        card.write_card(folder)


def read_grid(folder: Path) -> None:
    table = load_table(str(folder / "table.yaml"))
    for scale in table["scales"]:
        expand(table, scale)


def read_halves(path: Path) -> None:
    data.benchmark_halves(data.ImageSet(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4)), path)


def read_picture(folder: Path) -> None:
    """As a worker of ImageNet does, which reports a damaged picture and goes on."""
    image, *_ = Decoder(read_tree(folder / "train"), 32, 0)[Key(0, 0, 0, 1.0)]
    assert image.shape == (3, 32, 32)


def image_folder() -> dict[str, bytes]:
    """Beside train/a/0.png."""
    return {f"{split}/{name}/1.png": pictures()[0] for split in ("train", "test") for name in "ab"}


def genotypes() -> list[bytes]:
    cells = (CELLS["DARTS_V2"], CELLS["FairDARTS_a"])
    return [*(cell.to_json().encode() for cell in cells), *(repr(cell).encode() for cell in cells)]


def alone(file: str, read: Callable[[Path], Any], *seeds: bytes) -> Target:
    """A file whose reader takes its path."""
    return Target(file, lambda folder: read(folder / file), lambda: list(seeds))


def of_unit(file: str) -> Target:
    """A file of a table's entry, as the report reads it."""
    return Target(file, lambda folder: load_entries([folder]), lambda: [unit()[file]], unit)


def of_search(file: str, read: Callable[[Path], Any], *raises: type[BaseException]) -> Target:
    """A file of a search's run folder."""
    return Target(file, read, lambda: [search_run()[file]], search_run, raises or (ValueError, OSError))


def read_truth(folder: Path) -> None:
    read_devkit(folder / "truth.txt", folder / "meta.mat")


def read_eigenvalues(folder: Path) -> None:
    kept_rows(folder / "hessian.csv", EIGENVALUES, MEASURED)


PAGE = {"table.yaml": to_yaml({"scale": "tiny", "table": TABLE})}
PAGE |= {f"s5/darts/seed-0/{name}": content for name, content in unit().items()}
CARD = {name: unit()[f"retrain/{name}"] for name in ("config.yaml", "metrics.csv")}
CARD |= {"genotype.json": genotypes()[0]}
HALVES = to_json({"train": ["int", ["0", "2"]], "valid": ["int", ["1", "3"]]})
#: a retraining counts as finished only when it has its card
FINISHED = {"model_card.md": b""}
KAGGLE = b"ImageId,PredictionString\na_1,n01440764 1 2 3 4\na_2,n01443537 1 2 3 4\n"

TARGETS = {
    "genotype": Target("genotype.json", lambda folder: load_genotype(str(folder)), genotypes),
    "cell201": alone(
        "cell.json",
        lambda path: (load_any(str(path)), load_cell(str(path))),
        *(to_json({"arch": CELLS_201[0]}), CELLS_201[0].encode()),
    ),
    "halves": alone("halves.txt", read_halves, HALVES),
    "result": Target("result.json", cli.finished, lambda: [to_json(RESULT)], lambda: FINISHED, (InputError,)),
    "card": Target("result.json", read_card, lambda: [to_json(RESULT)], lambda: CARD),
    "unit": of_unit("unit.json"),
    "score": of_unit("score.json"),
    "retrained": of_unit("retrain/result.json"),
    "measured": of_unit("search/hessian.json"),
    "searched": of_unit("search/config.yaml"),
    "columns": of_unit("search/landscape.csv"),
    "page": Target("table.yaml", lambda folder: build([folder], ""), lambda: [PAGE["table.yaml"]], lambda: PAGE),
    "config": of_search("config.yaml", lambda folder: load_settings(folder, "--resume", SCRIPT), InputError),
    "metrics": of_search("metrics.csv", load_course),
    "alphas": of_search("alphas.npz", load_course),
    "eigenvalues": of_search("hessian.csv", read_eigenvalues, InputError),
    "eigenvalues_json": of_search("hessian.json", read_eigenvalues, InputError),
    "grid": Target("table.yaml", read_grid, lambda: [to_yaml(TABLE)], raises=(InputError,)),
    "csv": alone("a.csv", lambda path: sources._read_csv(path, 200), ROWS_201),
    "csv_gz": alone("a.csv.gz", lambda path: sources._read_csv(path, 200), gzip.compress(ROWS_201, mtime=0)),
    "pth": alone("a.pth", lambda path: sources._read_official(path, trust=False), *official_201()),
    "table201": alone("a.safetensors", open_table, *table_201()),
    "kaggle": alone("truth.csv", read_kaggle, KAGGLE),
    "devkit": Target("truth.txt", read_truth, lambda: [b"1\n2\n1\n"], lambda: {"meta.mat": meta_mat()}),
    "image": Target("train/a/0.png", lambda folder: data.load("folder", str(folder)), pictures, image_folder),
    "picture": Target("train/a/0.png", read_picture, pictures, image_folder, raises=()),
}
