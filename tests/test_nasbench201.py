"""NAS-Bench-201: its cells, its networks, and the search among them."""

import json
import math
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import analysis.compare
import data
import nasbench201.train
import nasbench201.train_search
import train.test
from analysis.compare import grouped
from analysis.curves import load_course, plot_search
from benchmarks.plain import as_plain, plain_supernet
from cli import InputError
from genotypes import Edge
from gradients import Objective, regularized_gradient, weight_gradient
from model import size
from nasbench201.cells import EDGES, OPERATIONS, all_cells, load_cell, make_cell, parse_cell
from nasbench201.networks import Network, Supernet
from nasbench201.scores import mean_and_deviation
from nasbench201.search201 import Search201
from nasbench201.settings import preset_201
from nasbench201.sources import build
from nasbench201.table import open_table
from regularizers import layer_alignment
from search.bilevel import schedule
from search.perturbation import Perturbation
from tests.helpers import (
    assert_same_run,
    few_images,
    interrupt,
    metrics,
    run_main,
    run_search_201,
    run_select,
    settings_of_201,
)
from utils import StepProgress

CONVOLUTIONS = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
SKIPS = CONVOLUTIONS.replace("nor_conv_3x3", "skip_connect")
DOUBLE = torch.float64
#: of the smallest search on the command line: three steps
SMALLEST = {"dataset": "digits", "init_channels": 2, "cells_per_stage": 1, "batch_size": 256, "epochs": 1}
FLAGS = [*(f"--{name}={value}" for name, value in SMALLEST.items()), "--method=darts"]
pytestmark = pytest.mark.usefixtures("no_figures")


def start(settings):
    return Search201(settings, data.load(settings.dataset, settings.data), torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------------- cells


def test_every_cell_is_written_and_read_and_6466_of_them_differ():
    cells = list(all_cells())
    assert len({cell.arch for cell in cells}) == 5**6
    assert all(parse_cell(cell.arch) == cell and make_cell(cell.operations) == cell for cell in cells)
    assert len({cell.canonical() for cell in cells}) == 6466


def test_cells_that_compute_the_same_are_isomorphic_and_others_are_not():
    none_first = parse_cell("|none~0|+|nor_conv_3x3~0|nor_conv_1x1~1|+|none~0|skip_connect~1|skip_connect~2|")
    renamed = parse_cell("|none~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|nor_conv_1x1~1|skip_connect~2|")
    assert none_first.canonical() == renamed.canonical()
    assert parse_cell(CONVOLUTIONS).canonical() != parse_cell(SKIPS).canonical()


def test_the_string_gives_the_edges_as_the_paper_numbers_them():
    cell = parse_cell("|nor_conv_1x1~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|")
    assert cell.operations == ("nor_conv_1x1", "none", "skip_connect", "avg_pool_3x3", "nor_conv_3x3", "none")
    assert cell.edges() == [
        Edge("nor_conv_1x1", 1, 0),
        Edge("skip_connect", 2, 1),
        Edge("avg_pool_3x3", 3, 0),
        Edge("nor_conv_3x3", 3, 1),
    ]
    assert parse_cell(cell.to_json()) == cell


def test_a_text_that_is_no_cell_is_refused():
    changed = [CONVOLUTIONS.replace("3x3~2", "5x5~2"), CONVOLUTIONS.replace("~2", "~1"), CONVOLUTIONS + "|"]
    for text in ("", "|skip_connect~0|", *changed, "{}", '{"arch": 3}', '{"arch": '):
        with pytest.raises(ValueError, match=r"no cell|expected a JSON object|the string of a cell"):
            parse_cell(text)


# ---------------------------------------------------------------------------------------------------------- networks


def test_the_size_is_that_of_the_official_logs():
    with torch.device("meta"):
        counted = size(Network(parse_cell(CONVOLUTIONS)))
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
                mixed, p, s = cell.edges.edges[edge], weights[layer][edge], states[source]
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
    supernet = Supernet(4, 2, 10, auxiliary_skip=auxiliary).double()
    weights = [torch.rand(6, 5, dtype=DOUBLE) for _ in supernet.kinds]
    images = torch.randn(3, 3, 8, 8, dtype=DOUBLE)
    logits = supernet(images, weights, skip_beta=0.7)
    plain = plain_supernet(supernet)
    expected = plain_logits(plain, images, weights, 0.7 if auxiliary == "skip" else 0.0)
    torch.testing.assert_close(logits, expected)
    inside = [m for stage in plain.stages for m in stage.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(inside) == 2 * 6 * 6
    assert not any(m.affine for m in inside)
    assert not any(m.track_running_stats for m in inside)


def test_the_supernet_at_one_hot_weights_is_the_network_of_that_cell():
    torch.manual_seed(0)
    cell = parse_cell("|nor_conv_1x1~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_3x3~1|none~2|")
    supernet, network = Supernet(4, 1).double(), Network(cell, 4, 1).double()
    for name in ("stem", "reductions", "norm", "classifier"):
        getattr(network, name).load_state_dict(getattr(supernet, name).state_dict(), strict=False)
    numbers = [OPERATIONS.index(operation) for operation in cell.operations]
    kept = [edge for edge, number in enumerate(numbers) if number]
    for mixed, discrete in zip(plain_supernet(supernet).stages, network.stages, strict=True):
        for edge, operation in zip(kept, discrete[0].operations, strict=True):
            source = mixed[0].edges.edges[edge].operations[numbers[edge]]
            operation.load_state_dict(source.state_dict(), strict=False)
    one_hot = nn.functional.one_hot(torch.tensor(numbers), 5).double()
    images = torch.randn(2, 3, 9, 9, dtype=DOUBLE)
    torch.testing.assert_close(supernet(images, [one_hot] * 3), network(images)[0])


def test_drop_path_spares_identities():
    torch.manual_seed(0)
    network = Network(parse_cell(SKIPS), 4, 1).train()
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(images, 0.9)[0], network(images, 0.0)[0])
    network = Network(parse_cell(CONVOLUTIONS), 4, 1).train()
    assert not torch.allclose(network(images, 0.9)[0], network(images, 0.0)[0])


def test_all_cells_take_part_in_the_alignment():
    state = start(settings_of_201("lambda-darts-exact", cells_per_stage=2, precision="64-true"))
    objective = Objective(state.supernet)
    batch = state.cast(next(iter(state.batches(0)[0])))
    weights = [w.requires_grad_() for w in state.layer_weights()]
    loss, _ = objective(weights, batch)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    assert objective.aligned_layers == list(range(6))
    value = layer_alignment(gradients)
    expected = torch.autograd.grad(value, objective.parameters, materialize_grads=True)
    result = regularized_gradient(objective, state.layer_weights(), batch, "corr", "exact")
    for measured, known in zip(result.regularizer_gradient, expected, strict=True):
        torch.testing.assert_close(measured, known)


# ------------------------------------------------------------------------------------------------------------ search


def test_argmax_is_over_all_five_operations_and_a_threshold_leaves_none():
    state = start(settings_of_201("fair-darts", threshold=0.6))
    weights = np.full((6, 5), 0.1)
    strongest = [(0, 0.9), (1, 0.7), (2, 0.5), (3, 0.6), (4, 0.59), (0, 0.5)]
    for edge, (operation, weight) in enumerate(strongest):
        weights[edge, operation] = weight
    names = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none")
    assert state.derive({"cell": weights}, "argmax").operations == names
    sparse = ("none", "skip_connect", "none", "nor_conv_3x3", "none", "none")
    assert state.derive({"cell": weights}, "threshold_sparse").operations == sparse


def test_the_weights_step_first_where_the_released_code_does_so():
    batches = {}
    for weights_first in (False, True):
        state = start(settings_of_201("lambda-darts-exact", weights_first=weights_first, batch_size=300))
        order = []
        weight_step, alpha_step = state.weight_step, state.alpha_step
        state.weight_step = lambda *a, order=order, step=weight_step: (order.append("w"), step(*a))
        state.alpha_step = lambda *a, order=order, step=alpha_step: (order.append("alpha"), step(*a))
        state.run_epoch(0, schedule(state.settings, 0), StepProgress("run", 1, 0), "epoch")
        batches[weights_first] = order
    steps = len(batches[True]) // 2
    assert batches == {False: ["alpha", "w"] * steps, True: ["w", "alpha"] * steps}
    assert preset_201({"method": "lambda-darts"})["weights_first"]
    assert "weights_first" not in preset_201({"method": "darts"})


METHODS = {
    "darts": (),
    "darts-2nd": ("indirect_gradient_norm",),
    "lambda-darts": ("regularizer_gradient_norm",),
    "lambda-darts-exact": ("regularizer_gradient_norm",),
    "darts-minus": ("skip_beta",),
    "fair-darts": ("alpha_regularizer", "gates_over_threshold_cell"),
    "idarts": ("neumann_residual",),
    "darts-pt": (),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Settings of a search on few images: two steps an epoch."""
    return {**few_images(tmp_path_factory.mktemp("images") / "data"), "epochs": 2}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches_and_resumes_bit_for_bit(images, tmp_path, method):
    settings = settings_of_201(method, **images)
    whole = run_search_201(settings, tmp_path / "whole")
    rows = metrics(whole)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    assert all(rows[-1][name] for name in METHODS[method])
    load_cell(str(whole))
    # Interrupted after the first epoch: nothing of the second is left.
    part = tmp_path / "part"
    shutil.copytree(whole, part)
    sorted((part / "checkpoints").iterdir())[-1].unlink()
    for name in ("genotype.json", "genotypes.jsonl", "metrics.csv", "alphas.npz"):
        (part / name).unlink()
    shutil.rmtree(part / "perturbation", ignore_errors=True)
    run_search_201(settings, part, resumed=True)
    assert_same_run(whole, part)


def test_all_ideas_combine(images, tmp_path):
    ideas = {"reg": "corr", "hypergradient": "implicit", "relaxation": "sigmoid", "alpha_reg": "zero_one_l2"}
    run = run_search_201(settings_of_201("darts-minus", lambda_=0.5, **images, **ideas), tmp_path / "run")
    row = metrics(run)[-1]
    names = ("skip_beta", "regularizer_gradient_norm", "neumann_residual", "alpha_regularizer", "train_alignment")
    assert all(row[name] for name in names)


def test_perturbation_decides_every_edge_and_may_choose_none(images):
    state = start(settings_of_201("darts-pt", **images))
    selection = Perturbation(state, 1)
    assert [what for what, _ in selection.stages] == ["decide", "finetune"] * 5 + ["decide"]
    progress = StepProgress("selection", 1, 0)
    for stage in selection.stages:
        assert selection.steps(stage) == len(selection.batches) * 5 or stage[0] == "finetune"
        selection.run(stage, progress)
    assert {row["removed"] for row in selection.scores} == set(OPERATIONS)
    chosen = {(row["source"], row["target"]): row["removed"] for row in selection.scores if row["outcome"] == "kept"}
    assert selection.genotype().operations == tuple(chosen[edge] for edge in EDGES)


def test_the_benchmarks_halves_are_used(tmp_path, monkeypatch):
    digits = data.load("digits")
    numbers = list(range(len(digits.train)))
    halves = {"train": numbers[::3], "valid": sorted(set(numbers) - set(numbers[::3]))}
    path = tmp_path / "cifar-split.txt"
    path.write_text(json.dumps({name: ["int", [str(n) for n in half]] for name, half in halves.items()}))
    settings = settings_of_201(dataset="cifar10", halves=str(path))
    state = Search201(settings, digits, torch.device("cpu"))
    assert torch.equal(state.train.images, digits.train.images[halves["train"]])
    assert torch.equal(state.valid.labels, digits.train.labels[halves["valid"]])


def search_201(*flags):
    """nasbench201/train_search.py in this process."""
    run_main(nasbench201.train_search.main, *flags)


@contextmanager
def refused(*mentions):
    """Wrong input, with all of `mentions` in its one line."""
    with pytest.raises(InputError) as caught:
        yield
    assert "\n" not in str(caught.value)
    for mention in mentions:
        assert mention in str(caught.value)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A finished series of two seeds."""
    run = tmp_path_factory.mktemp("series") / "run"
    search_201(*FLAGS, "--seeds", 5, 6, "--save", run)
    return run


def assert_same_series(run, series):
    for seed in ("seed-5", "seed-6"):
        assert_same_run(run / seed, series / seed)
    assert (run / "results.json").read_text() == (series / "results.json").read_text()


def test_a_stopped_series_of_seeds_goes_on_and_ends_like_one_that_was_not(series, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    steps = len(Search201.batches(start(settings_of_201()), 0)[0])
    with monkeypatch.context() as patch:
        interrupt(patch, Search201, "weight_step", steps + 1)
        with pytest.raises(KeyboardInterrupt, match=f"--resume {run}$"):
            search_201(*FLAGS, "--seeds", 5, 6, "--save", run)
    assert "no --table" in capsys.readouterr().out
    assert (run / "seed-5/genotype.json").exists() and (run / "seed-6").exists()
    assert not (run / "results.json").exists()
    search_201("--resume", run)
    assert_same_series(run, series)
    cells = json.loads((run / "results.json").read_text())["cells"]
    assert [cell["seed"] for cell in cells] == [5, 6]
    assert [cell["arch"] for cell in cells] == [load_cell(str(run / f"seed-{seed}")).arch for seed in (5, 6)]


def test_the_seeds_of_a_series_are_compared_as_one_group(series, tmp_path, capsys):
    courses = [load_course(series / f"seed-{seed}") for seed in (5, 6)]
    assert [len(members) for members in grouped(courses).values()] == [2]
    other = courses[0]._replace(config={**courses[0].config, "derivatives": "exact"})
    assert list(grouped([*courses, other])) == ["darts, derivatives difference", "darts, derivatives exact"]
    picture = tmp_path / "compare.png"
    run_main(analysis.compare.main, series, "--out", picture)
    assert picture.stat().st_size > 10_000
    with refused("runs", "twice"):
        run_main(analysis.compare.main, series, series / "seed-5", "--out", tmp_path / "again.png")


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
    build([folder / "all.csv"], folder / "table.safetensors")
    return folder / "table.safetensors"


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


def test_the_seeds_results_are_the_tables(tmp_path, made_table, capsys):
    run = tmp_path / "run"
    search_201(*FLAGS, "--seeds", 1, "--table", made_table, "--save", run)
    printed = capsys.readouterr().out
    table = open_table(made_table)
    (cell,) = json.loads((run / "results.json").read_text())["cells"]
    index = table.index(parse_cell(cell["arch"]))
    assert cell["cifar100_test_200"] == table.accuracy(index, "cifar100", "test")
    assert f"{cell['cifar10_test_200']:.2f}" in printed and "table_rank" in printed
    assert "imagenet16_120_test_200" not in cell
    with refused("--table", "imagenet16_120", "the table has"):
        search_201(*FLAGS, "--table", made_table, "--table_dataset", "imagenet16_120", "--save", tmp_path / "b")


def test_a_cell_to_train_is_named_by_its_index_in_the_table(made_table):
    settings = nasbench201.train.TrainSettings(arch="77", table=str(made_table))
    assert nasbench201.train.find_cell(settings) == open_table(made_table).cell(77)


def test_a_table_with_gaps_is_refused_or_leaves_cells_empty(tmp_path, made_table):
    lines = made_table.with_name("all.csv").read_text().splitlines()
    (tmp_path / "part.csv").write_text("\n".join(lines[:50]) + "\n")
    build([tmp_path / "part.csv"], tmp_path / "part.safetensors")
    part = tmp_path / "part.safetensors"
    with refused("--table", "has 49 cells", "15,625"):
        search_201("--dataset", "digits", "--table", part, "--save", tmp_path / "run")
    state = start(settings_of_201(table=str(made_table)))
    cell = parse_cell(CONVOLUTIONS)
    assert state.measure(cell)["table_rank"] == 1
    state.table.columns["cifar10_test_200"] = np.where(np.arange(5**6) == state.table.index(cell), np.nan, 1.0)
    measured = state.measure(cell)
    assert [measured[f"table_{name}"] for name in ("test_accuracy", "rank", "regret")] == [None] * 3
    assert measured["table_valid_accuracy"] > 0


def test_a_series_refuses_seeds_of_other_settings_and_damaged_cells_and_finds_a_moved_table(tmp_path, made_table):
    run, table = tmp_path / "run", tmp_path / "table.safetensors"
    table.write_bytes(made_table.read_bytes())
    search_201(*FLAGS, "--seeds", 1, "--table", table, "--save", run)
    table.rename(tmp_path / "moved.safetensors")
    with refused("--table", "table.safetensors"):
        search_201("--resume", run)
    search_201("--resume", run, "--table", tmp_path / "moved.safetensors")
    config = (run / "config.yaml").read_text()
    edited = config.replace("method: darts", "method: idarts").replace("\nepochs: 1", "\nepochs: 2")
    (run / "config.yaml").write_text(edited)
    with refused("--resume", "seed-1", "epochs, method"):
        search_201("--resume", run)
    (run / "config.yaml").write_text(config)
    (run / "seed-1/genotype.json").write_text('{"arch": "|foo')
    with refused("--resume", "genotype.json"):
        search_201("--resume", run)


def test_mean_and_deviation_are_the_samples():
    assert mean_and_deviation([1.0, 2.0, 4.0]) == "2.33 ± 1.53"
    assert mean_and_deviation([93.761]) == "93.76"


def test_a_cell_is_trained_scored_and_resumed(tmp_path, capsys):
    flags = [f"--{name}={value}" for name, value in {**SMALLEST, "init_channels": 4, "epochs": 3}.items()]
    run = tmp_path / "run"
    run_main(nasbench201.train.main, "--arch", CONVOLUTIONS, *flags, "--device", "cpu", "--save", run)
    result = json.loads((run / "result.json").read_text())
    capsys.readouterr()
    run_main(train.test.main, run)
    assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(result["accuracy"])
    assert result["params"] == sum(p.numel() for p in Network(parse_cell(CONVOLUTIONS), 4, 1, 10, 1).parameters())
    run_main(nasbench201.train.main, "--resume", run)
    assert "is finished" in capsys.readouterr().out


def test_select_derives_a_cell_again(images, tmp_path):
    run = run_search_201(settings_of_201(**{**images, "epochs": 1}), tmp_path / "run")
    run_select(run, "--selection", "perturbation", "--finetune_epochs", 0)
    load_cell(str(run / "selections/perturbation"))
    assert (run / "selections/perturbation/scores.csv").exists()


def test_weight_gradient_is_that_of_the_loss():
    """The supernet is a plain function, so its gradient is autograd's of the plain loop."""
    state = start(settings_of_201(precision="64-true", cells_per_stage=2))
    batch = state.cast(next(iter(state.batches(0)[0])))
    objective = Objective(state.supernet)
    measured = weight_gradient(objective, state.layer_weights(), batch).gradient
    plain = plain_supernet(state.supernet)
    logits = plain_logits(plain, batch.images, state.layer_weights())
    loss = nn.functional.cross_entropy(logits, batch.labels)
    names = [name for name, _ in state.supernet.named_parameters()]
    cut = as_plain(state.supernet, dict(zip(names, measured, strict=True)))
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    for (name, _), gradient in zip(plain.named_parameters(), expected, strict=True):
        torch.testing.assert_close(cut[name], gradient)
