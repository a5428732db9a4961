"""Layer alignment and architecture gradients, compared with independent computations in float64."""

import pytest
import torch
from torch.func import functional_call

from architect import first_order, unrolled
from lib.objective import central_difference, cosine_similarity, norm
from nasbench201.networks import Supernet201
from regularizers import REGULARIZERS, aligned_layers, layer_alignment, regularized_gradient, weight_gradient
from tests.supernets import problem, relative_error

KINDS = ("corr", "signcorr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["s1", "s2", "s4"])
def test_regularizer_gradient_by_differences_equals_the_exact_one(space, kind):
    """In s4 all passes draw the same noise; otherwise the difference would compare two functions."""
    objective, _, weights, batch, _ = problem(space)
    exact = regularized_gradient(objective, weights, batch, kind, "exact")
    difference = regularized_gradient(objective, weights, batch, kind, "difference", epsilon_0=1e-9)
    assert relative_error(difference.regularizer_gradient, exact.regularizer_gradient) < 1e-4
    assert norm(exact.regularizer_gradient) > 0.01
    for a, b in zip(exact.gradient, weight_gradient(objective, weights, batch).gradient, strict=True):
        torch.testing.assert_close(a, b)


def test_exact_regularizer_gradient_is_the_slope_of_the_alignment_along_a_step_of_the_weights():
    """The slope is d/dt Lambda(g(w + t d)) at t = 0, computed from values of the alignment only."""
    objective, _, weights, batch, _ = problem()
    gradient = regularized_gradient(objective, weights, batch, "corr", "exact").regularizer_gradient
    parameters = [parameter.detach().clone() for parameter in objective.parameters]

    def alignment(t):
        with torch.no_grad():
            for parameter, start, slope in zip(objective.parameters, parameters, gradient, strict=True):
                parameter.copy_(start + t * slope)
        return layer_alignment(weight_gradient(objective, weights, batch, layers=True).layer_gradients).item()

    t = 1e-9 / norm(gradient).item()
    assert (alignment(t) - alignment(-t)) / (2 * t) == pytest.approx(norm(gradient).item() ** 2, rel=1e-4)


def test_noise_has_the_norm_of_the_regularizer_gradient_and_another_direction():
    objective, _, weights, batch, _ = problem()
    exact = regularized_gradient(objective, weights, batch, "corr", "exact").regularizer_gradient
    noise = regularized_gradient(objective, weights, batch, "noise", "exact").regularizer_gradient
    assert norm(noise).item() == pytest.approx(norm(exact).item())
    assert abs(cosine_similarity(noise, exact).item()) < 0.1


def test_a_zero_direction_gives_a_zero_difference():
    point, zero = [torch.randn(3)], [torch.zeros(3)]
    assert torch.equal(central_difference(lambda x: [x[0] ** 3], point, zero, 1e-4)[0], torch.zeros(3))


def test_central_difference_steps_by_the_radius_whatever_the_length_of_the_direction():
    seen = []

    def gradient(x):
        seen.append(x[0])
        return [x[0] ** 2]

    point, direction = [torch.tensor([1.0, 2.0])], [torch.tensor([30.0, 40.0])]
    slope = central_difference(gradient, point, direction, 0.1)[0]
    assert (seen[0] - point[0]).norm().item() == pytest.approx(0.1)
    torch.testing.assert_close(slope, 2 * point[0] * direction[0], rtol=1e-4, atol=0)


def test_the_first_order_gradient_is_the_gradient_of_the_validation_loss_in_alpha():
    objective, architecture, weights, _, batch = problem()
    result = first_order(objective, weights, batch)
    measured = architecture.gradients(objective.supernet.kinds, result.total)
    mixing = architecture.mixing_weights()
    loss, _ = objective([mixing[kind] for kind in objective.supernet.kinds], batch)
    for a, b in zip(measured, torch.autograd.grad(loss, list(architecture.parameters())), strict=True):
        torch.testing.assert_close(a, b)
    assert all(parameter.requires_grad for parameter in objective.parameters)


@pytest.mark.parametrize("derivatives", ["exact", "difference"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_unrolled_gradient_equals_differentiation_through_the_inner_step(derivatives, momentum):
    objective, architecture, weights, train_batch, valid_batch = problem(layers=3)
    xi, weight_decay = 0.1, 3e-4
    buffers = [0.1 * torch.randn_like(parameter) for parameter in objective.parameters]
    result = unrolled(
        objective, weights, train_batch, valid_batch, xi, buffers, momentum, weight_decay, derivatives, radius=1e-9
    )
    measured = architecture.gradients(objective.supernet.kinds, result.total)

    mixing = architecture.mixing_weights()
    shared = [mixing[kind] for kind in objective.supernet.kinds]
    names = [name for name, _ in objective.supernet.named_parameters()]
    loss, _ = objective(shared, train_batch)
    steps = torch.autograd.grad(loss, objective.parameters, create_graph=True)
    ahead = {
        name: w - xi * (momentum * buffer + step + weight_decay * w)
        for name, w, buffer, step in zip(names, objective.parameters, buffers, steps, strict=True)
    }
    logits = functional_call(objective.supernet, ahead, (valid_batch.images, shared))
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, valid_batch.labels), list(architecture.parameters())
    )
    assert relative_error(measured, expected) < (1e-9 if derivatives == "exact" else 1e-4)
    # the inner step matters here: the first-order gradient at w' differs
    direct = architecture.gradients(objective.supernet.kinds, result.direct)
    assert relative_error(direct, expected) > 0.01


@pytest.mark.parametrize("make", [lambda: problem(layers=3)[0].supernet, lambda: Supernet201(4, 1).double()])
def test_a_supernet_keeps_no_running_statistics(make):
    supernet = make()
    assert not [name for name in supernet.state_dict() if "running" in name or "num_batches" in name]
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    weights = [torch.rand(supernet.alpha_shapes[kind], dtype=torch.float64) for kind in supernet.kinds]
    trained = supernet.train()(images, weights)
    assert torch.equal(trained, supernet.eval()(images, weights))


@pytest.mark.parametrize("reg", ["corr", "signcorr"])
def test_only_normal_cells_are_aligned(reg):
    objective, _, weights, batch, _ = problem(layers=5)
    result = regularized_gradient(objective, weights, batch, reg, "exact")
    assert aligned_layers(objective.supernet.kinds) == [0, 2, 4]
    assert len(result.layer_gradients) == 3


def test_a_new_regularizer_needs_only_a_function_and_is_differentiated_both_ways(monkeypatch):
    def gradient_balance(layer_gradients):
        """Minus the variance of the logarithm of the layers' gradient norms."""
        norms = torch.stack([gradient.norm() for gradient in layer_gradients])
        return -norms.log().var(correction=0)

    monkeypatch.setitem(REGULARIZERS, "balance", gradient_balance)
    objective, _, weights, batch, _ = problem()
    exact = regularized_gradient(objective, weights, batch, "balance", "exact").regularizer_gradient
    difference = regularized_gradient(objective, weights, batch, "balance", "difference", 1e-9).regularizer_gradient
    assert relative_error(difference, exact) < 1e-4


def test_norm_and_cosine_are_over_all_tensors_together():
    a, b = [torch.tensor([3.0]), torch.tensor([[4.0]])], [torch.tensor([4.0]), torch.tensor([[3.0]])]
    assert norm(a).item() == 5
    assert cosine_similarity(a, b).item() == pytest.approx(24 / 25)
    assert cosine_similarity(a, [torch.zeros(1), torch.zeros(1, 1)]).item() == 0
