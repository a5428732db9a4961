"""NAS-Bench-201: its cells, its networks, and the search among them."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import analysis.compare
import nasbench201.derive
import nasbench201.test
import nasbench201.train
import nasbench201.train_search
import selection
from analysis.compare import grouped
from analysis.curves import load_course, looked_up, plot_search
from benchmarks.plain import plain_supernet
from genotypes import Edge
from lib import datasets
from lib.cli import InputError
from lib.objective import Objective
from lib.progress import StepProgress
from model import size
from nasbench201.accuracies import open_table
from nasbench201.cells import EDGES, OPERATIONS, all_cells, load_cell, make_cell, parse_cell, table_dataset
from nasbench201.networks import Network201, Supernet201
from nasbench201.search201 import SearchState201
from nasbench201.series import mean_and_deviation
from nasbench201.settings import SCRIPT
from nasbench201.sources import build
from regularizers import aligned_layers, layer_alignment, regularized_gradient, weight_gradient
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
from tests.supernets import batch_and_weights, in_plain_order

CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
MIXED = "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|"
SKIPS = CONVOLUTIONS.replace("nor_conv_3x3", "skip_connect")
DOUBLE = torch.float64
#: of the smallest search on the command line: three steps
SMALLEST = {"dataset": "digits", "init_channels": 2, "cells_per_stage": 1, "batch_size": 256, "epochs": 1}
FLAGS = [*(f"--{name}={value}" for name, value in SMALLEST.items()), "--method=darts"]
pytestmark = pytest.mark.usefixtures("no_figures")


def start(settings):
    return SearchState201(settings, datasets.load(settings.dataset, settings.data), torch.device("cpu"))


# Cells


def test_every_cell_is_written_and_read_and_6466_of_them_differ():
    cells = list(all_cells())
    assert len({cell.arch for cell in cells}) == 5**6
    assert all(parse_cell(cell.arch) == cell and make_cell(cell.operations) == cell for cell in cells)
    assert len({cell.canonical() for cell in cells}) == 6466
    none_first = parse_cell("|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|none~0|skip_connect~1|skip_connect~2|")
    renamed = parse_cell("|none~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|")
    assert none_first.canonical() == renamed.canonical()


def test_the_string_gives_the_edges_as_the_paper_numbers_them():
    cell = parse_cell(MIXED)
    assert cell.operations == ("nor_conv_1x1", "none", "skip_connect", "avg_pool_3x3", "nor_conv_3x3", "none")
    assert cell.edges() == [
        Edge("nor_conv_1x1", 1, 0),
        Edge("skip_connect", 2, 1),
        Edge("avg_pool_3x3", 3, 0),
        Edge("nor_conv_3x3", 3, 1),
    ]
    assert parse_cell(cell.to_json()) == cell
    for text in ("", CONVOLUTIONS.replace("~2", "~1"), "{}", '{"arch": 3}'):
        with pytest.raises(ValueError, match=r"not a cell|expected a JSON object|the string of a cell"):
            parse_cell(text)


# Networks


def test_the_size_is_that_of_the_official_logs():
    with torch.device("meta"):
        counted = size(Network201(parse_cell(CONVOLUTIONS)))
    assert round(counted["params"] / 1e6, 3) == 1.532
    assert round(counted["multiply_adds"] / 1e6, 2) == 220.12


def plain_logits(supernet, images, weights, beta=0.0):
    """The plain supernet's logits from its modules, edge by edge, as section 2 of the paper has them."""

    def conv_bn(block, x):
        _, convolution, norm = block
        return norm(convolution(x.relu()))

    x = supernet.stem(images)
    layer = 0
    for stage in range(3):
        if stage:
            block = supernet.reductions[stage - 1]
            first, second = block.convolutions
            pooled = nn.functional.avg_pool2d(x, 2)
            x = conv_bn(second, conv_bn(first, x)) + block.shortcut[1](pooled)
        for cell in supernet.stages[stage]:
            states = {0: x, 1: 0, 2: 0, 3: 0}
            for edge, (source, target) in enumerate(EDGES):
                mixed, p, s = cell.edges.mixed_ops[edge], weights[layer][edge], states[source]
                states[target] = (
                    states[target]
                    + p[1] * s
                    + p[2] * conv_bn(mixed.operations[2], s)
                    + p[3] * conv_bn(mixed.operations[3], s)
                    + p[4] * nn.functional.avg_pool2d(s, 3, 1, 1, count_include_pad=False)
                    + beta * s
                )
            x = states[3]
            layer += 1
    return supernet.classifier(supernet.norm(x).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("auxiliary", ["none", "skip"])
def test_the_supernet_is_the_sum_of_its_operations_under_the_weights(auxiliary):
    torch.manual_seed(0)
    supernet = Supernet201(4, 2, 10, auxiliary_skip=auxiliary).double()
    plain = plain_supernet(supernet)
    batch, weights = batch_and_weights(supernet)
    logits = plain_logits(plain, batch.images, weights, 0.7 if auxiliary == "skip" else 0.0)
    torch.testing.assert_close(supernet(batch.images, weights, skip_beta=0.7), logits)
    measured = weight_gradient(Objective(supernet, skip_beta=0.7), weights, batch).gradient
    loss = nn.functional.cross_entropy(logits, batch.labels)
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    for gradient, known in zip(in_plain_order(supernet, plain, measured), expected, strict=True):
        torch.testing.assert_close(gradient, known)
    inside = [m for stage in plain.stages for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(inside) == 2 * 6 * 6
    assert not any(m.affine or m.track_running_stats for m in inside)


def test_the_supernet_at_one_hot_weights_is_the_network_of_that_cell():
    torch.manual_seed(0)
    cell = parse_cell(MIXED)
    supernet, network = Supernet201(4, 1).double(), Network201(cell, 4, 1).double()
    for name in ("stem", "reductions", "norm", "classifier"):
        getattr(network, name).load_state_dict(getattr(supernet, name).state_dict(), strict=False)
    numbers = [OPERATIONS.index(operation) for operation in cell.operations]
    kept = [edge for edge, number in enumerate(numbers) if number]
    for mixed, discrete in zip(plain_supernet(supernet).stages, network.stages, strict=True):
        for edge, operation in zip(kept, discrete[0].operations, strict=True):
            source = mixed[0].edges.mixed_ops[edge].operations[numbers[edge]]
            operation.load_state_dict(source.state_dict(), strict=False)
    one_hot = nn.functional.one_hot(torch.tensor(numbers), 5).double()
    images = torch.randn(2, 3, 9, 9, dtype=DOUBLE)
    torch.testing.assert_close(supernet(images, [one_hot] * 3), network(images)[0])


def test_drop_path_spares_identities():
    torch.manual_seed(0)
    network = Network201(parse_cell(SKIPS), 4, 1).train()
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(images, 0.9)[0], network(images, 0.0)[0])
    network = Network201(parse_cell(CONVOLUTIONS), 4, 1).train()
    assert not torch.allclose(network(images, 0.9)[0], network(images, 0.0)[0])


def test_all_cells_take_part_in_the_alignment():
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


# Search


def test_argmax_is_over_all_five_operations_and_a_threshold_leaves_none():
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
def test_the_weights_step_first_where_the_released_code_does_so(monkeypatch, weights_first):
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
    """Settings of a search on few images: two steps an epoch."""
    return {**few_images(tmp_path_factory.mktemp("images") / "data"), "epochs": 2}


#: what a method reports, beyond what all of them do
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
    # Interrupted after the first epoch: nothing of the second is left.
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


def test_the_benchmarks_halves_are_used(tmp_path):
    digits, path = datasets.load("digits"), tmp_path / "cifar-split.txt"
    halves = {name: [n for n in range(1437) if (n % 3 == 0) == (name == "train")] for name in ("train", "valid")}
    path.write_text(json.dumps({name: ["int", list(map(str, half[::-1]))] for name, half in halves.items()}))
    state = SearchState201(settings_of_201(dataset="cifar10", halves=str(path)), digits, torch.device("cpu"))
    assert torch.equal(state.train.images, digits.train.images[halves["train"]])
    assert torch.equal(state.valid.labels, digits.train.labels[halves["valid"]])
    path.write_text(json.dumps({"train": ["int", list(map(str, range(1436)))], "valid": ["int", ["1436"]]}))
    with pytest.raises(InputError, match="--batch_size: 256, but only 1 of the 1437 training images are for alpha"):
        SearchState201(settings_of_201(dataset="cifar10", halves=str(path)), digits, torch.device("cpu"))


def search_201(*flags):
    """nasbench201/train_search.py in this process."""
    run_main(nasbench201.train_search.main, *flags)


def test_a_stopped_series_of_seeds_goes_on_ends_like_one_that_was_not_and_is_compared(tmp_path, monkeypatch, capsys):
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
    assert [len(members) for members in grouped(courses).values()] == [2]
    other = courses[0]._replace(config={**courses[0].config, "derivatives": "exact"})
    assert list(grouped([*courses, other])) == ["darts, derivatives difference", "darts, derivatives exact"]
    run_main(analysis.compare.main, series, "--out", tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def made_table(tmp_path_factory):
    """A table in which a cell's accuracy is a function of its operations, and CIFAR-100 has only its test images."""
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
def test_the_data_set_whose_accuracies_are_looked_up(asked, searched, found):
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
    assert sum(expected in line for line in printed) == 2  # the epoch's line, and the last ones


def test_the_seeds_results_are_the_tables_and_a_moved_table_is_given_again(tmp_path, made_table, capsys):
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


def test_mean_and_deviation_are_the_samples():
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


def test_select_derives_a_cell_again(images, tmp_path):
    run = run_search_201(settings_of_201(**{**images, "epochs": 1}), tmp_path / "run")
    run_derive(run, "--selection", "perturbation", "--finetune_epochs", 0, main=nasbench201.derive.main)
    load_cell(str(run / "selections/perturbation"))
    assert (run / "selections/perturbation/scores.csv").exists()
