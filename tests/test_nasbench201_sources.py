"""Building the accuracy table of NAS-Bench-201 from CSV files and from the official file."""

import json
import os

import numpy as np
import pytest
import torch
from nas_201_api import NASBench201API

from lib.cli import InputError
from nasbench201.accuracies import open_table
from nasbench201.sources import build
from nasbench201.table import main
from tests.accuracy_files import ARCHS, SETS, printed, write_csv, write_official
from tests.helpers import run_main

# CSV files


def test_sources_in_another_order_are_joined_by_cell(tmp_path):
    first = write_csv(tmp_path / "first.csv")
    second = write_csv(tmp_path / "second.csv.gz", ARCHS[::-1])
    build([first, second], tmp_path / "t.npz", [200, 12])
    table = open_table(tmp_path / "t.npz")
    assert [table.cell(i).arch for i in range(5)] == ARCHS
    for split, least in (("valid", 50), ("test", 60.25)):
        assert table.column("cifar10", split, 200).tolist() == [least + i for i in range(5)]
        assert table.column("cifar10", split, 12).tolist() == [least + i for i in range(5)][::-1]


def test_csv_files_with_a_byte_order_mark_and_quotes_are_read(tmp_path):
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
        ([50, 94.37], 12, "warning: cifar10_test_12: the best accuracy is 94.37 %; the benchmark's is 89.16 %"),
        ([50, 91.2], 12, ""),
        ([50, 94.37], 200, ""),
    ],
)
def test_accuracies_in_another_unit_or_of_another_budget_give_a_warning(tmp_path, capsys, accuracies, epochs, says):
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


# The official file


# The official file has torch's format before zip files, and NumPy 1's module name numpy.core.
@pytest.mark.parametrize(("wrap", "old"), [(float, False), (np.float64, True)])
def test_a_table_of_the_official_file_equals_the_official_package(tmp_path, capsys, wrap, old):
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


def test_missing_cifar10_results_are_replaced_by_those_of_training_on_half_of_the_images(tmp_path):
    # the file v1_0 has no CIFAR-10 results after 12 epochs
    content = write_official(tmp_path / "v1_0.pth", lambda epochs: SETS if epochs == 200 else ["cifar10-valid"])
    build([tmp_path / "v1_0.pth"], tmp_path / "t.npz")
    table, package = open_table(tmp_path / "t.npz"), NASBench201API(content, verbose=False)
    for index in range(5):
        for epochs, trained_on in ((12, "cifar10-valid"), (200, "cifar10")):
            known = package.get_more_info(index, trained_on, hp=str(epochs), is_random=False)["test-accuracy"]
            assert table.accuracy(index, "cifar10", "test", epochs) == pytest.approx(known, rel=1e-6)
    with pytest.raises(ValueError, match="no accuracies for cifar100, test, after 12 epochs"):
        table.column("cifar100", "test", 12)


def test_a_file_that_holds_code_is_rejected_without_trust(tmp_path, capsys):
    content = write_official(tmp_path / "plain.pth", lambda epochs: ["cifar10"])
    torch.save({**content, "code": os.getcwd}, tmp_path / "code.pth")
    command = ["build", tmp_path / "code.pth", tmp_path / "t.npz"]
    with pytest.raises(InputError, match=r"code\.pth.*getcwd.*--trust"):
        run_main(main, *command)
    assert not (tmp_path / "t.npz").exists()
    run_main(main, *command, "--trust")
    assert "warning: --trust" in capsys.readouterr().err
    assert len(open_table(tmp_path / "t.npz")) == 5


# Bad input; invocations.txt has more


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
