"""The accuracy table: its sources' figures, whatever they were read from, and one line for what cannot be used."""

import csv
import gzip
import json
import os
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nas_201_api import NASBench201API, ResultsCount
from nas_201_api.api_utils import ArchResults
from PIL import Image
from safetensors.numpy import load_file, save_file

from cli import InputError
from nasbench201.cells import all_cells, make_cell, parse_cell
from nasbench201.sources import build
from nasbench201.table import Table, main, open_table
from tests.helpers import ROOT, local_data, run_main, script

TABLE = "nasbench201/table.py"
ARCHS = [cell.arch for cell in all_cells()][4321:4326]
CONVOLUTIONS = make_cell(["nor_conv_3x3"] * 6)
SKIPS = make_cell(["skip_connect"] * 6)
TEST = ("cifar10", "cifar100", "imagenet16_120")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A table of all cells, built on the command line from the local copy."""
    folder = local_data() / "data" / "nasbench201"
    out = tmp_path_factory.mktemp("table") / "table.safetensors"
    sources = [folder / "epochs200.csv.gz", folder / "epochs12.csv.gz"]
    result = script(TABLE, "build", *sources, out, "--epochs", 200, 12)
    assert result.returncode == 0, result.stderr
    assert "15,625 cells, all of the space, 9 accuracies" in result.stdout
    return out


def write_csv(path, rows, header=("arch", "cifar10_valid", "cifar10_test")):
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rows_of(archs=ARCHS):
    return [[arch, 50 + i, 60.25 + i] for i, arch in enumerate(archs)]


@pytest.fixture
def small(tmp_path):
    """A table of five cells."""
    build([write_csv(tmp_path / "small.csv", rows_of())], tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def printed(capsys, *arguments):
    """The output of nasbench201/table.py."""
    capsys.readouterr()
    run_main(main, *arguments)
    return capsys.readouterr().out


# What the table says


def test_the_published_accuracies(published):
    table = open_table(published)
    assert len(table) == 15625
    assert table.cell(1462) == CONVOLUTIONS and table.cell(1835) == SKIPS
    for index, accuracies in ((1462, [93.76, 71.11, 41.44]), (1835, [54.30, 15.61, 16.32])):
        assert [round(table.accuracy(index, dataset, "test"), 2) for dataset in TEST] == accuracies
    for dataset, accuracy in zip(TEST, [94.37, 73.51, 47.31], strict=True):
        best = int(table.column(dataset, "test", 200).argmax())
        assert table.accuracy(best, dataset, "test") == pytest.approx(accuracy, abs=0.005)
        assert table.rank(best, dataset) == 1 and table.regret(best, dataset) == 0
    assert table.accuracy(1462, "cifar10", "valid", 12) == pytest.approx(69.078)
    assert table.regret(1835, "cifar10") == pytest.approx(94.3733 - 54.2967, abs=1e-3)


def test_every_cell_is_found_by_its_string_and_they_have_6466_forms(published):
    table = open_table(published)
    assert [table.index(parse_cell(table.cell(i).arch)) for i in range(15625)] == list(range(15625))
    forms = {}
    for index in range(15625):
        forms.setdefault(table.cell(index).canonical(), []).append(index)
    assert len(forms) == 6466
    most = max(forms.values(), key=len)
    assert table.isomorphic(most[-1]) == most


def test_equal_cells_share_the_best_rank_and_unknown_ones_have_none():
    accuracies = np.array([50, 70, 70, np.nan, 60], np.float32)
    cells = np.array([[i] * 6 for i in range(5)], np.uint8)
    table = Table(cells, {"cifar10_test_200": accuracies}, {}, {})
    assert [table.rank(i, "cifar10") for i in (0, 1, 2, 4)] == [4, 1, 1, 3]
    assert table.regret(0, "cifar10") == 20 and np.isnan(table.regret(3, "cifar10"))
    with pytest.raises(ValueError, match="not known"):
        table.rank(3, "cifar10")
    with pytest.raises(ValueError, match="index 5, expected 0 to 4"):
        table.cell(5)
    with pytest.raises(ValueError, match="not among the 5 cells"):
        table.index(make_cell(["none"] * 5 + ["skip_connect"]))
    with pytest.raises(ValueError, match="the table has after 200 epochs cifar10 test"):
        table.column("cifar10", "test", 12)


def test_sources_in_another_order_are_joined_by_cell(tmp_path):
    first = write_csv(tmp_path / "first.csv", rows_of())
    shuffled = [[*row[:1], 1 + row[1], 1 + row[2]] for row in rows_of()][::-1]
    second = write_csv(tmp_path / "second.csv.gz", shuffled)
    built = build([first, second], tmp_path / "t.safetensors", [200, 12])
    table = open_table(tmp_path / "t.safetensors")
    assert [table.cell(i).arch for i in range(5)] == ARCHS
    for split in ("valid", "test"):
        difference = table.column("cifar10", split, 12) - table.column("cifar10", split, 200)
        assert (difference == 1).all()
    assert [source["file"] for source in table.about["sources"]] == ["first.csv", "second.csv.gz"]
    for name, column in built.columns.items():
        np.testing.assert_array_equal(table.columns[name], column)


# The official layout

SETS = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}


def trial(dataset, arch, seed, epochs, generator, wrap=float):
    """The package's own record of one training, with random figures; `wrap` makes its parameters and multiply-adds."""
    per_epoch = [OrderedDict((i, generator.uniform(20, 90)) for i in range(epochs)) for _ in range(4)]
    config = {"channel": 16, "num_cells": 5, "arch_str": arch, "class_num": 10}
    result = ResultsCount(dataset, None, *per_epoch[:2], wrap(0.5), wrap(80.25), config, seed, epochs, [0.01])
    result.update_train_info(*per_epoch)
    keys = [f"{name}@{epoch}" for name in SETS[dataset] for epoch in range(epochs)]
    result.update_eval(*({key: generator.uniform(20, 90) for key in keys} for _ in range(3)))
    return result


def write_official(path, trained=lambda epochs: SETS, wrap=float, **options):
    """A file as the benchmark distributes it: of each cell the results of 12 and of 200 epochs."""
    generator = np.random.default_rng(0)
    infos = {}
    for index, arch in enumerate(ARCHS):
        states = {}
        for key, epochs in (("less", 12), ("full", 200)):
            results = ArchResults(index, arch)
            for dataset in trained(epochs):
                for seed in (777, 888, 999)[: 1 + index % 3]:
                    results.update(dataset, seed, trial(dataset, arch, seed, epochs, generator, wrap))
            states[key] = results.state_dict()
        infos[index] = states
    content = {"meta_archs": ARCHS, "arch2infos": infos, "evaluated_indexes": list(infos)}
    torch.save(content, path, **options)
    return content


# torch wrote no zip files in 2020, and NumPy 1 called its module numpy.core
@pytest.mark.parametrize(
    ("wrap", "zip_file", "module"),
    [(float, True, b""), (np.float64, False, b"numpy._core"), (np.float64, False, b"numpy.core")],
)
def test_the_official_layout_gives_the_mean_over_the_seeds(tmp_path, capsys, wrap, zip_file, module):
    content = write_official(tmp_path / "official.pth", wrap=wrap, _use_new_zipfile_serialization=zip_file)
    written = (tmp_path / "official.pth").read_bytes()
    assert (b"numpy._core.multiarray" in written) == bool(module)
    (tmp_path / "official.pth").write_bytes(written.replace(b"numpy._core", module or b"numpy._core"))
    run_main(main, "build", tmp_path / "official.pth", tmp_path / "t.safetensors")
    table = open_table(tmp_path / "t.safetensors")
    assert len(table.columns) == 4 * 3 * 2
    assert [table.cell(i).arch for i in range(5)] == ARCHS
    places = {
        ("cifar10", "valid"): ("cifar10-valid", "x-valid"),
        ("cifar10", "test"): ("cifar10", "ori-test"),
        ("cifar10", "train"): ("cifar10", None),
        ("cifar10-valid", "test"): ("cifar10-valid", "ori-test"),
        ("cifar100", "valid"): ("cifar100", "x-valid"),
        ("cifar100", "test"): ("cifar100", "x-test"),
        ("imagenet16_120", "valid"): ("ImageNet16-120", "x-valid"),
        ("imagenet16_120", "test"): ("ImageNet16-120", "x-test"),
        ("imagenet16_120", "train"): ("ImageNet16-120", None),
    }
    for key, epochs in (("less", 12), ("full", 200)):
        for (dataset, split), (trained_on, evaluated_on) in places.items():
            for index in range(5):
                trials = [
                    state["eval_acc1es"][f"{evaluated_on}@{epochs - 1}"]
                    if evaluated_on
                    else state["train_acc1es"][epochs - 1]
                    for (name, _), state in content["arch2infos"][index][key]["all_results"].items()
                    if name == trained_on
                ]
                assert len(trials) == 1 + index % 3
                assert table.accuracy(index, dataset, split, epochs) == pytest.approx(np.mean(trials), rel=1e-6)
    assert table.about["origins"]["cifar100_test_12"] == "official.pth: x-test of cifar100"
    said = json.loads(printed(capsys, "query", tmp_path / "t.safetensors", 2, "--json"))
    assert said["costs"]["cifar10_params"] == 0.5 and said["costs"]["imagenet16_120_madds"] == 80.25


def test_without_cifar10_after_12_epochs_the_half_is_taken_and_the_rest_is_not_known(tmp_path):
    # as in v1_0
    write_official(tmp_path / "v1_0.pth", lambda epochs: SETS if epochs == 200 else ["cifar10-valid"])
    table = build([tmp_path / "v1_0.pth"], tmp_path / "t.safetensors")
    np.testing.assert_array_equal(
        table.column("cifar10", "test", 12), NASBenchMeans(tmp_path / "v1_0.pth").of("cifar10-valid", "ori-test", 12)
    )
    assert table.about["origins"]["cifar10_test_12"].endswith("ori-test of cifar10-valid")
    assert table.about["origins"]["cifar10_test_200"].endswith("ori-test of cifar10")
    with pytest.raises(ValueError, match="no accuracies for cifar100, test, after 12 epochs"):
        table.column("cifar100", "test", 12)


class NASBenchMeans:
    """What the package itself answers, opened as its users do."""

    def __init__(self, path):
        self.api = NASBench201API(str(path), verbose=False)

    def of(self, dataset, split, epochs):
        means = [
            self.api.query_meta_info_by_index(index, str(epochs)).get_metrics(dataset, split)["accuracy"]
            for index in range(len(self.api))
        ]
        return np.array(means, np.float32)


class Marker:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_file_with_code_is_not_read_unless_trusted(tmp_path, capsys):
    content = write_official(tmp_path / "plain.pth", lambda epochs: ["cifar10"])
    content["arch2infos"][0]["full"]["arch_str"] = Marker(tmp_path / "executed")
    torch.save(content, tmp_path / "code.pth")
    command = ["build", tmp_path / "code.pth", tmp_path / "t.safetensors"]
    with pytest.raises(InputError, match=r"code\.pth.*mkdir.*--trust"):
        run_main(main, *command)
    assert not (tmp_path / "executed").exists() and not (tmp_path / "t.safetensors").exists()
    run_main(main, *command, "--trust")
    errors = capsys.readouterr().err
    assert "warning: --trust" in errors and "any code" in errors
    assert (tmp_path / "executed").exists() and len(open_table(tmp_path / "t.safetensors")) == 5


def test_a_pth_that_is_not_the_official_file_is_refused(tmp_path):
    write_official(tmp_path / "whole.pth", lambda epochs: ["cifar10"])
    write_official(tmp_path / "old.pth", lambda epochs: ["cifar10"], _use_new_zipfile_serialization=False)
    for name in ("whole", "old"):
        data = (tmp_path / f"{name}.pth").read_bytes()
        (tmp_path / f"{name}-cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.pth").write_text("no pickle\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"model": torch.zeros(3)}, tmp_path / "checkpoint.pth")
    incomplete = torch.load(tmp_path / "whole.pth")
    del incomplete["arch2infos"][3]
    torch.save(incomplete, tmp_path / "incomplete.pth")
    odd = torch.load(tmp_path / "whole.pth")
    odd["arch2infos"][1]["full"] = None
    torch.save(odd, tmp_path / "odd.pth")
    for name, mention in {
        "whole-cut": "cut short",
        "old-cut": "cut short",
        "text": "no file of torch",
        "empty": "cut short",
        "checkpoint": "expected the official file",
        "incomplete": "no results for 1 of 5 cells, the first of them 3",
        "odd": "not as NAS-Bench-201 stores",
    }.items():
        for trust in (False, True):
            with pytest.raises(ValueError, match=mention) as caught:
                build([tmp_path / f"{name}.pth"], tmp_path / "t.safetensors", trust=trust)
            assert f"{name}.pth" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "t.safetensors").exists()


# Bad input


def test_csvs_that_cannot_be_read_or_joined_are_refused(tmp_path):
    whole = write_csv(tmp_path / "whole.csv", rows_of())
    write_csv(tmp_path / "fewer.csv", rows_of(ARCHS[1:]))
    packed = write_csv(tmp_path / "packed.csv.gz", rows_of())
    (tmp_path / "cut.csv.gz").write_bytes(packed.read_bytes()[:-20])
    (tmp_path / "plain.csv.gz").write_bytes(whole.read_bytes())
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "short.csv").write_text(f"arch,cifar10_test\n{ARCHS[0]}\n")
    (tmp_path / "bare.csv").write_text("arch,cifar10_test\n")
    (tmp_path / "archs.csv").write_text(f"arch\n{ARCHS[0]}\n")
    out = tmp_path / "t.safetensors"
    for sources, epochs, mentions in [
        (["cut.csv.gz"], None, ["cut.csv.gz"]),
        (["plain.csv.gz"], None, ["plain.csv.gz", "gzip"]),
        (["binary.csv"], None, ["binary.csv"]),
        (["empty.csv"], None, ["empty.csv: no column arch"]),
        (["short.csv"], None, ["short.csv: line 2: 1 fields, expected 2"]),
        (["bare.csv"], None, ["bare.csv: no cells"]),
        (["archs.csv"], None, ["archs.csv", "cifar10_test"]),
        (["whole.csv", "fewer.csv"], [200, 12], ["fewer.csv: lacks 1 cells", "whole.csv", ARCHS[0]]),
        (["fewer.csv", "whole.csv"], [200, 12], ["fewer.csv: lacks 1 cells", "whole.csv", ARCHS[0]]),
        (["whole.csv", "packed.csv.gz"], None, ["packed.csv.gz: gives cifar10_valid_200 once more"]),
        (["whole.csv"], [200, 12], ["--epochs: 2 given for 1 CSV files"]),
        (["whole.csv"], [90], ["--epochs: 90, expected 12 or 200"]),
        (["whole.txt"], None, ["whole.txt: expected a .pth"]),
        (["absent.csv"], None, ["No such file", "absent.csv"]),
    ]:
        with pytest.raises((ValueError, OSError)) as caught:
            build([tmp_path / source for source in sources], out, epochs)
        for mention in mentions:
            assert mention in str(caught.value)
    assert not out.exists()


def test_a_damaged_table_is_refused(small, tmp_path):
    data = small.read_bytes()
    damaged = bytearray(data)
    damaged[-3] ^= 1
    other = tmp_path / "other"
    # the figures changed, the header's statement of them not
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    arrays = load_file(small)
    save_file({**arrays, "cifar10_test_200": arrays["cifar10_test_200"] + 1}, other, header)
    changed = other.read_bytes()
    save_file({"weight": np.zeros(3)}, other)
    foreign = other.read_bytes()
    for content, mentions in [
        (bytes(damaged), ["damaged: its checksum does not match", "build it again"]),
        (changed, ["damaged: its checksum does not match"]),
        (data[:-10], ["damaged", "build it again"]),
        (data[:100], ["damaged", "build it again"]),
        (b"", ["damaged", "build it again"]),
        (foreign, ["no table of this format"]),
    ]:
        other.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            open_table(other)
        for mention in mentions:
            assert mention in str(caught.value)


# The command line


def test_a_cell_is_named_by_its_index_its_string_or_a_run(small, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "genotype.json").write_text(parse_cell(ARCHS[3]).to_json())
    answers = [printed(capsys, "query", small, cell, "--json") for cell in (3, ARCHS[3], run)]
    assert len(set(answers)) == 1
    found = json.loads(answers[0])
    assert found["index"] == 3 and found["arch"] == ARCHS[3] and found["of"] == 5
    test = next(row for row in found["accuracies"] if row["split"] == "test")
    assert test["accuracy"] == 63.25 and test["rank"] == 2 and test["regret"] == 1
    text = printed(capsys, "query", small, 3)
    assert ARCHS[3] in text and "63.25" in text and "isomorphic cells" in text


def test_best_and_rank(small, capsys):
    best = json.loads(printed(capsys, "best", small, "--count", 2, "--json"))
    assert [(row["rank"], row["index"], row["accuracy"]) for row in best] == [(1, 4, 64.25), (2, 3, 63.25)]
    lines = printed(capsys, "rank", small, 0, ARCHS[4], "--split", "valid").splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["5", "0", "50.00", "4.00", ARCHS[0]],
        ["1", "4", "54.00", "0.00", ARCHS[4]],
    ]


def test_plot_writes_a_picture_of_the_cells(published, small, tmp_path):
    out = tmp_path / "all.png"
    run_main(main, "plot", published, out, 1462, SKIPS.arch, "--dataset", "imagenet16_120")
    assert Image.open(out).size == (1650, 840)
    # svg is text: fewer cells than the space, and none of skip connections only
    run_main(main, "plot", small, tmp_path / "small.svg", 2)
    assert (tmp_path / "small.svg").read_text().startswith("<?xml")


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of the memory is read from /proc")
def test_opening_is_quick_and_small_and_takes_no_torch(published):
    code = """
import re, sys, time
def peak():
    return int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
begin, before = time.perf_counter(), peak()
from nasbench201.table import open_table
table = open_table(sys.argv[1])
table.rank(1462, "cifar10")
seconds = time.perf_counter() - begin
print(seconds, peak() - before, *{"torch", "matplotlib", "rich", "jsonargparse"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(published)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, mebibytes, *heavy = result.stdout.split()
    # the bound of the seconds is for a busy machine: benchmarks/nasbench201_table.py has the figures
    assert float(seconds) < 1 and 0 < float(mebibytes) < 100 and not heavy
