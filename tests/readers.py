"""The readers of files from elsewhere, one table for two fuzzers: tests/test_fuzz.py and scripts/fuzz.py.

A target is a folder in which one file is the fuzzer's. Its reader gives a value, or raises one of the errors that it
documents; anything else is a finding.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import safetensors.torch
import yaml

import cli
from cli import InputError
from genotypes import CELLS, load_genotype
from nasbench201.cells import all_cells, load_any, load_cell
from search.settings import SCRIPT, SearchSettings, load_settings
from tests.helpers import ROOT

CELL_201 = next(all_cells())
EPOCHS, LAYERS = 2, 4


@dataclass(frozen=True)
class Target:
    """A reader, and what it is fuzzed with.

    Attributes:
        file: what the fuzzer's file is called, below the folder.
        read: the reader, of the folder.
        seeds: valid files, before `sign`.
        form: what the file is made of.
        beside: the other files of the folder: name -> content.
        sign: makes the file of what the fuzzer made: checksums that would hide the reader from it.
        raises: what the reader documents.
    """

    file: str
    read: Callable[[Path], Any]
    seeds: Callable[[], list[bytes]]
    form: Literal["json", "yaml", "csv", "bytes"] = "bytes"
    beside: Callable[[], Mapping[str, bytes]] = dict
    sign: Callable[[bytes], bytes] = bytes
    raises: tuple[type[BaseException], ...] = (ValueError, OSError)

    def prepare(self, folder: Path) -> None:
        """Make the folder, and read the valid files: what is loaded once is loaded then."""
        for name, content in self.beside().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)
        for seed in self.seeds():
            (folder / self.file).write_bytes(self.sign(seed))
            with contextlib.suppress(*self.raises), quiet():
                self.read(folder)

    def run(self, folder: Path, content: bytes) -> BaseException | None:
        """Read a file of this content in a folder that is prepared.

        Returns:
            None where it is taken, the error where it is refused as documented.

        Raises:
            BaseException: neither, a finding, as is a refusal for want of memory.
        """
        (folder / self.file).write_bytes(self.sign(content))
        with quiet(), confined(folder):
            try:
                self.read(folder)
            except self.raises as error:
                cause: BaseException | None = error
                while cause is not None:
                    if isinstance(cause, MemoryError):
                        raise cause from None
                    cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
                return error
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is printed meanwhile is thrown away."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Escape(BaseException):
    """A reader did what no reader may: run a program, reach the network, or open a file outside its folder."""


#: the folder that a reader is confined to; None where no reader runs
_cell: Path | None = None
#: what the interpreter and the libraries open on their own
_LIBRARIES = tuple(
    {*map(os.path.realpath, ("/proc", ROOT, sys.prefix, sys.base_prefix, os.devnull, *filter(None, sys.path)))}
)
#: a fork is no program: it runs on under this hook
_FORBIDDEN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "ctypes.dlopen",
}
_READING = {"open", "os.listdir", "os.scandir"}
_WRITING = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
_OF_TWO = {"os.rename", "os.link", "os.symlink"}  # paths


def _audit(event: str, arguments: tuple) -> None:
    if _cell is None:
        return
    if event in _FORBIDDEN:
        raise Escape(f"{event} {arguments}")
    if event not in _READING | _WRITING:
        return
    writes = event in _WRITING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    for argument in arguments[: 2 if event in _OF_TWO else 1]:
        if isinstance(argument, str | bytes | os.PathLike):
            path = Path(os.path.realpath(os.fsdecode(argument)))
            if not any(map(path.is_relative_to, (_cell,) if writes else (_cell, *_LIBRARIES))):
                raise Escape(f"{event} {path}")


@contextlib.contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Raise `Escape` where what runs meanwhile leaves the folder."""
    global _cell
    if not _audited:
        sys.addaudithook(_audit)
        _audited.append(True)
    _cell = folder.resolve()
    try:
        yield
    finally:
        _cell = None


_audited: list[bool] = []


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
SCORE_201 = {
    "command": "python nasbench201/table.py query",
    "accuracies": [{"dataset": "cifar10", "split": "test", "epochs": 200, "accuracy": 94.37, "rank": 1}],
}
UNIT = {
    "table": "S1 to S4",
    "source": "RobustDARTS",
    "column": "S5",
    "method": "DARTS",
    "seed": 0,
    "published_for": {"space": "s5", "dataset": "cifar10", "method": "darts"},
    "scored": True,
    "steps": {"search": {"script": "search/train_search.py"}, "retrain": {"script": "train/train.py"}},
}
TABLE = {
    "title": "S1 to S4",
    "source": "RobustDARTS",
    "scripts": {"search": "search/train_search.py", "retrain": "train/train.py"},
    "search": {"epochs": 3},
    "columns": {"S2": {"search": {"space": "s2"}}},
    "methods": {"DARTS": {"search": {"method": "darts"}}},
    "scales": {"small": {"seeds": 2, "override": {"DARTS": {"retrain": {"epochs": 2}}}}},
}
EIGENVALUES = ["epoch", "eigenvalue_1", "loss"]
MEASURED = {"batches": 1, "batch_size": 64, "precision": "32-true"}


def search_rows() -> list[dict[str, Any]]:
    names = ["train_loss", "valid_loss", "train_accuracy", "valid_accuracy", "train_alignment", "valid_alignment"]
    names += ["loss_gradient_norm", "entropy_normal", "entropy_reduce", "skip_connect_normal", "skip_connect_reduce"]
    names += [*(f"gradient_norm_layer_{layer}" for layer in range(LAYERS)), "seconds", "peak_memory_mib"]
    return [{"epoch": epoch, **dict.fromkeys(names, 0.5 * epoch)} for epoch in range(1, EPOCHS + 1)]


def retrain_rows() -> list[dict[str, Any]]:
    names = ("learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds")
    return [{"epoch": epoch, **dict.fromkeys(names, 0.5 * epoch)} for epoch in range(1, EPOCHS + 1)]


def npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@cache
def search_run() -> dict[str, bytes]:
    alpha = np.zeros((EPOCHS + 1, 14, 7), np.float32)
    return {
        "config.yaml": to_yaml(SEARCH),
        "metrics.csv": to_csv(search_rows()),
        "alphas.npz": npz(normal=alpha, reduce=alpha),
        "genotype.json": CELLS["DARTS_V2"].to_json().encode(),
        "hessian.csv": to_csv([{"epoch": 1, "eigenvalue_1": 2.5, "loss": 0.5}]),
        "hessian.json": to_json({"command": "python analysis/hessian.py", **MEASURED}),
        "landscape.csv": to_csv([dict.fromkeys(("epoch", "x", "y", "loss", "accuracy"), 1.0)] * 4),
        "landscape.json": to_json({"command": "python analysis/landscape.py"}),
    }


@cache
def unit() -> dict[str, bytes]:
    retrain = {
        "config.yaml": to_yaml(RETRAIN),
        "metrics.csv": to_csv(retrain_rows()),
        "result.json": to_json(RESULT),
    }
    return {
        "unit.json": to_json(UNIT),
        "score.json": to_json(SCORE),
        **{f"search/{name}": content for name, content in search_run().items()},
        **{f"retrain/{name}": content for name, content in retrain.items()},
    }


def pictures() -> list[bytes]:
    """A small picture in each format and mode that a folder of images may have, and some that it may not."""
    from PIL import Image

    ramp = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3))
    saved = []
    for mode, format, options in (
        ("RGB", "PNG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {"transparency": 0}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("RGB", "PNG", {"save_all": True, "append_images": [ramp]}),
        ("RGB", "JPEG", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("P", "BMP", {}),
        ("RGB", "WEBP", {"save_all": True, "append_images": [ramp]}),
        ("RGB", "PPM", {}),
        ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        ("LAB", "TIFF", {}),
        ("F", "TIFF", {}),
        ("RGB", "GIF", {}),
        ("RGB", "EPS", {}),
    ):
        content = io.BytesIO()
        picture = Image.new("LAB", ramp.size) if mode == "LAB" else ramp.convert("L").convert(mode)
        picture.save(content, format, **options)
        saved.append(content.getvalue())
    return saved


def sign_png(content: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right; anything else as it is."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    signed, place = content[:8], 8
    while place + 12 <= len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunk = content[place + 4 : place + 8 + length]
        signed += content[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + length
    return signed + content[place:]


def python2_pickle(pixels, labels):
    """A batch in the words of Python 2 and its NumPy, protocol 2: text and bytes are one type, dtype flags integers."""

    def text(content):
        return b"T" + struct.pack("<i", len(content)) + content

    def integer(value):
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + text(b"|") + b"NNN" + integer(-1) + integer(-1) + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def python3_pickle(protocol):
    return lambda pixels, labels: pickle.dumps({"data": pixels, "labels": labels, "mean": pixels.mean(0)}, protocol)


PROTOCOL_4 = python3_pickle(4)


def numpy1_pickle(pixels, labels):
    return python3_pickle(2)(pixels, labels).replace(b"numpy._core", b"numpy.core")


def imagenet16_batches() -> list[bytes]:
    """Three images, as Python 2 wrote the official files and as others would write them."""
    pixels, labels = np.zeros((3, 768), np.uint8), [1, 2, 1000]
    return [make(pixels, labels) for make in (python2_pickle, numpy1_pickle, python3_pickle(2), PROTOCOL_4)]


def rows_201() -> list[dict[str, Any]]:
    return [
        {"arch": cell.arch, "cifar10_valid": 50.5 + number, "cifar10_test": 60.25}
        for number, cell in zip(range(3), all_cells(), strict=False)
    ]


@cache
def official_201() -> dict[str, bytes]:
    """The benchmark's file, of one cell, as torch writes it today and as it did in 2020."""
    import torch
    from nas_201_api import ResultsCount
    from nas_201_api.api_utils import ArchResults

    def trained(epochs: int) -> dict[str, Any]:
        per_epoch = [dict.fromkeys(range(epochs), 50.0) for _ in range(4)]
        config = {"channel": 16, "num_cells": 5, "arch_str": CELL_201.arch, "class_num": 100}
        result = ResultsCount("cifar100", None, *per_epoch[:2], np.float64(0.5), 80.25, config, 777, epochs, [0.01])
        result.update_train_info(*per_epoch)
        scores = {f"{name}@{epoch}": 60.0 for name in ("x-valid", "x-test") for epoch in range(epochs)}
        result.update_eval(scores, scores, scores)
        results = ArchResults(0, CELL_201.arch)
        results.update("cifar100", 777, result)
        return results.state_dict()

    infos = {0: {"less": trained(12), "full": trained(200)}}
    content = {"meta_archs": [CELL_201.arch], "arch2infos": infos, "evaluated_indexes": [0]}
    files = {}
    for name, zip_file in (("zip", True), ("legacy", False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zip_file)
        files[name] = file.getvalue()
    return files


def torch_pickle(content: bytes) -> bytes:
    """The pickle of a file of torch."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


def sign_torch(content: bytes) -> bytes:
    """A file of torch with this pickle, and one tensor's numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        parts = {"data.pkl": content, "byteorder": b"little", "version": b"3\n", "data/0": bytes(64)}
        for name, part in parts.items():
            archive.writestr(f"archive/{name}", part)
    return file.getvalue()


def table_201() -> list[bytes]:
    """An accuracy table as nasbench201/table.py builds it."""
    from safetensors.numpy import save

    from nasbench201.cells import OPERATIONS
    from nasbench201.table import FORMAT

    arrays = {"cells": np.zeros((1, 6), np.uint8)}
    arrays |= {name: np.full(1, 50, np.float32) for name in ("cifar10_test_200", "cifar10_params")}
    origins = {"cifar10_test_200": "a.csv: cifar10_test"}
    about = {"operations": OPERATIONS, "sources": [], "origins": origins, "command": "python"}
    return [save(arrays, {"format": FORMAT, "about": json.dumps(about), "sha256": ""})]


def sign_table_201(content: bytes) -> bytes:
    """A table with the checksum of what is in it; what is no safetensors file as it is."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    from nasbench201.table import checksum

    try:
        arrays = load(content)
        size = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:size])
        header["__metadata__"]["sha256"] = checksum(arrays, header["__metadata__"]["about"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        return content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[size:]


def checkpoint() -> list[bytes]:
    """A checkpoint of a retraining, with what Lightning keeps in one beside the network."""
    import torch

    from checkpoints import FORMAT, flatten

    tree = {
        "state_dict": {"network.stem": torch.zeros(2, 3)},
        "settings": {"dataset": "digits", "data": "data", "seed": 1},
        "genotype": {"arch": CELL_201.arch},
        "rows": retrain_rows(),
        "classes": ["a", "b"],
        "images": 3,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(2, 3)}}}],
    }
    tensors, state = flatten(tree)
    about = {"version": str(FORMAT), "state": json.dumps(state), "channels_last": "[]", "sha256": "0" * 64}
    return [safetensors.torch.save(tensors, about)]


def sign_checkpoint(content: bytes) -> bytes:
    """A checkpoint with the digest of what is in it; what has no place for one as it is."""
    blank = b'"sha256":"%s"' % (b"0" * 64)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(blank, b'"sha256":"%s"' % digest, 1)


def meta_mat() -> list[bytes]:
    """meta.mat of ILSVRC's development kit, not packed and packed."""
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", int), ("WNID", object)]
    synsets = np.array([(1, "n01440764"), (2, "n01443537")], dtype=fields)
    files = []
    for packed in (False, True):
        file = io.BytesIO()
        savemat(file, {"synsets": synsets}, do_compression=packed)
        files.append(file.getvalue())
    return files


def sign_zip(content: bytes) -> bytes:
    """alphas.npz with this content as its first array."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("normal.npy", content)
        archive.writestr("reduce.npy", npy())
    return file.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros((EPOCHS + 1, 14, 7), np.float32))
    return content.getvalue()


# Readers, of a folder


def read_course(folder: Path) -> None:
    from analysis.curves import load_course

    load_course(folder)


def read_eigenvalues(folder: Path) -> None:
    from analysis.hessian import kept_rows

    kept_rows(folder / "hessian.csv", EIGENVALUES, MEASURED)


def read_entries(folder: Path) -> None:
    from analysis.runs import load_entries

    load_entries([folder])


def make_page(folder: Path) -> None:
    from analysis.page import build

    build([folder], "python analysis/report.py")


def read_card(folder: Path) -> None:
    """A card's files; its pictures are made by other programs, of what has been read by then."""
    from analysis import card

    with mock.patch.multiple(card, draw_genotype=mock.DEFAULT, plot_retraining=mock.DEFAULT):
        card.write_card(folder)


def read_grid(folder: Path) -> None:
    from scripts.grid import expand, load_table

    table = load_table(str(folder / "table.yaml"))
    for scale in table["scales"]:
        for unit in expand(table, scale):
            assert (folder / unit.folder).resolve().is_relative_to(folder.resolve())


def read_csv_201(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from nasbench201.sources import _read_csv

        _read_csv(folder / name, 200)

    return read


def read_official_201(folder: Path) -> None:
    from nasbench201.sources import _read_official

    _read_official(folder / "official.pth", trust=False)


def read_table_201(folder: Path) -> None:
    from nasbench201.table import open_table, query

    table = open_table(folder / "table.safetensors")
    query(table, 0)


def read_kaggle(folder: Path) -> None:
    from imagenet.prepare import read_kaggle

    for picture, name in read_kaggle(folder / "truth.csv").items():
        inside(folder, picture, name)


def read_devkit(folder: Path) -> None:
    from imagenet.prepare import read_devkit

    for picture, name in read_devkit(folder / "truth.txt", folder / "meta.mat").items():
        inside(folder, picture, name)


def inside(folder: Path, *names: str) -> None:
    """That a name is one of a file in a folder, for files are moved there."""
    for name in names:
        if (folder / name).parent.resolve() != folder.resolve():
            raise Escape(f"a name that leads out of its folder: {name!r}")


def read_halves(folder: Path) -> None:
    import torch

    from data import ImageSet, benchmark_halves

    benchmark_halves(ImageSet(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4)), folder / "halves.txt")


def read_image_folder(folder: Path) -> None:
    import data

    data.load("folder", str(folder))


def read_picture(folder: Path) -> None:
    """As a worker of ImageNet's does: nothing that is wrong with a picture is an error there."""
    from imagenet.images import Decoder, Key, read_tree

    tree = read_tree(folder / "train")
    for seed in (None, 0):
        sample = Decoder(tree, 32, seed)[Key(0, 0, 0, 1.0)]
        assert sample.image.shape == (3, 32, 32)


def read_checkpoint(folder: Path) -> None:
    from trainer import load_checkpoint

    load_checkpoint(folder / "step_00001.safetensors")


def read_imagenet16(folder: Path) -> None:
    from imagenet16 import _read

    path = folder / "batch"
    images, labels = _read(path, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest())
    assert images.shape == (len(labels), 3, 16, 16) and images.dtype == np.uint8


def image_folder() -> dict[str, bytes]:
    """Beside train/a/0.png."""
    return {f"{split}/{name}/1.png": pictures()[0] for split in ("train", "test") for name in "ab"}


def halves() -> list[bytes]:
    return [to_json({"train": ["int", ["0", "2"]], "valid": ["int", ["1", "3"]]})]


def genotypes() -> list[bytes]:
    cells = (CELLS["DARTS_V2"], CELLS["FairDARTS_a"])
    return [*(cell.to_json().encode() for cell in cells), *(repr(cell).encode() for cell in cells)]


def without(files: Mapping[str, bytes], name: str) -> Callable[[], dict[str, bytes]]:
    return lambda: {other: content for other, content in files.items() if other != name}


def of_unit(file: str, form: Literal["json", "yaml", "csv"], *more: bytes) -> Target:
    """A file of a table's entry, as the report reads it."""
    return Target(file, read_entries, lambda: [unit()[file], *more], form, unit)


def of_page(file: str, form: Literal["json", "yaml", "csv"]) -> Target:
    """A file of a table, of one entry or its own, as the report makes a page of it."""
    place = "s5/darts/seed-0"
    files = {"table.yaml": to_yaml({"scale": "small", "table": TABLE})}
    files |= {f"{place}/{name}": content for name, content in unit().items()}
    return Target(file, make_page, lambda: [files[file]], form, lambda: files)


TARGETS = {
    "genotype": Target("genotype.json", lambda folder: load_genotype(str(folder)), genotypes, "json"),
    "cell201": Target(
        "genotype.json",
        lambda folder: (load_any(str(folder)), load_cell(str(folder))),
        lambda: [CELL_201.to_json().encode(), CELL_201.arch.encode()],
        "json",
    ),
    "halves": Target("halves.txt", read_halves, halves, "json"),
    "result": Target(
        "result.json",
        cli.finished,
        lambda: [to_json(RESULT)],
        "json",
        lambda: {"model_card.md": b""},  # without it a retraining is not finished
        raises=(InputError,),
    ),
    "unit": of_unit("unit.json", "json"),
    "score": of_unit("score.json", "json", to_json(SCORE_201)),
    "retrained": of_unit("retrain/result.json", "json"),
    "measured": of_unit("search/hessian.json", "json"),
    "searched": of_unit("search/config.yaml", "yaml"),
    "page_unit": of_page("s5/darts/seed-0/unit.json", "json"),
    "page_score": of_page("s5/darts/seed-0/score.json", "json"),
    "page_config": of_page("s5/darts/seed-0/search/config.yaml", "yaml"),
    "page_table": of_page("table.yaml", "yaml"),
    "eigenvalues_json": Target(
        "hessian.json",
        read_eigenvalues,
        lambda: [search_run()["hessian.json"]],
        "json",
        search_run,
        raises=(InputError,),
    ),
    "card": Target(
        "result.json",
        read_card,
        lambda: [to_json(RESULT)],
        "json",
        lambda: {
            "config.yaml": to_yaml(RETRAIN),
            "metrics.csv": to_csv(retrain_rows()),
            "genotype.json": CELLS["DARTS_V2"].to_json().encode(),
        },
    ),
    "config": Target(
        "config.yaml",
        lambda folder: load_settings(folder, "--resume", SCRIPT),
        lambda: [to_yaml(SEARCH)],
        "yaml",
        raises=(InputError,),
    ),
    "grid": Target(
        "table.yaml",
        read_grid,
        lambda: [to_yaml(TABLE)],
        "yaml",
        raises=(InputError,),
    ),
    "metrics": Target(
        "metrics.csv",
        read_course,
        lambda: [to_csv(search_rows())],
        "csv",
        search_run,
    ),
    "columns": of_unit("search/landscape.csv", "csv"),
    "eigenvalues": Target(
        "hessian.csv",
        read_eigenvalues,
        lambda: [search_run()["hessian.csv"]],
        "csv",
        search_run,
        raises=(InputError,),
    ),
    "csv": Target(
        "table.csv",
        read_csv_201("table.csv"),
        lambda: [to_csv(rows_201())],
        "csv",
    ),
    "csv_gz": Target(
        "table.csv.gz",
        read_csv_201("table.csv.gz"),
        lambda: [gzip.compress(to_csv(rows_201()), mtime=0)],
    ),
    "kaggle": Target(
        "truth.csv",
        read_kaggle,
        lambda: [b"ImageId,PredictionString\na_1,n01440764 1 2 3 4\na_2,n01443537 1 2 3 4\n"],
        "csv",
    ),
    "devkit": Target(
        "truth.txt",
        read_devkit,
        lambda: [b"1\n2\n1\n"],
        beside=lambda: {"meta.mat": meta_mat()[0]},
    ),
    "meta": Target(
        "meta.mat",
        read_devkit,
        meta_mat,
        beside=lambda: {"truth.txt": b"1\n2\n1\n"},
    ),
    "image": Target("train/a/0.png", read_image_folder, pictures, beside=image_folder, sign=sign_png),
    "picture": Target(
        "train/a/0.png",
        read_picture,
        pictures,
        beside=image_folder,
        sign=sign_png,
        raises=(),
    ),
    "pickle": Target("batch", read_imagenet16, imagenet16_batches),
    "pth": Target(
        "official.pth",
        read_official_201,
        lambda: [torch_pickle(official_201()["zip"])],
        sign=sign_torch,
    ),
    "pth_file": Target(
        "official.pth",
        read_official_201,
        lambda: list(official_201().values()),
    ),
    "table201": Target("table.safetensors", read_table_201, table_201, sign=sign_table_201),
    "checkpoint": Target("step_00001.safetensors", read_checkpoint, checkpoint, sign=sign_checkpoint),
    "npz": Target(
        "alphas.npz",
        read_course,
        lambda: [search_run()["alphas.npz"]],
        beside=search_run,
    ),
    "npy": Target(
        "alphas.npz",
        read_course,
        lambda: [npy()],
        beside=search_run,
        sign=sign_zip,
    ),
}
