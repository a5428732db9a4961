"""The search: its steps and schedules, its run folder, and interruptions."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from genotypes import load_genotype, make_genotype
from lib import datasets
from lib.objective import Objective, norm
from regularizers import regularized_gradient, weight_gradient
from search.metrics import History, Meters, entropy
from search.settings import SCRIPT
from search.state import SearchState
from search.train_search import Schedule, alpha_step, schedule, weight_step
from tests.helpers import SMALL, assert_same_run, batches_of, metrics, run_search, script_in_process, without_figures
from tools.kill_drill import scalars

#: few images, with two steps in each epoch
FEW = replace(SMALL, images=100, batch_size=25)
#: for tests of a single step
STEP = replace(SMALL, precision="64-true", init_channels=2, batch_size=32)


def start(settings=SMALL):
    return SearchState(settings, datasets.load(settings.dataset), torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_search(FEW, tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def no_figures():
    with without_figures():
        yield


def test_learning_rate_and_lambda_follow_their_schedules():
    settings = SCRIPT.settings_of("lambda-darts", epochs=50)
    assert schedule(settings, 0).learning_rate == 0.025
    assert schedule(settings, 25).learning_rate == pytest.approx(0.013)
    assert schedule(settings, 49).learning_rate == pytest.approx(0.001 + 0.012 * (1 + math.cos(math.pi * 0.98)))
    assert [schedule(settings, epoch).lambda_t for epoch in (0, 49)] == [0, 0.125]
    assert schedule(settings, 7).lambda_t == pytest.approx(0.125 / 7)
    assert schedule(replace(settings, epochs=1), 0).lambda_t == 0.125
    assert schedule(replace(settings, reg="none"), 49).lambda_t == 0


@pytest.mark.parametrize(("lambda_t", "grad_clip"), [(0.0, 1e6), (0.5, 0.1)])
def test_a_weight_step_is_clipped_sgd_on_the_loss_minus_lambda_times_the_alignment(lambda_t, grad_clip):
    state = start(replace(STEP, grad_clip=grad_clip))
    batch = state.cast(batches_of(state)[0])
    objective = Objective(state.supernet)
    before = [parameter.detach().clone() for parameter in state.supernet.parameters()]
    reference = regularized_gradient(objective, state.layer_weights(), batch, "corr", "exact")
    gradient = [g - lambda_t * r for g, r in zip(reference.gradient, reference.regularizer_gradient, strict=True)]
    scale = min(1.0, grad_clip / (norm(gradient).item() + 1e-6))
    alphas = [alpha.detach().clone() for alpha in state.architecture.parameters()]
    weight_step(state, objective, batch, Schedule(SMALL.learning_rate, lambda_t), layers=False)
    for parameter, start_value, g in zip(state.supernet.parameters(), before, gradient, strict=True):
        expected = start_value - SMALL.learning_rate * (scale * g + SMALL.weight_decay * start_value)
        torch.testing.assert_close(parameter.detach(), expected)
    assert all(torch.equal(a, b) for a, b in zip(alphas, state.architecture.parameters(), strict=True))


@pytest.mark.parametrize("hypergradient", ["first", "unrolled", "implicit"])
def test_an_alpha_step_is_adam_on_the_validation_gradient_and_leaves_the_weights_alone(hypergradient):
    state = start(replace(STEP, hypergradient=hypergradient))
    train_batch, valid_batch = map(state.cast, batches_of(state))
    objective = Objective(state.supernet)
    weights = [parameter.detach().clone() for parameter in state.supernet.parameters()]
    before = [alpha.detach().clone() for alpha in state.architecture.parameters()]
    meters = Meters(state.architecture, state.supernet.kinds, 0)
    meters.add_alpha_step(alpha_step(state, objective, train_batch, valid_batch, schedule(SMALL, 0)))
    assert all(torch.equal(a, b) for a, b in zip(weights, state.supernet.parameters(), strict=True))
    for alpha, start_value in zip(state.architecture.parameters(), before, strict=True):
        # Adam's first step has the length of the learning rate, against the sign of gradient + weight_decay * alpha
        gradient = alpha.grad + SMALL.arch_weight_decay * start_value
        expected = start_value - SMALL.arch_learning_rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(alpha.detach(), expected)
    assert len(meters.compute()["layer_gradient_norms"]) == SMALL.layers


def test_no_regularizer_pass_is_run_while_lambda_is_zero(monkeypatch):
    state = start()
    batch = batches_of(state)[0]
    passes = []
    objective = Objective(state.supernet)
    monkeypatch.setattr(state.supernet, "forward", lambda *a, f=state.supernet.forward: passes.append(1) or f(*a))
    weight_step(state, objective, batch, schedule(SMALL, 0), layers=False)
    assert len(passes) == 1
    state.settings = replace(SMALL, derivatives="difference")
    weight_step(state, objective, batch, Schedule(SMALL.learning_rate, 0.5), layers=False)
    assert len(passes) == 4


def test_measuring_layer_gradients_does_not_change_the_step():
    state = start()
    batch, objective = batches_of(state)[0], Objective(state.supernet)
    plain, measured = (weight_gradient(objective, state.layer_weights(), batch, layers) for layers in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain.gradient, measured.gradient, strict=True))
    assert not plain.layer_gradients and len(measured.layer_gradients) == 2


def test_entropy_is_the_mean_over_edges_of_a_distribution_or_of_independent_gates():
    weights = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert entropy(weights, sigmoid=False) == pytest.approx(math.log(2) / 2)
    gates = torch.tensor([[0.5, 0.5], [0.25, 1.0]])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(gates, sigmoid=True) == pytest.approx((2 * math.log(2) + quarter) / 2)


def test_lambda_zero_is_plain_darts_bit_for_bit(tmp_path, no_figures):
    settings = replace(FEW, epochs=2, init_channels=2)
    a = run_search(replace(settings, reg="corr", lambda_=0.0), tmp_path / "a")
    b = run_search(replace(settings, reg="none"), tmp_path / "b")
    assert_same_run(a, b)


def test_a_run_folder_holds_the_whole_run(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["space"] == "s2" and config["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(config["provenance"]["commit"]) >= 7 and config["provenance"]["command"].startswith("python ")
    rows = metrics(finished)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["lambda"] for row in rows] == ["0.0", "0.5", "1.0"]
    for row in rows:
        numbers = {name: float(value) for name, value in row.items() if value}
        assert all(map(math.isfinite, numbers.values()))
        assert {f"gradient_norm_layer_{layer}" for layer in range(4)} <= numbers.keys()
        assert -1 <= numbers["train_alignment"] <= 1 and -1 <= numbers["valid_alignment"] <= 1
        assert 0 < numbers["entropy_normal"] <= math.log(2) + 1e-6
        assert numbers["loss_gradient_norm"] > 0
    assert rows[0]["regularizer_gradient_norm"] == "" and float(rows[2]["regularizer_gradient_norm"]) > 0
    lines = [json.loads(line) for line in (finished / "genotypes.jsonl").read_text().splitlines()]
    assert [line.pop("epoch") for line in lines] == [1, 2, 3]
    final = load_genotype(str(finished))
    assert final == load_genotype(str(finished / "genotype.json")) == make_genotype(lines[-1])
    skips = sum(edge.operation == "skip_connect" for edge in final.edges("normal"))
    assert int(rows[-1]["skip_connect_normal"]) == skips
    with np.load(finished / "alphas.npz") as alphas:
        assert alphas["normal"].shape == alphas["reduce"].shape == (4, 14, 2)
        assert np.abs(alphas["normal"][0]).max() < 0.01
    for name in ("curves.png", "cells/normal.svg", "cells/reduce.gv", "cells/normal.png"):
        assert (finished / name).stat().st_size > 100
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == ["epoch_00002.ckpt", "epoch_00003.ckpt"]
    shown = dict(scalars(finished)[Path("tensorboard")]["train_loss"])
    assert shown == pytest.approx({epoch: float(row["train_loss"]) for epoch, row in enumerate(rows, 1)})


def test_a_figure_that_fails_gives_a_warning_and_the_cell_is_saved(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no figure today")

    monkeypatch.setattr("analysis.curves.plot_search", broken)
    run = run_search(replace(SMALL, epochs=1, reg="none"), tmp_path / "run")
    assert (run / "genotype.json").exists()
    assert f"no figures; draw the curves with python analysis/curves.py {run}" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, "between the checkpoint and the logs"])
def test_an_interrupted_and_resumed_run_ends_like_an_uninterrupted_one(
    finished, tmp_path, monkeypatch, no_figures, how
):
    run, add, write = tmp_path / "run", Meters.add_weight_step, History.write

    def stop_in_the_second_epoch(meters, *arguments):
        add(meters, *arguments)
        if meters.epoch == 1:
            os.kill(os.getpid(), how)

    def stop_before_the_logs(history, folder):
        if len(history.rows) == 2:
            raise KeyboardInterrupt
        write(history, folder)

    with monkeypatch.context() as patch:
        if isinstance(how, str):
            patch.setattr(History, "write", stop_before_the_logs)
        else:
            patch.setattr(Meters, "add_weight_step", stop_in_the_second_epoch)
        stopped = script_in_process("search/train_search.py", "--config", finished / "config.yaml", "--save", run)
    assert stopped.returncode == 130
    assert len(stopped.stderr.splitlines()) == 1 and f"python search/train_search.py --resume {run}" in stopped.stderr
    assert "\r" not in stopped.stdout and "\x1b" not in stopped.stdout  # there are no progress bars without a terminal
    assert not (run / "genotype.json").exists()
    resumed = script_in_process("search/train_search.py", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(finished, run)


@pytest.mark.parametrize(
    "changes",
    [
        {"reg": "noise"},
        {"reg": "signcorr", "cutout": True, "cutout_length": 2, "drop_path_prob": 0.2, "derivatives": "difference"},
        pytest.param({"hypergradient": "unrolled", "reg": "none"}, marks=pytest.mark.slow),
        {"precision": "bf16-mixed"},
    ],
)
def test_searches_with_other_settings_finish(tmp_path, no_figures, changes):
    comparing = "precision" not in changes  # finite differences are rejected in low precision
    settings = replace(FEW, epochs=2, init_channels=2, compare_derivatives=comparing, **changes)
    run = run_search(settings, tmp_path / "run")
    if comparing:
        assert abs(float(metrics(run)[0]["derivative_cosine"])) <= 1
    assert float(metrics(run)[1]["train_loss"]) < 3
