"""DARTS-, FairDARTS and iDARTS against independent computations, and the presets of all methods."""

import math
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from architect import implicit, neumann
from benchmarks.plain import plain_supernet
from fast_edges import FastEdges
from lib import datasets
from lib.batches import Batch
from lib.objective import Objective, norm
from lib.progress import StepProgress
from model_search import Supernet
from operations import FactorizedReduce
from regularizers import regularized_gradient
from search import train_search
from search.methods import preset
from search.metrics import Meters
from search.settings import SCRIPT, SearchSettings
from search.state import SearchState
from search.train_search import Schedule, alpha_step, run_epoch, schedule
from spaces import SPACES
from tests.supernets import problem, randomize_alpha, relative_error

EDGES = SPACES["s5"].edges

DOUBLE = torch.float64


def start(**changes):
    """A small search on the digits."""
    settings = SearchSettings(
        dataset="digits", layers=4, init_channels=4, device="cpu", **{"space": "s2", "batch_size": 256, **changes}
    )
    return SearchState(settings, datasets.load("digits"), torch.device("cpu"))


# DARTS-


def single_edge(candidates, stride, auxiliary):
    """A cell with one edge, and the plain version of that edge."""
    cell = FastEdges([(0, 1)], [candidates], 4, [stride], auxiliary).double()
    return cell, plain_supernet(nn.Sequential(cell, nn.Linear(1, 1).double()))[0].mixed_ops[0]


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(("auxiliary", "stride"), [("skip", 1), ("skip", 2), ("conv1", 1)])
def test_an_edge_adds_beta_times_the_auxiliary_skip_to_its_mixture(auxiliary, stride, beta):
    torch.manual_seed(0)
    cell, edge = single_edge(SPACES["s5"].cells["normal"][0], stride, auxiliary)
    x, p = torch.randn(3, 4, 6, 6, dtype=DOUBLE), torch.rand(7, dtype=DOUBLE)
    mixture = torch.zeros(3, 4, 6 // stride, 6 // stride, dtype=DOUBLE)
    for weight, operation in zip(p.tolist(), edge.operations, strict=True):
        mixture += weight * operation(x)
    # the 1x1 convolution is initialized as the identity
    shortcut = x if stride == 1 else edge.auxiliary(x)
    _, measured = cell([x], p[None], 0.0, beta)
    torch.testing.assert_close(measured, mixture + beta * shortcut, rtol=1e-12, atol=1e-12)
    assert (beta == 0) == torch.allclose(measured, mixture)


def test_the_auxiliary_convolution_has_weights_and_an_identity_has_none():
    candidates = ("max_pool_3x3",)
    (weight,) = single_edge(candidates, 1, "conv1")[0].parameters()
    assert weight.shape == (4, 4, 1, 1) and weight.requires_grad
    assert list(single_edge(candidates, 1, "skip")[0].parameters()) == []
    for auxiliary in ("skip", "conv1"):
        assert isinstance(single_edge(candidates, 2, auxiliary)[1].auxiliary, FactorizedReduce)


def test_the_auxiliary_skip_equals_a_larger_weight_of_the_skip_connection_on_every_edge():
    """If both reductions have equal weights, p_skip op(x) + beta op(x) = (p_skip + beta) op(x)."""
    torch.manual_seed(0)
    with_skip, beta = Supernet(SPACES["s2"], 4, 4, auxiliary_skip="skip").double(), 0.7
    for cell in with_skip.cells:
        for source, auxiliary in cell.edges.auxiliaries.items():
            if auxiliary.reduce is not None:
                auxiliary.reduce.load_state_dict(cell.edges.operations[source][-1].state_dict())
    plain = Supernet(SPACES["s2"], 4, 4).double()
    plain.load_state_dict({name: value for name, value in with_skip.state_dict().items() if "auxiliaries" not in name})
    images = torch.randn(4, 3, 8, 8, dtype=DOUBLE)
    weights = [torch.rand(14, 2, dtype=DOUBLE) for _ in with_skip.kinds]
    larger = [w + torch.tensor([beta, 0.0], dtype=DOUBLE) for w in weights]
    torch.testing.assert_close(with_skip(images, weights, 0.0, beta), plain(images, larger), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain(images, larger), plain(images, weights))


@pytest.mark.parametrize(
    ("decay", "middle", "last"),
    [
        ("linear", 0.5, 1 / 50),
        ("cosine", 0.5, (1 + math.cos(49 * math.pi / 50)) / 2),
        ("slow_cosine", math.sqrt(0.5), math.cos(49 * math.pi / 100)),
    ],
)
def test_beta_decays_to_zero_as_in_the_paper(decay, middle, last):
    settings = SearchSettings(auxiliary_skip="skip", skip_beta=0.4, decay=decay, epochs=50)
    measured = [schedule(settings, epoch).skip_beta for epoch in (0, 25, 49)]
    assert measured == pytest.approx([0.4, 0.4 * middle, 0.4 * last], rel=1e-12)
    assert schedule(settings, 50).skip_beta == pytest.approx(0, abs=1e-15)
    assert schedule(replace(settings, auxiliary_skip="none"), 0).skip_beta == 0


# FairDARTS


@pytest.mark.parametrize("kind", ["none", "zero_one_l2", "zero_one_l1"])
def test_an_alpha_step_descends_the_validation_loss_and_the_weighted_zero_one_loss(kind):
    w01 = 10.0
    state = start(relaxation="sigmoid", alpha_reg=kind, alpha_reg_weight=w01, batch_size=64, precision="64-true")
    randomize_alpha(state.architecture)
    train_batch, valid_batch = (state.cast(next(iter(batches))) for batches in state.batches(0))
    objective = Objective(state.supernet)
    alphas = {kind: alpha.detach().clone().requires_grad_() for kind, alpha in state.architecture.alphas.items()}
    loss, _ = objective([alphas[layer].sigmoid() for layer in state.supernet.kinds], valid_batch)
    expected = torch.autograd.grad(loss, list(alphas.values()))
    if kind != "none":
        n = sum(alpha.numel() for alpha in alphas.values())
        p = [alpha.detach().sigmoid() for alpha in alphas.values()]
        far = [2 * (q - 0.5) if kind == "zero_one_l2" else (q - 0.5).sign() for q in p]
        pulls = [-w01 * f * q * (1 - q) / n for f, q in zip(far, p, strict=True)]
        assert norm(pulls) > 0.01 * norm(expected)
        expected = [g + pull for g, pull in zip(expected, pulls, strict=True)]

    alpha_step(state, objective, train_batch, valid_batch, schedule(state.settings, 0))
    lr, decay = state.settings.arch_learning_rate, state.settings.arch_weight_decay
    for alpha, old, gradient in zip(state.architecture.parameters(), alphas.values(), expected, strict=True):
        torch.testing.assert_close(alpha.grad, gradient, rtol=1e-9, atol=1e-12)
        slope = gradient + decay * old.detach()
        # the first step of Adam
        torch.testing.assert_close(alpha.detach(), old.detach() - lr * slope / (slope.abs() + 1e-8), rtol=0, atol=1e-9)


# iDARTS


def test_every_term_brings_the_neumann_series_closer_to_the_inverse():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=DOUBLE, generator=generator)
    hessian = root @ root.T + torch.eye(6, dtype=DOUBLE)
    vector = torch.randn(6, dtype=DOUBLE, generator=generator)
    exact = torch.linalg.solve(hessian, vector)
    gamma = 1 / torch.linalg.eigvalsh(hessian).max().item()

    def product(parts):
        return (hessian @ torch.cat(list(parts))).split([2, 4])

    errors = []
    for terms in range(11):
        total, last = neumann(product, vector.split([2, 4]), gamma, terms)
        contraction = torch.linalg.matrix_power(torch.eye(6, dtype=DOUBLE) - gamma * hessian, terms)
        torch.testing.assert_close(torch.cat(last), contraction @ vector, rtol=1e-10, atol=1e-12)
        errors.append((gamma * torch.cat(total) - exact).norm().item())
    assert all(later < earlier for earlier, later in pairwise(errors))
    total, _ = neumann(product, vector.split([2, 4]), gamma, 2000)
    torch.testing.assert_close(gamma * torch.cat(total), exact, rtol=1e-8, atol=1e-8)


def test_the_implicit_gradient_of_a_supernet_equals_direct_differentiation():
    """For K = 1, s = 2 v_0 - gamma H v_0, where H v_0 is the gradient of <grad_w L_train, v_0>.

    Both the exact derivatives and the finite differences are compared.
    """
    objective, architecture, weights, train_batch, valid_batch = problem(layers=3)
    gamma, mixing = 0.1, architecture.mixing_weights()
    alphas, shared = list(architecture.parameters()), [mixing[kind] for kind in objective.supernet.kinds]
    valid_loss, _ = objective(shared, valid_batch)
    direct = torch.autograd.grad(valid_loss, alphas, retain_graph=True)
    v_0 = torch.autograd.grad(valid_loss, objective.parameters, retain_graph=True)
    train_loss, _ = objective(shared, train_batch)
    slopes = torch.autograd.grad(train_loss, objective.parameters, create_graph=True)
    h = torch.autograd.grad(
        sum((g * v).sum() for g, v in zip(slopes, v_0, strict=True)), objective.parameters, None, True
    )
    s = [2 * v - gamma * x for v, x in zip(v_0, h, strict=True)]
    mixed = torch.autograd.grad(sum((g * x).sum() for g, x in zip(slopes, s, strict=True)), alphas)
    expected = [d - gamma * m for d, m in zip(direct, mixed, strict=True)]
    for derivatives, tolerance in (("exact", 1e-9), ("difference", 1e-4)):
        result = implicit(objective, weights, train_batch, valid_batch, gamma, 1, derivatives, radius=1e-9)
        measured = architecture.gradients(objective.supernet.kinds, result.total)
        assert relative_error(measured, expected) < tolerance
    assert relative_error(direct, expected) > 0.01


def test_an_alpha_step_moves_the_weights_by_the_implicit_noise():
    state = start(hypergradient="implicit", implicit_noise=True, neumann_terms=1, batch_size=16, precision="64-true")
    train_batch, valid_batch = (state.cast(next(iter(batches))) for batches in state.batches(0))
    objective = Objective(state.supernet)
    parameters, weights = objective.parameters, state.layer_weights()
    before = [w.detach().clone() for w in parameters]
    v_0 = torch.autograd.grad(objective(weights, valid_batch)[0], parameters)
    slopes = torch.autograd.grad(objective(weights, train_batch)[0], parameters, create_graph=True)
    h = torch.autograd.grad(sum((g * v).sum() for g, v in zip(slopes, v_0, strict=True)), parameters)
    # R (v_0 - s), s = v_0 + v_0 - gamma H v_0
    gamma, length = state.settings.learning_rate, torch.cat([v.flatten() for v in v_0]).norm()
    left = [0.01 / length * (gamma * x - v) for v, x in zip(v_0, h, strict=True)]

    alpha_step(state, objective, train_batch, valid_batch, schedule(state.settings, 0))
    for now, w, n in zip(parameters, before, left, strict=True):
        torch.testing.assert_close(now.detach(), w + n, rtol=1e-9, atol=1e-12)
    assert norm(left) > 1e-3


@pytest.mark.parametrize(
    ("hypergradient", "inner_steps", "order"),
    [
        ("implicit", 4, "WWWWA" * 3),
        ("implicit", 5, "WWWWWA" * 2 + "WWA"),
        ("implicit", 99, "W" * 12 + "A"),
        ("first", 1, "AW" * 12),
        ("first", 4, "AWWWW" * 3),
    ],
)
def test_alpha_steps_follow_the_inner_steps_with_the_implicit_gradient_and_precede_them_otherwise(
    monkeypatch, hypergradient, inner_steps, order
):
    state = start(hypergradient=hypergradient, inner_steps=inner_steps, batch_size=64)
    calls, trained, residuals = [], [], []

    def alpha_step(search, objective, train_batch, valid_batch, now, residual=False):
        calls.append("A")
        residuals.append(residual)
        assert not torch.equal(train_batch.labels, valid_batch.labels)
        if hypergradient == "implicit":
            assert train_batch is trained[-1]

    def weight_step(search, objective, batch, now, layers):
        calls.append("W")
        trained.append(batch)
        return None, None

    monkeypatch.setattr(train_search, "alpha_step", alpha_step)
    monkeypatch.setattr(train_search, "weight_step", weight_step)
    for name in ("add_alpha_step", "add_weight_step", "check"):
        monkeypatch.setattr(Meters, name, lambda *arguments: None)
    run_epoch(state, 0, Schedule(0.025), StepProgress("epoch", 12, 0), "epoch 1")
    assert "".join(calls) == order
    assert len({batch.seed for batch in trained}) == 12
    # the residual is measured once in each epoch
    assert residuals == [hypergradient == "implicit"] + [False] * (len(residuals) - 1)


# Combinations and presets


@pytest.mark.parametrize("kind", ["corr", "signcorr"])
def test_layer_alignment_works_with_gates_and_the_auxiliary_skip(kind):
    torch.manual_seed(0)
    supernet = Supernet(SPACES["s2"], init_channels=4, layers=4, auxiliary_skip="skip").double()
    weights = [torch.randn(14, 2, dtype=DOUBLE).sigmoid() for _ in supernet.kinds]
    batch = Batch(torch.randn(6, 3, 8, 8, dtype=DOUBLE), torch.randint(0, 10, (6,)), 1)
    objective = Objective(supernet, skip_beta=0.5)
    exact = regularized_gradient(objective, weights, batch, kind, "exact").regularizer_gradient
    difference = regularized_gradient(objective, weights, batch, kind, "difference", 1e-9).regularizer_gradient
    assert relative_error(difference, exact) < 1e-4
    without = regularized_gradient(Objective(supernet), weights, batch, kind, "exact").regularizer_gradient
    assert norm(exact) > 0.01 and relative_error(without, exact) > 0.01


#: the settings of first-order DARTS; each case below lists the differences of another method
DARTS = {"relaxation": "softmax", "auxiliary_skip": "none", "hypergradient": "first", "inner_steps": 1, "reg": "none"}
DARTS |= {"alpha_reg": "none", "selection": "argmax", "epochs": 50, "batch_size": 64, "init_channels": 16, "layers": 8}
DARTS |= {"learning_rate": 0.025, "learning_rate_min": 0.001, "momentum": 0.9, "weight_decay": 3e-4, "grad_clip": 5.0}
DARTS |= {"arch_learning_rate": 3e-4, "arch_beta1": 0.5, "arch_beta2": 0.999, "arch_weight_decay": 1e-3}
DARTS |= {"derivatives": "difference", "implicit_noise": False, "weights_first": False, "train_portion": 0.5}
DARTS |= {"drop_path_prob": 0.0}
DARTS |= {"split": "random", "fresh_batches": "none", "noise": "held", "inner_batches": "shared", "nesterov": False}
DARTS |= {"selection_criterion": "accuracy", "selection_augment": False, "released": False}
FAIR_DARTS = {"relaxation": "sigmoid", "alpha_reg": "zero_one_l2", "alpha_reg_weight": 10.0, "threshold": 0.85}
FAIR_DARTS |= {"selection": "threshold_sparse", "arch_learning_rate": 3e-3, "arch_beta1": 0.9}
FAIR_DARTS |= {"learning_rate": 0.005, "batch_size": 128}
LAMBDA_201 = {"reg": "corr", "lambda_": 0.25, "epsilon_0": 1e-4, "arch_learning_rate": 1e-4, "epochs": 100}
IDARTS = {"hypergradient": "implicit", "inner_steps": 4, "inner_batches": "fresh", "neumann_terms": 2, "epochs": 30}
IDARTS |= {"learning_rate": 0.01, "weight_decay": 5e-4, "nesterov": True}


@pytest.mark.parametrize(
    ("method", "space", "differences"),
    [
        ("darts", "s5", {}),
        ("darts-2nd", "s5", {"hypergradient": "unrolled"}),
        ("lambda-darts", "s5", {"reg": "corr", "lambda_": 0.125, "epsilon_0": 1e-4}),
        *(
            ("lambda-darts", space, {"reg": "corr", "lambda_": 0.25, "epsilon_0": 1e-3, "batch_size": 96})
            for space in ("s1", "s2", "s3", "s4")
        ),
        ("lambda-darts-exact", "s5", {"reg": "corr", "lambda_": 1.0, "derivatives": "exact"}),
        ("lambda-darts-exact", "s2", {"reg": "corr", "lambda_": 1.0, "derivatives": "exact", "batch_size": 96}),
        ("lambda-darts", "nasbench201", LAMBDA_201),
        ("darts-pt", "nasbench201", {"selection": "perturbation", "finetune_epochs": 5, "epochs": 100}),
        *(
            ("darts-minus", space, {"auxiliary_skip": "skip", "skip_beta": 1.0, "decay": "linear"})
            for space in ("s5", "s2")
        ),
        ("fair-darts", "s5", FAIR_DARTS),
        ("idarts", "s5", IDARTS),
        ("blank-pt", "s5", {"selection": "perturbation", "finetune_epochs": 5, "arch_learning_rate": 0.0}),
        ("darts-pt", "s5", {"selection": "perturbation", "finetune_epochs": 5}),
    ],
)
def test_a_method_has_the_settings_of_its_paper(method, space, differences):
    settings = asdict(SCRIPT.settings_of(method, space=space))
    expected = {**DARTS, **differences, "method": method, "space": space}
    assert {name: settings[name] for name in expected} == expected
    # the preset has no other settings
    assert preset(method, space) == differences


def test_a_given_setting_overrides_the_method_and_the_default_method_is_lambda_darts():
    settings = SCRIPT.settings_of("fair-darts", batch_size=32)
    assert (settings.batch_size, settings.learning_rate, settings.relaxation) == (32, 0.005, "sigmoid")
    assert SCRIPT.preset({}) == {"space": "s5", "reg": "corr", "lambda_": 0.125, "epsilon_0": 1e-4}
