"""NAS-Bench-201: searches, series of seeds, the table's accuracies of their cells, and retraining."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

import analysis.compare
import nasbench201.derive
import nasbench201.test
import nasbench201.train
import nasbench201.train_search
import selection
from analysis.compare import group_seeds
from analysis.curves import load_course, looked_up, plot_search
from lib import datasets
from lib.cli import InputError
from lib.objective import Objective
from lib.progress import StepProgress
from nasbench201.accuracies import open_table
from nasbench201.cells import EDGES, OPERATIONS, all_cells, load_cell, parse_cell, table_dataset
from nasbench201.networks import Network201
from nasbench201.search201 import SearchState201
from nasbench201.series import mean_and_deviation
from nasbench201.settings import SCRIPT
from nasbench201.sources import build
from regularizers import aligned_layers, layer_alignment, regularized_gradient
from search import train_search
from search.metrics import Meters
from search.perturbation import Perturbation
from search.train_search import run_epoch, schedule
from tests.helpers import (
    METHODS,
    assert_same_run,
    few_images,
    interrupt,
    metrics,
    run_derive,
    run_main,
    run_search_201,
    settings_of_201,
)
from tests.test_nasbench201 import CONVOLUTIONS

#: settings of the smallest search, which has three steps
SMALLEST = {"dataset": "digits", "init_channels": 2, "cells_per_stage": 1, "batch_size": 256, "epochs": 1}
FLAGS = [*(f"--{name}={value}" for name, value in SMALLEST.items()), "--method=darts"]
pytestmark = pytest.mark.usefixtures("no_figures")


def start(settings):
    return SearchState201(settings, datasets.load(settings.dataset, settings.data), torch.device("cpu"))


def test_the_alignment_includes_all_cells():
    state = start(settings_of_201("lambda-darts-exact", cells_per_stage=2, precision="64-true"))
    objective = Objective(state.supernet)
    batch = state.cast(next(iter(state.batches(0)[0])))
    weights = [w.requires_grad_() for w in state.layer_weights()]
    loss, _ = objective(weights, batch)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    assert aligned_layers(state.supernet.kinds) == list(range(6))
    value = layer_alignment(gradients)
    expected = torch.autograd.grad(value, objective.parameters, materialize_grads=True)
    result = regularized_gradient(objective, state.layer_weights(), batch, "corr", "exact")
    for measured, known in zip(result.regularizer_gradient, expected, strict=True):
        torch.testing.assert_close(measured, known)


def test_argmax_chooses_among_all_five_operations_and_a_threshold_falls_back_to_none():
    state = start(settings_of_201("fair-darts", threshold=0.6))
    weights = np.full((6, 5), 0.1)
    strongest = [(0, 0.9), (1, 0.7), (2, 0.5), (3, 0.6), (4, 0.59), (0, 0.5)]
    for edge, (operation, weight) in enumerate(strongest):
        weights[edge, operation] = weight
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none")

    def cell(rule):
        return state.assemble(selection.select(state.space, {"cell": weights}, rule, 0.6), pairs=False)

    assert cell("argmax").operations == names
    sparse = ("none", "skip_connect", "none", "nor_conv_3x3", "none", "none")
    assert cell("threshold_sparse").operations == sparse


@pytest.mark.parametrize("weights_first", [False, True])
def test_the_weights_step_first_if_the_released_code_does_so(monkeypatch, weights_first):
    state = start(settings_of_201("lambda-darts-exact", weights_first=weights_first, batch_size=300))
    order = []
    for name in ("weight_step", "alpha_step"):
        step = getattr(train_search, name)
        monkeypatch.setattr(
            train_search, name, lambda *a, name=name, step=step, **b: (order.append(name), step(*a, **b))[1]
        )
    run_epoch(state, 0, schedule(state.settings, 0), StepProgress("run", 1, 0), "epoch")
    first, second = ("weight_step", "alpha_step") if weights_first else ("alpha_step", "weight_step")
    assert order == [first, second] * (len(order) // 2) != []
    for method in ("lambda-darts", "darts"):
        assert SCRIPT.preset({"method": method, "released": True})["weights_first"]
        assert "weights_first" not in SCRIPT.preset({"method": method})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a search on few images, with two steps in each epoch."""
    return {**few_images(tmp_path_factory.mktemp("images") / "data"), "epochs": 2}


#: columns of metrics.csv that only some methods have
COLUMNS = {
    "darts-2nd": ["indirect_gradient_norm"],
    "lambda-darts": ["regularizer_gradient_norm"],
    "lambda-darts-exact": ["regularizer_gradient_norm"],
    "darts-minus": ["skip_beta"],
    "fair-darts": ["alpha_regularizer", "gates_over_threshold_cell"],
    "idarts": ["neumann_residual"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches_and_resumes_bit_for_bit(images, tmp_path, method):
    settings = settings_of_201(method, **images)
    whole, part = run_search_201(settings, tmp_path / "whole"), tmp_path / "part"
    rows = metrics(whole)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    assert all(rows[-1][name] for name in COLUMNS.get(method, ()))
    load_cell(str(whole))
    # Remove the results of the second epoch, as after an interruption.
    shutil.copytree(whole, part)
    sorted((part / "checkpoints").iterdir())[-1].unlink()
    for name in ("genotype.json", "genotypes.jsonl", "metrics.csv", "alphas.npz"):
        (part / name).unlink()
    shutil.rmtree(part / "perturbation", ignore_errors=True)
    run_search_201(settings, part, resumed=True)
    assert_same_run(whole, part)


def test_perturbation_decides_every_edge_and_may_choose_none(images):
    state = start(settings_of_201("darts-pt", finetune_epochs=1, **images))
    selection = Perturbation(state, lambda *arguments: None)
    assert [what for what, _ in selection.stages] == ["decide", "finetune"] * 5 + ["decide"]
    progress = StepProgress("selection", 1, 0)
    for stage in selection.stages:
        assert selection.steps(stage) == len(selection.batches()) * 5 or stage[0] == "finetune"
        selection.run(stage, progress)
    assert {row["removed"] for row in selection.scores} == set(OPERATIONS)
    chosen = {(row["source"], row["target"]): row["removed"] for row in selection.scores if row["outcome"] == "kept"}
    assert selection.cell().operations == tuple(chosen[edge] for edge in EDGES)


def test_the_images_are_split_into_the_benchmarks_halves(tmp_path):
    digits, path = datasets.load("digits"), tmp_path / "cifar-split.txt"
    halves = {name: [n for n in range(1437) if (n % 3 == 0) == (name == "train")] for name in ("train", "valid")}
    path.write_text(json.dumps({name: ["int", list(map(str, half[::-1]))] for name, half in halves.items()}))
    state = SearchState201(settings_of_201(dataset="cifar10", halves=str(path)), digits, torch.device("cpu"))
    assert torch.equal(state.train.images, digits.train.images[halves["train"]])
    assert torch.equal(state.valid.labels, digits.train.labels[halves["valid"]])
    path.write_text(json.dumps({"train": ["int", list(map(str, range(1436)))], "valid": ["int", ["1436"]]}))
    with pytest.raises(InputError, match="--batch_size: 256, but only 1 of the 1437 training images train alpha"):
        SearchState201(settings_of_201(dataset="cifar10", halves=str(path)), digits, torch.device("cpu"))


def search_201(*flags):
    """Run nasbench201/train_search.py in this process."""
    run_main(nasbench201.train_search.main, *flags)


def test_a_stopped_series_of_seeds_resumes_exactly_and_can_be_compared(tmp_path, monkeypatch, capsys):
    series, run = tmp_path / "series", tmp_path / "run"
    search_201(*FLAGS, "--seeds", 5, 6, "--save", series)
    steps = len(SearchState201.batches(start(settings_of_201()), 0)[0])
    with monkeypatch.context() as patch:
        interrupt(patch, Meters, "add_weight_step", steps + 1)
        with pytest.raises(KeyboardInterrupt, match=f"--resume {run}$"):
            search_201(*FLAGS, "--seeds", 5, 6, "--save", run)
    assert (run / "seed-5/genotype.json").exists() and (run / "seed-6").exists()
    assert not (run / "results.json").exists()
    search_201("--resume", run)
    for seed in ("seed-5", "seed-6"):
        assert_same_run(run / seed, series / seed)
    assert (run / "results.json").read_text() == (series / "results.json").read_text()
    cells = json.loads((run / "results.json").read_text())["cells"]
    assert [cell["seed"] for cell in cells] == [5, 6]
    assert [cell["arch"] for cell in cells] == [load_cell(str(run / f"seed-{seed}")).arch for seed in (5, 6)]

    courses = [load_course(series / f"seed-{seed}") for seed in (5, 6)]
    assert [len(members) for members in group_seeds(courses).values()] == [2]
    other = courses[0]._replace(config={**courses[0].config, "derivatives": "exact"})
    assert list(group_seeds([*courses, other])) == ["darts, derivatives difference", "darts, derivatives exact"]
    run_main(analysis.compare.main, series, "--out", tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def made_table(tmp_path_factory):
    """A table with accuracies that are a function of a cell's operations; CIFAR-100 has test accuracies only."""
    folder = tmp_path_factory.mktemp("table")
    value = dict(zip(OPERATIONS, (0, 1, 2, 3, 1.5), strict=True))
    lines = ["arch,cifar10_valid,cifar10_test,cifar100_test"]
    for cell in all_cells():
        points = sum((1 + edge) * value[operation] for edge, operation in enumerate(cell.operations))
        lines.append(f"{cell.arch},{points},{points + 20},{points / 2}")
    (folder / "all.csv").write_text("\n".join(lines) + "\n")
    build([folder / "all.csv"], folder / "table.npz", [200])
    return folder / "table.npz"


def test_every_epochs_cell_is_looked_up_in_the_table(tmp_path, made_table):
    run = run_search_201(settings_of_201("darts", table=str(made_table), epochs=3), tmp_path / "run")
    table = open_table(made_table)
    best = table.columns["cifar10_test_200"].max()
    cells = [parse_cell(json.loads(line)["arch"]) for line in (run / "genotypes.jsonl").read_text().splitlines()]
    rows = metrics(run)
    assert len(rows) == len(cells) == 3
    for row, cell in zip(rows, cells, strict=True):
        test = table.accuracy(table.index(cell), "cifar10", "test")
        assert float(row["table_test_accuracy"]) == test
        assert float(row["table_valid_accuracy"]) == test - 20
        assert float(row["table_regret"]) == best - test
        assert int(row["table_rank"]) == 1 + (table.columns["cifar10_test_200"] > test).sum()
    plot_search(run)
    assert (run / "curves.png").exists()


@pytest.mark.parametrize(
    ("asked", "searched", "found"),
    [
        ("auto", "cifar10", "cifar10"),
        ("auto", "digits", "cifar10"),
        ("auto", "cifar100", "cifar100"),
        ("auto", "imagenet16_120", "imagenet16_120"),
        ("cifar100", "digits", "cifar100"),
    ],
)
def test_the_accuracies_of_the_right_data_set_are_looked_up(asked, searched, found):
    assert table_dataset(asked, searched) == found
    titles = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet16_120": "ImageNet16-120"}
    assert looked_up({"dataset": searched, "table_dataset": asked}) == titles[found]


def test_the_log_names_the_data_set_that_is_looked_up(tmp_path, capsys):
    search_201(*FLAGS, "--table_dataset", "cifar100", "--save", tmp_path / "run")
    cell = load_cell(str(tmp_path / "run"))
    table = open_table()
    index = table.index(cell)
    accuracy, rank = table.accuracy(index, "cifar100", "test"), table.rank(index, "cifar100")
    printed = capsys.readouterr().out.splitlines()
    expected = f"CIFAR-100 accuracy in NAS-Bench-201 {accuracy:.2f} %, rank {rank:,}, regret "
    assert sum(expected in line for line in printed) == 2  # in the line of the epoch and at the end


def test_the_results_of_the_seeds_come_from_the_table_even_after_it_is_moved(tmp_path, made_table, capsys):
    run, path, moved = tmp_path / "run", tmp_path / "table.npz", tmp_path / "moved.npz"
    shutil.copy(made_table, path)
    search_201(*FLAGS, "--seeds", 1, "--table", path, "--save", run)
    printed = capsys.readouterr().out
    table = open_table(made_table)
    (cell,) = json.loads((run / "results.json").read_text())["cells"]
    index = table.index(parse_cell(cell["arch"]))
    assert cell["cifar100_test_200"] == table.accuracy(index, "cifar100", "test")
    assert f"{cell['cifar10_test_200']:.2f}" in printed and "CIFAR-10 accuracy in NAS-Bench-201 " in printed
    assert "imagenet16_120_test_200" not in cell
    with pytest.raises(InputError, match=r"--table.*imagenet16_120.*the table has"):
        search_201(*FLAGS, "--table", path, "--table_dataset", "imagenet16_120", "--save", tmp_path / "b")
    path.rename(moved)
    with pytest.raises(InputError, match=r"--table.*table\.npz"):
        search_201("--resume", run)
    search_201("--resume", run, "--table", moved)


def test_the_deviation_is_the_standard_deviation_of_a_sample():
    assert mean_and_deviation([1.0, 2.0, 4.0]) == "2.33 ± 1.53"


def test_a_cell_is_trained_scored_and_resumed(tmp_path, made_table, capsys):
    flags = [f"--{name}={value}" for name, value in {**SMALLEST, "init_channels": 4}.items()]
    run = tmp_path / "run"
    arch = open_table(made_table).index(parse_cell(CONVOLUTIONS))
    run_main(nasbench201.train.main, "--arch", arch, "--table", made_table, *flags, "--device", "cpu", "--save", run)
    result = json.loads((run / "result.json").read_text())
    capsys.readouterr()
    run_main(nasbench201.test.main, run)
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(result["accuracy"])
    assert result["params"] == sum(p.numel() for p in Network201(parse_cell(CONVOLUTIONS), 4, 1, 10, 1).parameters())
    run_main(nasbench201.train.main, "--resume", run)
    assert "is finished" in capsys.readouterr().out


def test_another_selection_derives_another_cell_from_a_search(images, tmp_path):
    run = run_search_201(settings_of_201(**{**images, "epochs": 1}), tmp_path / "run")
    run_derive(run, "--selection", "perturbation", "--finetune_epochs", 0, main=nasbench201.derive.main)
    load_cell(str(run / "selections/perturbation"))
    assert (run / "selections/perturbation/scores.csv").exists()
