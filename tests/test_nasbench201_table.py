"""The accuracy table: the figures of its sources, and one line for each kind of bad input."""

import csv
import gzip
import json
import os
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from nas_201_api import NASBench201API, ResultsCount
from nas_201_api.api_utils import ArchResults
from PIL import Image

from lib.cli import InputError
from model import size
from nasbench201.accuracies import SHIPPED, Table, open_table
from nasbench201.cells import all_cells, load_any, load_cell, make_cell, operations_of, parse_cell
from nasbench201.networks import Network201
from nasbench201.sources import build
from nasbench201.table import main
from tests.helpers import local_data, run_main, script, slower

ARCHS = [cell.arch for cell in all_cells()][4321:4326]
TEST = ("cifar10", "cifar100", "imagenet16_120")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A table of all cells, built on the command line from a local copy of the accuracies."""
    folder = local_data() / "data" / "nasbench201"
    out = tmp_path_factory.mktemp("table") / "table.npz"
    sources = [folder / "epochs200.csv.gz", folder / "epochs12.csv.gz"]
    result = script("nasbench201/table.py", "build", *sources, out, "--epochs", 200, 12)
    assert (result.returncode, result.stderr) == (0, "")
    assert "15,625 cells, all of the space, 9 accuracies" in result.stdout
    return open_table(out)


def write_csv(path, archs=ARCHS):
    rows = [[arch, 50 + i, 60.25 + i] for i, arch in enumerate(archs)]
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        csv.writer(file).writerows([("arch", "cifar10_valid", "cifar10_test"), *rows])
    return path


@pytest.fixture
def small(tmp_path):
    """A table of five cells."""
    build([write_csv(tmp_path / "small.csv")], tmp_path / "small.npz", [200])
    return tmp_path / "small.npz"


def printed(capsys, *arguments):
    """The output of nasbench201/table.py."""
    capsys.readouterr()
    run_main(main, *arguments)
    return capsys.readouterr().out


def test_the_projects_own_table():
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


def test_the_projects_own_table_is_small_and_opens_in_a_moment():
    assert SHIPPED.stat().st_size < 400_000
    start = time.perf_counter()
    open_table()
    assert time.perf_counter() - start < 0.1 * slower()


def test_the_projects_own_table_rounds_the_published_accuracies_and_keeps_their_ranks(published):
    shipped = open_table()
    assert (shipped.cells == published.cells).all()
    assert shipped.available() == published.available() and len(shipped.available()) == 9
    ranks = []
    for asked in published.available():
        errors = np.abs(shipped.column(*asked) - published.column(*asked).astype(np.float64))
        assert errors.max() < 1 / 1200 + 1e-5  # float32 holds the published figures
        for values in (shipped.column(*asked), published.column(*asked)):
            ranks.append(len(values) - np.searchsorted(np.sort(values), values, side="right"))
        assert (ranks[-1] == ranks[-2]).all()


@pytest.mark.parametrize(("dataset", "classes", "pixels"), [("cifar10", 10, 32), ("imagenet16_120", 120, 16)])
def test_the_projects_own_table_has_the_sizes_of_the_networks(dataset, classes, pixels):
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
def test_a_cell_is_read_in_the_forms_that_people_have(text, tmp_path):
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
def test_text_that_is_no_cell_is_rejected(text, says):
    with pytest.raises(ValueError, match=says):
        parse_cell(text)


def test_equal_cells_share_the_best_rank_and_unknown_ones_have_none():
    accuracies = np.array([50, 70, 70, np.nan, 60], np.float32)
    table = Table(operations_of(map(parse_cell, ARCHS)), {"cifar10_test_200": accuracies})
    assert [table.rank(i, "cifar10") for i in (0, 1, 2, 4)] == [4, 1, 1, 3]
    assert table.regret(0, "cifar10") == 20 and np.isnan(table.regret(3, "cifar10"))
    with pytest.raises(ValueError, match="unknown"):
        table.rank(3, "cifar10")


def test_sources_in_another_order_are_joined_by_cell(tmp_path):
    first = write_csv(tmp_path / "first.csv")
    second = write_csv(tmp_path / "second.csv.gz", ARCHS[::-1])
    build([first, second], tmp_path / "t.npz", [200, 12])
    table = open_table(tmp_path / "t.npz")
    assert [table.cell(i).arch for i in range(5)] == ARCHS
    for split, least in (("valid", 50), ("test", 60.25)):
        assert table.column("cifar10", split, 200).tolist() == [least + i for i in range(5)]
        assert table.column("cifar10", split, 12).tolist() == [least + i for i in range(5)][::-1]


def test_csv_files_of_other_programs_are_read(tmp_path):
    rows = [f'"{arch.replace("|+|", "| + |")}",{94 + i / 10}' for i, arch in enumerate(ARCHS)]
    (tmp_path / "bom.csv").write_text("\n".join(["arch,cifar10_test", *rows]), encoding="utf-8-sig")
    build([tmp_path / "bom.csv"], tmp_path / "t.npz", [200])
    table = open_table(tmp_path / "t.npz")
    assert [table.cell(i).arch for i in range(5)] == ARCHS
    assert table.accuracy(4, "cifar10", "test") == pytest.approx(94.4)


@pytest.mark.parametrize(
    ("accuracies", "epochs", "says"),
    [
        ([0.5, 0.9437], 200, "warning: cifar10_test_200: no accuracy is over 1; expected percent"),
        ([0.5, 0.9], 12, "warning: cifar10_test_12: no accuracy is over 1; expected percent"),
        ([50, 91.2], 200, "warning: cifar10_test_200: the best accuracy is 91.20 %; the benchmark's is 94.37 %"),
        ([50, 91.2], 12, ""),
        ([50, 94.37], 200, ""),
    ],
)
def test_accuracies_of_another_unit_or_budget_are_warned_of(tmp_path, capsys, accuracies, epochs, says):
    rows = [f"{arch},{accuracy}" for arch, accuracy in zip(ARCHS, accuracies, strict=False)]
    (tmp_path / "some.csv").write_text("\n".join(["arch,cifar10_test", *rows]))
    build([tmp_path / "some.csv"], tmp_path / "t.npz", [epochs])
    warned = capsys.readouterr().err
    assert warned.startswith(says) and bool(warned) == bool(says)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["arch,cifar10_test", f"{ARCHS[0]},93,07"], "a row has more fields than the header"),
        (["# from the logs", "arch,cifar10_test", f"{ARCHS[0]},93.07"], "a row has more fields|columns # from"),
        (["arch,cifar10_test", f"{ARCHS[0]},93.07", f"{ARCHS[0]},93.08"], "has two rows"),
    ],
)
def test_a_csv_file_that_would_be_misread_is_rejected(tmp_path, capsys, lines, says):
    (tmp_path / "odd.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"odd\.csv: .*({says})"):
        build([tmp_path / "odd.csv"], tmp_path / "t.npz", [12])
    assert capsys.readouterr().err == "" and not (tmp_path / "t.npz").exists()


def test_spaces_around_the_names_of_columns_are_ignored(tmp_path):
    (tmp_path / "spaced.csv").write_text(f"arch, cifar10_test\n{ARCHS[0]}, 93.07\n")
    build([tmp_path / "spaced.csv"], tmp_path / "t.npz", [12])
    assert open_table(tmp_path / "t.npz").accuracy(0, "cifar10", "test", 12) == pytest.approx(93.07)


def test_another_file_is_no_table(small, tmp_path):
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
    """Write a file in the official layout: the results of each cell after 12 and after 200 epochs, of 1 to 3 seeds."""
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


# The official file predates torch's zip files, and NumPy 1 called its module numpy.core.
@pytest.mark.parametrize(("wrap", "old"), [(float, False), (np.float64, True)])
def test_the_official_layout_gives_what_the_package_gives(tmp_path, capsys, wrap, old):
    content = write_official(tmp_path / "official.pth", wrap=wrap, _use_new_zipfile_serialization=not old)
    written = (tmp_path / "official.pth").read_bytes()
    assert (b"numpy._core.multiarray" in written) == old
    (tmp_path / "official.pth").write_bytes(written.replace(b"numpy._core", b"numpy.core"))
    run_main(main, "build", tmp_path / "official.pth", tmp_path / "t.npz")
    table, package = open_table(tmp_path / "t.npz"), NASBench201API(content, verbose=False)
    assert len(table.available()) == 4 * 3 * 2
    assert [table.cell(i).arch for i in range(5)] == ARCHS
    for dataset, split, epochs in table.available():
        official = {"imagenet16_120": "ImageNet16-120"}.get(dataset, dataset)
        trained_on = "cifar10-valid" if (dataset, split) == ("cifar10", "valid") else official
        for index in range(5):
            known = package.get_more_info(index, trained_on, hp=str(epochs), is_random=False)[f"{split}-accuracy"]
            assert table.accuracy(index, dataset, split, epochs) == pytest.approx(known, rel=1e-6)
    for seed, accuracy in table.seeds(2, "cifar100", "valid", 200).items():
        known = package.get_more_info(2, "cifar100", hp="200", is_random=seed)["valid-accuracy"]
        assert accuracy == pytest.approx(known)
    assert list(table.seeds(2, "cifar10", "test", 12)) == [777, 888, 999]
    assert list(table.seeds(0, "cifar10", "test")) == [777]
    assert "777: " in printed(capsys, "query", 2, "--table", tmp_path / "t.npz")
    costs = json.loads(printed(capsys, "query", 2, "--table", tmp_path / "t.npz", "--json"))["costs"]
    assert costs["cifar10_params"] == 0.5 and costs["imagenet16_120_madds"] == 80.25


def test_without_cifar10_after_12_epochs_the_half_is_taken_and_the_rest_is_unknown(tmp_path):
    # as in v1_0
    content = write_official(tmp_path / "v1_0.pth", lambda epochs: SETS if epochs == 200 else ["cifar10-valid"])
    build([tmp_path / "v1_0.pth"], tmp_path / "t.npz")
    table, package = open_table(tmp_path / "t.npz"), NASBench201API(content, verbose=False)
    for index in range(5):
        for epochs, trained_on in ((12, "cifar10-valid"), (200, "cifar10")):
            known = package.get_more_info(index, trained_on, hp=str(epochs), is_random=False)["test-accuracy"]
            assert table.accuracy(index, "cifar10", "test", epochs) == pytest.approx(known, rel=1e-6)
    with pytest.raises(ValueError, match="no accuracies for cifar100, test, after 12 epochs"):
        table.column("cifar100", "test", 12)


def test_a_file_with_code_is_not_read_unless_trusted(tmp_path, capsys):
    content = write_official(tmp_path / "plain.pth", lambda epochs: ["cifar10"])
    torch.save({**content, "code": os.getcwd}, tmp_path / "code.pth")
    command = ["build", tmp_path / "code.pth", tmp_path / "t.npz"]
    with pytest.raises(InputError, match=r"code\.pth.*getcwd.*--trust"):
        run_main(main, *command)
    assert not (tmp_path / "t.npz").exists()
    run_main(main, *command, "--trust")
    assert "warning: --trust" in capsys.readouterr().err
    assert len(open_table(tmp_path / "t.npz")) == 5


# Bad input; more of it is in invocations.txt


def test_sources_that_cannot_be_read_or_joined_are_rejected(tmp_path):
    content = write_official(tmp_path / "whole.pth", lambda epochs: ["cifar10"])
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({"model": torch.zeros(3)}, tmp_path / "checkpoint.pth")
    torch.save({**content, "arch2infos": {0: content["arch2infos"][0]}}, tmp_path / "incomplete.pth")
    write_csv(tmp_path / "whole.csv")
    write_csv(tmp_path / "fewer.csv", ARCHS[1:])
    (tmp_path / "bare.csv").write_text("arch,cifar10_test\n")
    (tmp_path / "cut.csv.gz").write_bytes(write_csv(tmp_path / "packed.csv.gz").read_bytes()[:-20])
    for sources, reason in [
        (["cut.pth"], r"cut\.pth.*damaged"),
        (["checkpoint.pth"], r"checkpoint\.pth.*expected the official"),
        (["incomplete.pth"], r"incomplete\.pth.*wrong format"),
        (["cut.csv.gz"], r"cut\.csv\.gz"),
        (["bare.csv"], r"bare\.csv: no rows"),
        (["whole.csv", "fewer.csv"], r"fewer\.csv.*differ from those of.*whole\.csv \(4 and 5\)"),
    ]:
        epochs = [200, 12][: sum(".csv" in source for source in sources)]
        with pytest.raises((ValueError, OSError), match=reason):
            build([tmp_path / source for source in sources], tmp_path / "t.npz", epochs)
    assert not (tmp_path / "t.npz").exists()


# The command line


def test_query_best_and_rank(small, tmp_path, capsys):
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


def test_every_command_has_a_table_of_its_own(capsys):
    assert "220.1197 M multiply-adds" in printed(capsys, "query", 1462)
    text = printed(capsys, "best", "--dataset", "cifar100", "--split", "valid", "--count", 1)
    assert text.startswith("CIFAR-100 valid accuracy after 12 epochs\n")  # there are none after 200
    (best,) = json.loads(printed(capsys, "rank", 1462, "--json"))
    assert (best["dataset"], best["split"], best["epochs"], best["rank"]) == ("cifar10", "test", 200, 167)


def test_plot_writes_a_picture_of_the_cells(tmp_path):
    run_main(main, "plot", tmp_path / "all.png", 1462, 1835, "--dataset", "imagenet16_120")
    assert Image.open(tmp_path / "all.png").size == (1650, 840)


def test_a_table_is_opened_without_torch():
    code = "import sys; from nasbench201.accuracies import open_table; open_table().rank(1, 'cifar10'); "
    result = script("-c", code + "print('torch' in sys.modules)")
    assert result.stdout == "False\n", result.stderr
