"""Files from elsewhere, damaged and made up: their readers take them or refuse them as they document."""

import contextlib
import csv
import gzip
import io
import json
import pickle
import resource
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from scipy.io import savemat

from analysis.runs import load_entries
from cli import one_line
from genotypes import parse_genotype
from tests.helpers import ROOT, slower
from tests.readers import (
    RESULT,
    SEARCH,
    TABLE,
    TARGETS,
    UNIT,
    Escape,
    Target,
    checkpoint,
    confined,
    imagenet16_batches,
    npz,
    pictures,
    search_rows,
    table_201,
    to_csv,
    to_json,
    to_yaml,
    unit,
)

SECONDS, MEMORY = 10, 1 << 30
#: examples of a target that takes long; of the others there are 100
FEW = {"config": 10, "grid": 15, "image": 40, "picture": 40, "pth": 25, "pth_file": 15}
FEW |= dict.fromkeys(("page_unit", "page_score", "page_config", "page_table"), 3)

BOMB = "[&a [x,x,x,x,x,x,x,x,x], " + ", ".join(
    f"&{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(9)
)
#: what stands for a value in JSON or YAML, and is none that a reader expects
STRANGE = [
    *("null", "true", "-1", "0", str(2**63), "1" + "0" * 400, "9" * 5000, "1e999", "NaN", "-Infinity", "0.5", '""'),
    *(
        '"\\u0000"',
        '"\\ud800"',
        '"../../x"',
        '"/etc/passwd"',
        f'"{"x" * 70_000}"',
        '"x\\ny"',
        '"\\u001b[2J"',
        "[]",
        "{}",
    ),
    *("[" * 500 + "]" * 500, "[" * 100_000, '{"a": ' * 50_000, '[["sep_conv_3x3", 0]]', "[null]", '{"a": 1, "a": 2}'),
]
#: the same, of YAML alone
STRANGE_YAML = [
    *('!!python/object/apply:os.system ["touch escaped"]', "!!python/name:os.system", BOMB + "]", "&x [*x]", "*x"),
    *("!!timestamp x", "2001-99-99", "!!bool x", '!!int ""', '!!float ""', "!!float x", "1:" * 300 + "1.5", "0x", "="),
    *(
        "!!binary x",
        "!!set {a, b}",
        "{[a]: b}",
        "{<<: 5}",
        "!!omap [a]",
        "!!map []",
        "!!seq {}",
        "0b2",
        "- x",
        "@",
        "\t",
    ),
]
HOLE = "a place for something else"


class Late(BaseException):
    """Nothing that a reader catches."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where what is done takes longer, of the processor: a busy machine is no hang."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise Late  # pytest's output shows where

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds * slower())
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid file after bit flips, cuts, insertions and splices."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        length = draw(st.sampled_from((1, 2, 4, 8, 64, len(content))))
        match draw(st.integers(0, 5)):
            case 0 if content:
                content[place] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del content[place : place + length]
            case 2:
                content[place:place] = draw(st.binary(max_size=16))
            case 3:
                content[place:place] = content[place : place + length]
            case 4:
                other = draw(st.sampled_from(seeds))
                content[place:] = other[draw(st.integers(0, len(other))) :]
            case _:
                numbers = st.sampled_from((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                content[place : place + 8] = draw(numbers).to_bytes(8, draw(st.sampled_from(("little", "big"))))
    return bytes(content)


def places(value: Any) -> list[tuple]:
    """The paths to all parts of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, part in parts for path in places(part))]


def replaced(value: Any, path: tuple, part: Any) -> Any:
    """A JSON value with another part in the place of one."""
    if not path:
        return part
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    new = {key: replaced(old, path[1:], part) if key == path[0] else old for key, old in parts}
    return new if isinstance(value, dict) else list(new.values())


@st.composite
def structured(draw: st.DrawFn, seed: bytes, form: str) -> bytes:
    """A valid JSON or YAML file with something strange in one or two places, or for one of its names."""
    value = json.loads(seed) if form == "json" else yaml.safe_load(seed)
    strange = st.sampled_from(STRANGE + (STRANGE_YAML if form == "yaml" else []))
    text = json.dumps(value)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(value)))
        if path and isinstance(path[-1], str) and draw(st.integers(0, 3)) == 0:
            text = text.replace(json.dumps(path[-1]), draw(st.sampled_from(('""', '"../x"', '"config"', '"a=b"', "1"))))
        else:
            value = replaced(value, path, HOLE)
            text = json.dumps(value).replace(f'"{HOLE}"', draw(strange))
            value = replaced(value, path, None)
    return text.encode("utf-8", "surrogatepass")


@st.composite
def tabular(draw: st.DrawFn, seed: bytes) -> bytes:
    """A valid CSV file with other cells, rows and columns."""
    rows = list(csv.reader(io.StringIO(seed.decode())))
    cells = [
        "",
        "nan",
        "inf",
        "-1",
        "1e999",
        "9" * 5000,
        "x",
        "\0",
        '"',
        "a,b",
        "../x",
        "٣",
        "1_0",
        "0x1",
        "x" * 140_000,
    ]
    for _ in range(draw(st.integers(1, 3))):
        row = rows[draw(st.integers(0, len(rows) - 1))]
        place = draw(st.integers(0, max(0, len(row) - 1)))
        match draw(st.integers(0, 4)):
            case 0 if row:
                row[place] = draw(st.sampled_from(cells))
            case 1 if row:
                del row[place]
            case 2:
                row.append(draw(st.sampled_from(cells)))
            case 3:
                rows.append(list(row))
            case _:
                row.clear()
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def files(target: Target) -> st.SearchStrategy[bytes]:
    """Files that a target's reader may meet."""
    seeds = target.seeds()
    found = [damaged(seeds), st.binary(max_size=64)]
    for seed in seeds:
        if target.form in ("json", "yaml") and seed[:1] not in b"G|":
            found += [structured(seed, target.form)] * 3
        elif target.form == "csv":
            found += [tabular(seed)] * 2
    return st.one_of(found)


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_taken_or_refused_as_documented(name, tmp_path):
    target = TARGETS[name]
    target.prepare(tmp_path)
    for seed in target.seeds()[:1]:
        assert target.run(tmp_path, seed) is None

    @settings(
        max_examples=FEW.get(name, 100),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(files(target))
    def check(content: bytes) -> None:
        with within(SECONDS), at_most(MEMORY):
            target.run(tmp_path, content)

    check()


def test_a_reader_that_hangs_or_takes_too_much_is_found_out(tmp_path):
    def spin(folder: Path) -> None:
        while True:
            pass

    def take(folder: Path) -> None:
        try:
            bytes(2 * MEMORY)
        except MemoryError as error:
            raise ValueError("damaged") from error

    for read, found in ((spin, Late), (take, MemoryError)):
        with pytest.raises(found), within(1), at_most(MEMORY):
            Target("file", read, list).run(tmp_path, b"")


# What was found, and bombs: small files that stand for more than a machine has


def npy_of(header: str) -> bytes:
    """An array that claims to be what its header says."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims so many pixels, and has one."""
    content = bytearray(pictures()[0])
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(content)


def packed(content: bytes, name: str = "normal.npy") -> bytes:
    """A zip file whose only member is packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def encrypted(content: bytes) -> bytes:
    """A zip file whose members claim to be encrypted."""
    changed = bytearray(content)
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := content.find(start, place + 1)) >= 0:
            changed[place + flags] |= 1
    return bytes(changed)


def mat_of(wordnet_id: str, more: int = 0) -> bytes:
    """A meta.mat whose classes are called so, with so many zeros beside them, packed."""
    file = io.BytesIO()
    synsets = np.array([(1, wordnet_id), (2, "n01443537")], dtype=[("ILSVRC2012_ID", int), ("WNID", object)])
    savemat(file, {"synsets": synsets, "more": np.zeros(more, np.uint8)}, do_compression=True)
    return file.getvalue()


def numpy_scalar(code: str) -> bytes:
    """A pickle of one value of a NumPy type, which NumPy fills with zeros."""
    text = b"X" + len(code).to_bytes(4, "little") + code.encode()
    return b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + text + b"\x85R\x85R."


def table_of(**changes: np.ndarray) -> bytes:
    """An accuracy table with other arrays."""
    header = json.loads(table_201()[0][8 : 8 + int.from_bytes(table_201()[0][:8], "little")])["__metadata__"]
    arrays = {"cells": np.zeros((1, 6), np.uint8), "cifar10_test_200": np.zeros(1, np.float32)}
    return save({**arrays, **changes}, header)


def checkpoint_of(**changes: str) -> bytes:
    """A checkpoint whose header says something else."""
    content = checkpoint()[0]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return safetensors.torch.save(safetensors.torch.load(content), {**header, **changes})


def changed(value: dict[str, Any], **changes: Any) -> bytes:
    return to_json({**value, **changes})


DEEP = b"[" * 100_000
METRICS = to_csv(search_rows())
MILLIONS = 1 << 25

#: of each finding and each bomb: the target, the file, and what its refusal says
REFUSED = {
    "a cell, deep": ("cell201", b'{"arch": ' + DEEP, "deeper than 50 levels"),
    "a cell that is no text": ("cell201", b'{"arch": 5}', "string of a cell"),
    "halves, deep": ("halves", b'{"train": ' + DEEP, "deeper than 50 levels"),
    "halves, large": ("halves", b" " * (1 << 22) + b"{}", "more than 4,194,304 bytes"),
    "a result, deep": ("result", b'{"accuracy": ' + DEEP, "deeper than 50 levels"),
    "a result without accuracy": ("result", changed(RESULT, accuracy=None), "no result of a retraining"),
    "a result whose accuracy is text": ("result", changed(RESULT, accuracy="high"), "no result of a retraining"),
    "a measurement that is nothing": ("eigenvalues_json", b"null", "does not say how"),
    "a card's huge number": ("card", changed(RESULT, multiply_adds=10**400), "more than 64 bits"),
    "a card's text that is none": ("card", changed(RESULT, classes=["\ud800"]), "surrogates not allowed"),
    "a long field": ("columns", METRICS + b"x" * 140_000, "field larger than field limit"),
    "a long line": ("metrics", b"1," * (1 << 20), "a line is too long"),
    "a picture without a name": ("kaggle", b"ImageId,PredictionString\n,n01443537 1\n", "expected a new picture"),
    "a picture elsewhere": ("kaggle", b"ImageId,PredictionString\n../a,n01443537 1\n", "expected a new picture"),
    "a class elsewhere": ("meta", mat_of("../../escaped"), "expected a WordNet ID"),
    "a packed meta.mat": ("meta", mat_of("n01440764", MILLIONS), "unpacks to more than"),
    "a number of a class, long": ("devkit", b"9" * 5000, "expected the number of a class"),
    "a date in YAML": ("config", b"data: 2001-01-01", "quotes make it text"),
    "a date in YAML that is none": ("config", b"data: !!timestamp x", "no plain YAML"),
    "aliases in YAML": ("config", f"provenance: {BOMB}]".encode(), "aliases stand for more"),
    "aliases in a table's YAML": ("grid", f"title: {BOMB}]".encode(), "aliases stand for more"),
    "an alias of itself": ("grid", b"title: &a [*a]", "aliases stand for more"),
    "code in YAML": ("config", b'data: !!python/object/apply:os.system ["touch escaped"]', "no plain YAML"),
    "YAML, deep": ("grid", b"[" * 200 + b"]" * 200, "deeper than 50 levels"),
    "settings in another file": ("config", to_yaml({**SEARCH, "config": "other.yaml"}), "config: unknown"),
    "truth in YAML that is none": ("grid", b"!!bool x", "no plain YAML"),
    "seeds without end": ("grid", changed(TABLE, scales={"small": {"seeds": 2**40}}), "1000 at most"),
    "a flag within a flag": ("grid", changed(TABLE, search={"save=elsewhere": 1}), "expected the name of a flag"),
    "a flag within a value": ("grid", changed(TABLE, search={"download": "--save=x"}), "expected the value of a flag"),
    "a flag that ends the script": ("grid", changed(TABLE, search={"print_config": True}), "the table itself gives"),
    "an array, unfinished": ("npy", npy_of("{'descr': '<f4', 'shape': (3, "), "no array normal"),
    "an array, immense": (
        "npy",
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 14, 7), }"),
        "cannot reshape",
    ),
    "an array of objects": (
        "npy",
        npy_of("{'descr': '|O', 'fortran_order': False, 'shape': (3, 14, 7), }") + pickle.dumps(print),
        "no array normal",
    ),
    "packed alphas": ("npz", packed(bytes(MILLIONS)), "is packed"),
    "encrypted alphas": ("npz", encrypted(npz(normal=np.zeros((3, 14, 7)))), "encrypted"),
    "a batch of numbers that are none": (
        "pickle",
        imagenet16_batches()[2].replace(b"X\x01\0\0\0|q", b"X\x01\0\0\0Oq"),
        "byte order 'O'",
    ),
    "a batch that calls": ("pickle", b"cos\nsystem\n(X\x0d\0\0\0touch escapedtR.", "os.system"),
    "PostScript called PNG": ("image", pictures()[-1], "cannot identify image file"),
    "a PNG of 3.6 gigapixels": ("image", png_of(60_000, 60_000), "decompression bomb"),
    "a PNG of 100 megapixels": ("image", png_of(10_000, 10_000), "expected 67,108,864 at most"),
    "a PNG that is a line": ("image", png_of(1, 60_000), "64:1"),
    "a NumPy string of a gigabyte": ("pth", numpy_scalar("S1000000000"), "cut short, or no file of torch"),
    "a pth that calls": ("pth", b"cos\nsystem\n(X\x0d\0\0\0touch escapedtR.", "does not read safely"),
    "a packed pth": ("pth_file", packed(bytes(MILLIONS), "archive/data.pkl"), "is packed"),
    "a table of unknown operations": ("table201", table_of(cells=np.full((1, 6), 9, np.uint8)), "no operations of six"),
    "a table of one cell twice": ("table201", table_of(cells=np.zeros((2, 6), np.uint8)), "a cell twice"),
    "a table without cells": ("table201", table_of(cells=np.zeros((0, 6), np.uint8)), "no operations of six"),
    "a table of other numbers": ("table201", table_of(more=np.zeros(1)), "more is not a number of each cell"),
    "a checkpoint of a deep state": ("checkpoint", checkpoint_of(state="[" * 400 + "]" * 400), "deeper than 50 levels"),
    "a checkpoint of no state": ("checkpoint", checkpoint_of(state="5"), "no checkpoint of a retraining"),
    "a checkpoint whose tensor is not there": (
        "checkpoint",
        checkpoint_of(state='{"state_dict": {"#tensor": "x"}}'),
        "do not belong together",
    ),
    "a packed CSV of empty lines": ("csv_gz", gzip.compress(b"arch,cifar10_test" + b"\n" * MILLIONS, 1), "the file is"),
    "a packed CSV of one line": ("csv_gz", gzip.compress(b"arch," * (MILLIONS // 5), 1), "a line is too long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_was_found_is_refused_for_its_reason_and_within_a_gigabyte(name, tmp_path):
    target, content, reason = REFUSED[name]
    target = TARGETS[target]
    target.prepare(tmp_path)
    with within(SECONDS), at_most(MEMORY):
        error = target.run(tmp_path, content)
    assert error is not None and reason in str(error), error


@contextlib.contextmanager
def at_most(memory: int) -> Iterator[None]:
    """Let this process have so many bytes beyond those that it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_cell_of_many_edges_is_read_in_linear_time():
    edges = [["skip_connect", 0], ["skip_connect", 1]] * 10_000
    text = json.dumps({"normal": edges, "normal_concat": [2], "reduce": edges, "reduce_concat": [2]})
    with within(SECONDS):
        assert len(parse_genotype(text).edges("normal")) == 20_000


def test_a_step_of_a_table_is_looked_for_in_its_folder_alone(tmp_path):
    for name, content in unit().items():
        path = tmp_path / "a" / name.replace("search/", "../outside/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "a/unit.json").write_bytes(changed(UNIT, steps={"../outside": {}, "retrain": {}}))
    entries, problems = load_entries([tmp_path / "a"])
    assert not problems and list(entries[0].epochs) == ["retrain"]


def test_a_message_is_one_line_whatever_it_says():
    assert one_line("a\nb\x0bc\u2028d \x1b[2J\ud800") == "a b c d \\x1b[2J\\ud800"
    assert len(one_line("x" * 10**6)) < 2000


def test_what_leaves_its_folder_is_noticed(tmp_path):
    (tmp_path / "in").mkdir()
    for leaves in (
        lambda: (tmp_path / "out").write_text("x"),
        lambda: (tmp_path / "out").mkdir(),
        lambda: list(tmp_path.iterdir()),
        lambda: (ROOT / "out").write_text("x"),
        lambda: subprocess.run(["true"], check=True),
    ):
        with pytest.raises(Escape), confined(tmp_path / "in"):
            leaves()
    with confined(tmp_path / "in"):
        (tmp_path / "in/file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and not (ROOT / "out").exists()
