"""The accuracy table of NAS-Bench-201: its figures, the notations of cells, and the commands that read it."""

import hashlib
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from model import size
from nasbench201.accuracies import SHIPPED, Table, open_table
from nasbench201.cells import load_any, load_cell, make_cell, operations_of, parse_cell
from nasbench201.networks import Network201
from nasbench201.sources import build
from nasbench201.table import main
from tests.accuracy_files import ARCHS, printed, write_csv
from tests.helpers import ROOT, local_data, run_main, script, slowdown

TEST = ("cifar10", "cifar100", "imagenet16_120")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A table of all cells, built by nasbench201/table.py from a local copy of the published accuracies."""
    folder = local_data() / "data" / "nasbench201"
    out = tmp_path_factory.mktemp("table") / "table.npz"
    sources = [folder / "epochs200.csv.gz", folder / "epochs12.csv.gz"]
    result = script("nasbench201/table.py", "build", *sources, out, "--epochs", 200, 12)
    assert (result.returncode, result.stderr) == (0, "")
    assert "15,625 cells, all of the space, accuracies per cell: 9" in result.stdout
    return open_table(out)


@pytest.fixture
def small(tmp_path):
    """A table of five cells."""
    build([write_csv(tmp_path / "small.csv")], tmp_path / "small.npz", [200])
    return tmp_path / "small.npz"


def test_the_projects_table_has_the_published_accuracies_and_ranks():
    table = open_table()
    assert len(table) == 15625
    convolutions, skips = 1462, 1835
    assert table.cell(convolutions) == make_cell(["nor_conv_3x3"] * 6)
    assert table.cell(skips) == make_cell(["skip_connect"] * 6)
    for index, accuracies in ((convolutions, [93.76, 71.11, 41.44]), (skips, [54.30, 15.61, 16.32])):
        assert [round(table.accuracy(index, dataset, "test"), 2) for dataset in TEST] == accuracies
    for dataset, accuracy in zip(TEST, [94.37, 73.51, 47.31], strict=True):
        best = int(table.column(dataset, "test", 200).argmax())
        assert table.accuracy(best, dataset, "test") == pytest.approx(accuracy, abs=0.005)
        assert table.rank(best, dataset) == 1 and table.regret(best, dataset) == 0
    assert table.accuracy(convolutions, "cifar10", "valid", 12) == pytest.approx(69.078, abs=1e-3)
    assert table.regret(skips, "cifar10") == pytest.approx(94.3733 - 54.2967, abs=1e-3)
    assert [table.index(table.cell(index)) for index in range(0, 15625, 97)] == list(range(0, 15625, 97))
    forms = {}
    for index in range(len(table)):
        forms.setdefault(table.cell(index).canonical(), []).append(index)
    assert len(forms) == 6466
    most = max(forms.values(), key=len)
    assert table.isomorphic(most[-1]) == most


def test_the_projects_table_is_the_documented_file_and_opens_quickly():
    content = SHIPPED.read_bytes()
    documented = (ROOT / "docs/DEPENDENCIES.md").read_text()
    assert f"{len(content):,} bytes" in documented and hashlib.sha256(content).hexdigest() in documented
    assert len(content) < 400_000
    start = time.perf_counter()
    open_table()
    assert time.perf_counter() - start < 0.1 * slowdown()


def test_the_projects_table_rounds_the_published_accuracies_and_keeps_their_ranks(published):
    shipped = open_table()
    assert (shipped.cells == published.cells).all()
    assert shipped.available() == published.available() and len(shipped.available()) == 9
    ranks = []
    for asked in published.available():
        errors = np.abs(shipped.column(*asked) - published.column(*asked))
        assert errors.max() < 0.0007
        for values in (shipped.column(*asked), published.column(*asked)):
            ranks.append(len(values) - np.searchsorted(np.sort(values), values, side="right"))
        assert (ranks[-1] == ranks[-2]).all()


@pytest.mark.parametrize(("dataset", "classes", "pixels"), [("cifar10", 10, 32), ("imagenet16_120", 120, 16)])
def test_the_projects_table_has_the_sizes_of_the_networks(dataset, classes, pixels):
    table = open_table()
    for index in (0, 1462, 1835, 4711, 15624):
        with torch.device("meta"):
            cost = size(Network201(table.cell(index), classes=classes), 3, pixels)
        assert table.columns[f"{dataset}_params"][index] == pytest.approx(cost["params"] / 1e6)
        assert table.columns[f"{dataset}_madds"][index] == pytest.approx(cost["multiply_adds"] / 1e6)


@pytest.mark.parametrize(
    "text",
    [
        " | nor_conv_3x3~0 | + | skip_connect~1 | none~0 | + |avg_pool_3x3~2|none~0|nor_conv_1x1~1| ",
        "\ufeff|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|\n",
        "Structure(4 nodes with |nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|)",
        "((('nor_conv_3x3', 0),), (('none', 0), ('skip_connect', 1)),"
        " (('none', 0), ('nor_conv_1x1', 1), ('avg_pool_3x3', 2)))",
        '{"arch": "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|"}',
        "[[('nor_conv_3x3', 0)], [('skip_connect', 1), ('none', 0)],"
        " [('none', 0), ('avg_pool_3x3', 2), ('nor_conv_1x1', 1)]]",
    ],
)
def test_a_cell_is_read_in_every_usual_notation(text, tmp_path):
    cell = make_cell(["nor_conv_3x3", "none", "skip_connect", "none", "nor_conv_1x1", "avg_pool_3x3"])
    assert parse_cell(text) == load_cell(text) == load_any(text) == cell
    (tmp_path / "cell.txt").write_text(text)
    assert load_cell(str(tmp_path / "cell.txt")) == cell


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", r"sources \[\[0\], \[0, 0\], "),
        ("|none~0|+|none|none~1|+|none~0|none~1|none~2|", "expected a string such as"),
        (
            "((('none', 0),), (('none', 0), ('none', 1.5)), (('none', 0), ('none', 1), ('none', 2)))",
            "expected a string such",
        ),
        ("['none', 'none', 'none', 'none', 'none', 'none']", "expected a string such as"),
        ('{"arch":' + "[" * 99999, "expected a JSON object"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|conv~2|", "operation 'conv', expected one of none, skip_connect"),
        ("((('none', 0),),", "expected a string such as"),
        ("[1, 2, 3]", "expected a string such as"),
        ("(" * 9999, "expected a string such as"),
        ("(__import__('os').getcwd(),)", "expected a string such as"),
    ],
)
def test_text_that_is_not_a_cell_is_rejected(text, says):
    with pytest.raises(ValueError, match=says):
        parse_cell(text)


def test_equal_accuracies_share_the_best_rank_and_unknown_ones_have_none():
    accuracies = np.array([50, 70, 70, np.nan, 60], np.float32)
    table = Table(operations_of(map(parse_cell, ARCHS)), {"cifar10_test_200": accuracies})
    assert [table.rank(i, "cifar10") for i in (0, 1, 2, 4)] == [4, 1, 1, 3]
    assert table.regret(0, "cifar10") == 20 and np.isnan(table.regret(3, "cifar10"))
    with pytest.raises(ValueError, match="unknown"):
        table.rank(3, "cifar10")


def test_other_files_are_rejected_as_tables(small, tmp_path):
    with np.load(small) as file:
        whole = dict(file)
    np.save(tmp_path / "array.npy", whole["cells"])
    (tmp_path / "text.csv").write_text("arch,cifar10_test\n")
    others = {
        "foreign": {"weights": np.zeros(3)},
        "short": {**whole, "cifar10_test_200": np.zeros(3, np.float32)},
        "operation": {**whole, "cells": np.full((5, 6), 9, np.uint8)},
        "flat": {**whole, "cells": np.zeros(30, np.uint8)},
        "empty": {"cells": whole["cells"]},
    }
    for name, arrays in others.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for name in ("array.npy", "text.csv", *(f"{name}.npz" for name in others)):
        with pytest.raises(ValueError, match=rf"{name} is damaged or not a table; expected a file that"):
            open_table(tmp_path / name)
    assert len(open_table(small)) == 5


# The command line


def test_query_best_and_rank_print_accuracies_and_ranks(small, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/genotype.json").write_text(parse_cell(ARCHS[3]).to_json())
    answers = [printed(capsys, "query", cell, "--table", small, "--json") for cell in (3, ARCHS[3], tmp_path / "run")]
    assert len(set(answers)) == 1
    found = json.loads(answers[0])
    assert found["index"] == 3 and found["arch"] == ARCHS[3] and found["of"] == 5
    test = next(row for row in found["accuracies"] if row["split"] == "test")
    assert test["accuracy"] == 63.25 and test["rank"] == 2 and test["regret"] == 1
    text = printed(capsys, "query", 3, "--table", small)
    assert ARCHS[3] in text and "63.25" in text
    best = json.loads(printed(capsys, "best", "--table", small, "--count", 2, "--json"))
    assert [(row["rank"], row["index"], row["accuracy"]) for row in best] == [(1, 4, 64.25), (2, 3, 63.25)]
    heading, _, first, second = printed(capsys, "rank", 0, ARCHS[4], "--table", small, "--split", "valid").splitlines()
    assert heading == "CIFAR-10 valid accuracy after 200 epochs"
    assert first.split() == ["5", "0", "50.00", "4.00", ARCHS[0]]
    assert second.split() == ["1", "4", "54.00", "0.00", ARCHS[4]]


def test_every_command_reads_the_projects_table_by_default(capsys):
    assert "220.1197 M multiply-adds" in printed(capsys, "query", 1462)
    text = printed(capsys, "best", "--dataset", "cifar100", "--split", "valid", "--count", 1)
    assert text.startswith("CIFAR-100 valid accuracy after 12 epochs\n")  # the table has none after 200 epochs
    (best,) = json.loads(printed(capsys, "rank", 1462, "--json"))
    assert (best["dataset"], best["split"], best["epochs"], best["rank"]) == ("cifar10", "test", 200, 167)


def test_plot_writes_a_picture_of_the_accuracies(tmp_path):
    run_main(main, "plot", tmp_path / "all.png", 1462, 1835, "--dataset", "imagenet16_120")
    assert Image.open(tmp_path / "all.png").size == (1650, 840)


def test_opening_a_table_does_not_import_torch():
    code = "import sys; from nasbench201.accuracies import open_table; open_table().rank(1, 'cifar10'); "
    result = script("-c", code + "print('torch' in sys.modules)")
    assert result.stdout == "False\n", result.stderr
