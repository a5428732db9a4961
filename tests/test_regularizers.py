"""The regularizers against independent computations in float64."""

import json

import pytest
import torch

from regularizers import ALPHA_REGULARIZERS, layer_alignment, layer_alignment_derivative
from tests.helpers import local_data

KINDS = ("corr", "signcorr")


@pytest.mark.parametrize("kind", KINDS)
def test_alignment_and_its_derivative_equal_worked_examples(kind):
    cases = json.loads((local_data() / "fixtures/alignment.json").read_text())["cases"]
    assert cases
    for case in cases:
        layer_gradients = [torch.tensor(g, dtype=torch.float64) for g in case["layer_gradients"]]
        expected = [torch.tensor(g, dtype=torch.float64) for g in case[kind]["derivative"]]
        assert layer_alignment(layer_gradients, kind).item() == pytest.approx(case[kind]["alignment"], rel=1e-6)
        for measured, wanted in zip(layer_alignment_derivative(layer_gradients, kind), expected, strict=True):
            torch.testing.assert_close(measured, wanted, rtol=1e-6, atol=0)


def test_alignment_derivatives_equal_the_closed_forms():
    """u_l by the paper's formula: the projection as a matrix, and a sum over the pairs of layers."""
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    pairs = 10
    n = g / g.norm(dim=1, keepdim=True)
    for layer, u in enumerate(layer_alignment_derivative(list(g), "corr")):
        projection = torch.eye(6, dtype=torch.float64) - torch.outer(n[layer], n[layer])
        torch.testing.assert_close(u, projection @ n.sum(dim=0) / (pairs * g[layer].norm()))
    for i, u in enumerate(layer_alignment_derivative(list(g), "signcorr")):
        expected = torch.zeros(6, dtype=torch.float64)
        for j in range(5):
            if j != i:
                scale = g[i].abs() @ g[j].abs()
                rho = g[i] @ g[j] / scale
                expected += (1 - rho * g[i].sign() * g[j].sign()) * g[j] / (scale * pairs)
        torch.testing.assert_close(u, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_alignment_depends_only_on_directions_and_lies_between_minus_one_and_one(kind):
    g = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert layer_alignment([g[0], 2 * g[0], 5 * g[0]], kind).item() == pytest.approx(1)
    assert layer_alignment([g[0], -3 * g[0]], kind).item() == pytest.approx(-1)
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(layer_alignment(list(scale * g), kind), layer_alignment(list(g), kind))
        scaled, plain = (layer_alignment_derivative(list(x), kind) for x in (scale * g, g))
        for u, expected in zip(scaled, plain, strict=True):
            torch.testing.assert_close(scale * u, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vanished_layer_gradient_contributes_nothing(kind):
    a, b, zero = torch.randn(3, 4), torch.randn(3, 4), torch.zeros(3, 4)
    # only one of the three pairs remains
    torch.testing.assert_close(layer_alignment([a, zero, b], kind), layer_alignment([a, b], kind) / 3)
    first, at_zero, second = layer_alignment_derivative([a, zero, b], kind)
    assert torch.equal(at_zero, zero)
    for measured, expected in zip((first, second), layer_alignment_derivative([a, b], kind), strict=True):
        torch.testing.assert_close(measured, expected / 3)
    assert layer_alignment([zero, zero], kind).item() == 0
    assert all(torch.equal(u, zero) for u in layer_alignment_derivative([zero, zero], kind))


def test_the_alignment_is_the_cosine_by_default_and_needs_two_layers():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert layer_alignment([a, b]).item() == pytest.approx(24 / 25)
    # u_1 = (n_2 - <n_1, n_2> n_1) / |g_1|
    (first, _) = layer_alignment_derivative([a, b])
    torch.testing.assert_close(first, (b / 5 - 24 / 25 * a / 5) / 5)
    with pytest.raises(ValueError, match="1 layer gradients, expected two or more"):
        layer_alignment([a])
    with pytest.raises(ValueError, match="unknown regularizer 'cosine'; expected one of corr, signcorr"):
        layer_alignment([a, b], "cosine")


@pytest.mark.parametrize("kind", ["zero_one_l2", "zero_one_l1"])
def test_the_zero_one_loss_and_its_gradient_in_alpha_equal_the_closed_forms(kind):
    torch.manual_seed(0)
    regularizer = ALPHA_REGULARIZERS[kind]
    # the second is FairDARTS's initial alpha, whose gates are 1/2
    alphas = [make(14, 7, dtype=torch.float64, requires_grad=True) for make in (torch.randn, torch.zeros)]
    named = dict(zip(("normal", "reduce"), alphas, strict=True))
    value = regularizer(named, {kind: alpha.sigmoid() for kind, alpha in named.items()})
    n, p = 2 * 14 * 7, [1 / (1 + (-alpha.detach()).exp()) for alpha in alphas]
    if kind == "zero_one_l2":
        expected = -sum(((q - 0.5) ** 2).sum() for q in p) / n
        slopes = [-2 * (q - 0.5) * q * (1 - q) / n for q in p]
    else:
        expected = -sum((q - 0.5).abs().sum() for q in p) / n
        slopes = [-(q - 0.5).sign() * q * (1 - q) / n for q in p]
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for measured, slope in zip(torch.autograd.grad(value, alphas), slopes, strict=True):
        torch.testing.assert_close(measured, slope, rtol=1e-10, atol=1e-15)
