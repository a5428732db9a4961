"""Numerical faults: values that are not finite, saturated alphas and vanished gradients; and deterministic runs."""

from dataclasses import replace

import pytest
import torch

from lib import datasets
from lib.finite import FiniteCheck
from lib.progress import StepProgress
from lib.retraining import Retraining
from search import train_search
from search.metrics import new_warnings, saturated
from search.perturbation import Perturbation
from search.state import SearchState
from tests.helpers import RETRAINING, SMALL, assert_same_run, last_checkpoint, retrain, run_search, weights_of

TINY = replace(SMALL, init_channels=2, reg="none", epochs=2)
pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run_search(TINY, tmp_path_factory.mktemp("undisturbed") / "run")


def test_the_check_names_the_first_number_that_is_not_finite_with_its_epoch_and_step():
    checker = FiniteCheck(torch.device("cpu"))
    checker.add(0, 0, {"loss": torch.tensor(1.0), "gradient": torch.tensor(2.0)})
    with pytest.raises(FloatingPointError, match=r"^gradient is inf in epoch 3, step 8$"):
        checker.add(
            2, 7, {"loss": torch.tensor(1.0), "gradient": torch.tensor(torch.inf), "alpha": torch.tensor(torch.nan)}
        )


def test_on_a_gpu_the_check_runs_every_fifty_steps_and_before_a_checkpoint():
    checker = FiniteCheck(torch.device("cuda"))  # no tensor is on that device
    for step in range(49):
        checker.add(0, step, {"loss": torch.tensor(torch.nan if step >= 3 else 0.0)})
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1, step 4"):
        checker.check()
    for step in range(49):
        checker.add(1, step, {"loss": torch.tensor(torch.nan)})
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 2, step 1"):
        checker.add(1, 49, {"loss": torch.tensor(0.0)})


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("weights", "train_loss is nan in epoch 2, step 2"),
        ("weights' gradient", "gradient of the weights is inf in epoch 2, step 2"),
        ("alpha", "alpha is inf in epoch 2, step 2"),
    ],
)
def test_a_search_stops_at_the_first_number_that_is_not_finite(tmp_path, undisturbed, monkeypatch, what, named):
    """Without the fault, the run resumes from the previous checkpoint and ends like an undisturbed one."""
    run, calls = tmp_path / "run", []
    name = "alpha_step" if what == "alpha" else "weight_step"
    own = getattr(train_search, name)

    def step(state, objective, *batches, **named):
        calls.append(name)
        if len(calls) == 5:  # an epoch has three steps
            if what == "weights":
                with torch.no_grad():
                    next(state.supernet.parameters()).fill_(torch.nan)
            elif what == "weights' gradient":
                next(iter(objective.parameters)).register_hook(lambda gradient: gradient.fill_(torch.inf))
            else:
                state.alpha_optimizer.param_groups[0]["lr"] = torch.inf
        return own(state, objective, *batches, **named)

    with monkeypatch.context() as patch:
        patch.setattr(train_search, name, step)
        with pytest.raises(FloatingPointError, match=named):
            run_search(TINY, run)
    assert last_checkpoint(run).name == "epoch_00001.ckpt" and not (run / "genotype.json").exists()
    run_search(TINY, run, resumed=True)
    assert_same_run(undisturbed, run)


def test_a_selection_stops_if_a_loss_is_not_finite(monkeypatch):
    search = SearchState(TINY, datasets.load("digits"), torch.device("cpu"))
    state = Perturbation(search, lambda *arguments: None)
    with torch.no_grad():
        next(search.supernet.parameters()).fill_(torch.nan)
    with StepProgress("", 1, 0) as progress, pytest.raises(FloatingPointError, match="valid_loss is nan in stage 1"):
        state.run(("decide", 0), progress)


def test_a_retraining_stops_at_a_gradient_that_is_not_finite(tmp_path, monkeypatch):
    step = Retraining.training_step

    def spoil(module, batch, batch_idx):
        if module.current_epoch == 1 and batch_idx == 1:
            next(module.network.parameters()).register_hook(lambda gradient: gradient.fill_(torch.nan))
        return step(module, batch, batch_idx)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Retraining, "training_step", spoil)
        with pytest.raises(FloatingPointError, match="gradient_norm is nan in epoch 2, step 2"):
            retrain(RETRAINING, run)
    before = last_checkpoint(run).name
    retrain(RETRAINING, run, resumed=True)
    undisturbed = retrain(RETRAINING, tmp_path / "undisturbed")
    assert last_checkpoint(run).name == last_checkpoint(undisturbed).name > before
    assert weights_of(run) == weights_of(undisturbed)


def test_a_retraining_stops_if_the_test_loss_is_not_finite(tmp_path, monkeypatch):
    score = Retraining.validation_step

    def spoil(module, batch, batch_idx):
        score(module, batch._replace(images=batch.images * torch.nan), batch_idx)

    monkeypatch.setattr(Retraining, "validation_step", spoil)
    with pytest.raises(FloatingPointError, match="test_loss is nan in epoch 1"):
        retrain(RETRAINING, tmp_path / "run")


def test_an_edge_is_saturated_if_its_mixing_weights_are_near_0_and_1():
    softmax = torch.tensor([[0.995, 0.005], [0.98, 0.02], [0.001, 0.999], [0.5, 0.5]])
    assert saturated(softmax, sigmoid=False) == 0.5
    gates = torch.tensor([[0.995, 0.995], [0.995, 0.5], [0.005, 0.992], [0.0, 0.98]])
    assert saturated(gates, sigmoid=True) == 0.5


def row(saturated_normal=0.0, layers=(1.0, 1.0, 1.0)):
    return {"saturated_normal": saturated_normal, "saturated_reduce": 0.0} | {
        f"gradient_norm_layer_{layer}": norm for layer, norm in enumerate(layers)
    }


def test_each_warning_is_given_once():
    assert new_warnings([row(0.4), row(0.49)]) == []
    (said,) = new_warnings([row(0.4), row(0.5)])
    assert said.startswith("alpha is saturated: 50 % of the edges of the normal cell")
    assert new_warnings([row(0.5), row(0.6)]) == []
    (said,) = new_warnings([row(layers=(1.0, 0.0, 1.0)), row(layers=(1.0, 0.0, 1e-7))])
    assert said.startswith("the architecture gradient vanishes in layer 2:")


@pytest.mark.slow
def test_deterministic_runs_are_equal_bit_for_bit_and_equal_ordinary_runs_on_a_cpu(tmp_path):
    settings = replace(SMALL, epochs=1, init_channels=2)
    plain, first, second = (
        run_search(replace(settings, deterministic=on), tmp_path / name)
        for name, on in (("plain", False), ("first", True), ("second", True))
    )
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert_same_run(first, second)
    assert_same_run(plain, first)
    runs = [retrain(replace(RETRAINING, epochs=1, deterministic=on), tmp_path / f"r{on}") for on in (True, False)]
    assert weights_of(runs[0]) == weights_of(runs[1])
    assert not torch.are_deterministic_algorithms_enabled()
