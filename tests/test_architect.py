"""Alpha, mixing weights and architecture gradients, compared with independent computations in float64."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call

from architect import Architecture, first_order, implicit, relax, unrolled
from lib.batches import Batch
from lib.objective import Objective, norm
from tests.supernets import randomize_alpha

DOUBLE = torch.float64


def even(shapes):
    """Return the number of operations of each edge, which is the same for all edges of a kind of cell."""
    return {kind: [operations] * edges for kind, (edges, operations) in shapes.items()}


def test_alpha_starts_near_zero_for_softmax_and_at_zero_for_sigmoid():
    shapes = {"normal": (14, 7), "reduce": (14, 5)}
    torch.manual_seed(0)
    architecture = Architecture(even(shapes))
    torch.manual_seed(0)
    for (kind, alpha), (name, shape) in zip(architecture.alphas.items(), shapes.items(), strict=True):
        assert kind == name
        assert torch.equal(alpha, 1e-3 * torch.randn(shape))
    assert [alpha.abs().max().item() for alpha in Architecture(even(shapes), "sigmoid").parameters()] == [0, 0]
    assert all(fixed.shape == shapes[kind] and fixed.isnan().all() for kind, fixed in architecture.fixed.items())


def test_relax_acts_on_the_last_dimension_of_alpha():
    alpha = torch.randn(2, 3, 4, dtype=DOUBLE)
    torch.testing.assert_close(relax(alpha, "softmax"), alpha.exp() / alpha.exp().sum(dim=2, keepdim=True))
    torch.testing.assert_close(relax(alpha, "sigmoid"), 1 / (1 + (-alpha).exp()))


def test_mixing_weights_are_a_softmax_on_each_edge_and_gradients_follow_the_chain_rule():
    torch.manual_seed(0)
    architecture = Architecture(even({"normal": (14, 7), "reduce": (14, 5)})).double()
    randomize_alpha(architecture)
    a, b, c = layer_gradients = [torch.randn(14, width, dtype=DOUBLE) for width in (7, 5, 7)]
    measured = architecture.gradients(["normal", "reduce", "normal"], layer_gradients)
    for gradient, kind, total in zip(measured, ("normal", "reduce"), (a + c, b), strict=True):
        exponentials = architecture.alphas[kind].detach().exp()
        p = exponentials / exponentials.sum(dim=1, keepdim=True)
        torch.testing.assert_close(architecture.mixing_weights()[kind].detach(), p, rtol=1e-12, atol=0)
        expected = p * (total - (p * total).sum(dim=1, keepdim=True))
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)
    with pytest.raises(ValueError, match="shorter"):  # a layer without a gradient
        architecture.gradients(["normal", "reduce", "normal"], layer_gradients[:2])


def test_sigmoid_gates_start_at_one_half_and_gradients_follow_the_chain_rule():
    torch.manual_seed(0)
    architecture = Architecture(even({"normal": (14, 7), "reduce": (14, 7)}), "sigmoid").double()
    assert all(torch.equal(alpha, torch.zeros_like(alpha)) for alpha in architecture.parameters())
    assert all(torch.equal(p, torch.full_like(p, 0.5)) for p in architecture.mixing_weights().values())
    randomize_alpha(architecture)
    a, b, c, d = layer_gradients = [torch.randn(14, 7, dtype=DOUBLE) for _ in range(4)]
    measured = architecture.gradients(["normal", "reduce", "reduce", "normal"], layer_gradients)
    for gradient, kind, total in zip(measured, ("normal", "reduce"), (a + d, b + c), strict=True):
        p = 1 / (1 + (-architecture.alphas[kind].detach()).exp())
        torch.testing.assert_close(gradient, p * (1 - p) * total, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("relaxation", ["softmax", "sigmoid"])
def test_fixed_mixing_weights_ignore_alpha_and_its_gradient_is_zero(relaxation):
    architecture = Architecture(even({"normal": (14, 3)}), relaxation).double()
    randomize_alpha(architecture)
    before = architecture.mixing_weights()["normal"].detach()
    architecture.fixed["normal"][5] = torch.tensor([0.0, 1.0, 0.0])
    after = architecture.mixing_weights()["normal"].detach()
    assert after[5].tolist() == [0, 1, 0]
    others = [edge for edge in range(14) if edge != 5]
    assert torch.equal(after[others], before[others])
    (gradient,) = architecture.gradients(["normal"], [torch.randn(14, 3, dtype=DOUBLE)])
    assert torch.equal(gradient[5], torch.zeros(3, dtype=DOUBLE))
    assert (gradient[others] != 0).all()


#: learning rate, momentum and weight decay of the weights
XI, MOMENTUM, WEIGHT_DECAY = 0.2, 0.9, 3e-2


class Regression(nn.Module):
    """Softmax regression with 3 classes and 4 features. Two "layers" of 2 x 2 mixing weights compute the features."""

    kinds = ("normal", "reduce")

    def __init__(self):
        super().__init__()
        self.register_buffer("maps", 0.5 * torch.randn(8, 4, 4, dtype=DOUBLE))
        self.classifier = nn.Linear(4, 3, dtype=DOUBLE)

    def forward(self, images, weights, drop_path_prob, skip_beta):
        p = torch.cat([w.flatten() for w in weights])
        x = images.flatten(1)
        return self.classifier(x + torch.einsum("k,kij,bj->bi", p, self.maps, x))


class Toy:
    """The regression, and the parts of the implicit gradient as dense vectors and matrices."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = Regression()
        self.objective = Objective(self.module)
        self.weights = [0.3 * torch.randn(2, 2, dtype=DOUBLE) for _ in range(2)]
        self.train, self.valid = (
            Batch(torch.randn(40, 1, 2, 2, dtype=DOUBLE), torch.randint(0, 3, (40,)), seed) for seed in (1, 2)
        )
        w = torch.cat([parameter.detach().flatten() for parameter in self.module.parameters()])
        p = torch.cat([weight.flatten() for weight in self.weights])
        self.w = w
        loss = self.loss
        self.direct, self.v_0 = (
            torch.autograd.functional.jacobian(lambda *z: loss(*reversed(z), self.valid), (p, w))[i] for i in range(2)
        )
        blocks = torch.autograd.functional.hessian(lambda w, p: loss(w, p, self.train), (w, p))
        self.hessian, self.mixed = blocks[0][0], blocks[0][1]  # (w, w) and (w, p)
        self.buffers = [0.1 * torch.randn_like(parameter) for parameter in self.module.parameters()]
        self.gamma = 1 / torch.linalg.eigvalsh(self.hessian).max().item()

    def loss(self, w, p, batch):
        """Compute L(w, p) from its equation."""
        x = batch.images.reshape(-1, 4)
        matrix = torch.eye(4, dtype=DOUBLE) + (p[:, None, None] * self.module.maps).sum(dim=0)
        logits = x @ matrix.T @ w[:12].reshape(3, 4).T + w[12:]
        picked = logits[torch.arange(len(x)), batch.labels]
        return (logits.exp().sum(dim=1).log() - picked).mean()

    def series(self, terms):
        """sum_k (I - gamma H)^k v_0, k = 0..terms."""
        step = torch.eye(15, dtype=DOUBLE) - self.gamma * self.hessian
        return sum(torch.linalg.matrix_power(step, k) @ self.v_0 for k in range(terms + 1))

    def implicit(self, terms, **options):
        return implicit(self.objective, self.weights, self.train, self.valid, self.gamma, terms, **options)

    def unrolled(self, **options):
        return unrolled(
            self.objective, self.weights, self.train, self.valid, XI, self.buffers, MOMENTUM, WEIGHT_DECAY, **options
        )

    def ahead(self):
        """Compute w' of the unrolled gradient from its equation."""
        gradient = torch.autograd.functional.jacobian(lambda w: self.loss(w, flat(self.weights), self.train), self.w)
        return self.w - XI * (MOMENTUM * flat(self.buffers) + gradient + WEIGHT_DECAY * self.w)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Spy(Objective):
    """An objective that records its calls on one batch.

    Attributes:
        points: The weights of each call at other weights than the supernet's.
        twice: `create_graph` of each call at the supernet's weights.
    """

    def watch(self, batch):
        self.watched, self.points, self.twice = batch, [], []
        return self

    def __call__(self, weights, batch, parameters=None, create_graph=False):
        if batch is self.watched:
            if parameters is None:
                self.twice.append(create_graph)
            else:
                self.points.append(flat(parameters.values()))
        return super().__call__(weights, batch, parameters, create_graph)


def test_the_first_order_gradient_is_the_gradient_of_the_validation_loss_alone():
    toy = Toy()
    result = first_order(toy.objective, toy.weights, toy.valid)
    assert [g.shape for g in result.total] == [(2, 2), (2, 2)]
    torch.testing.assert_close(flat(result.total), toy.direct, rtol=1e-9, atol=1e-15)
    assert (result.indirect, result.mixed, result.noise, result.residual) == ((), (), (), None)
    p = flat(toy.weights)
    assert result.loss.item() == pytest.approx(toy.loss(toy.w, p, toy.valid).item(), rel=1e-12)
    torch.testing.assert_close(result.logits, toy.module(toy.valid.images, toy.weights, 0, 0).detach())


def test_the_first_order_gradient_computes_no_weight_gradient(monkeypatch):
    toy, asked = Toy(), []
    gradients = Objective.gradients
    monkeypatch.setattr(
        Objective, "gradients", lambda *given, **named: asked.append(named) or gradients(*given, **named)
    )
    first_order(toy.objective, toy.weights, toy.valid)
    assert asked == [{"parameters": False}]


@pytest.mark.parametrize(("derivatives", "radius", "tolerance"), [("exact", 0.01, 1e-9), ("difference", 1e-5, 1e-4)])
def test_the_unrolled_gradient_equals_its_closed_form(derivatives, radius, tolerance):
    """dL_val/dp - xi d2L_train/dp dw . v at w' = w - xi (momentum b + grad_w L_train + weight_decay w)."""
    toy = Toy()
    ahead, p = toy.ahead(), flat(toy.weights)
    direct, v = (
        torch.autograd.functional.jacobian(lambda *z: toy.loss(*reversed(z), toy.valid), (p, ahead))[i]
        for i in range(2)
    )
    mixed = toy.mixed.T @ v
    result = toy.unrolled(derivatives=derivatives, radius=radius)
    for measured, expected in [
        (result.direct, direct),
        (result.mixed, mixed),
        (result.indirect, -XI * mixed),
        (result.total, direct - XI * mixed),
    ]:
        assert ((flat(measured) - expected).norm() / expected.norm()).item() < tolerance
    assert result.loss.item() == pytest.approx(toy.loss(ahead, p, toy.valid).item(), rel=1e-12)
    named = toy.objective.named([ahead[:12].reshape(3, 4), ahead[12:]])
    logits = functional_call(toy.module, named, (toy.valid.images, toy.weights, 0, 0))
    torch.testing.assert_close(result.logits, logits.detach())
    assert (result.noise, result.residual) == ((), None)
    assert torch.equal(flat(toy.module.parameters()), toy.w)


def test_differences_of_the_unrolled_gradient_step_by_one_hundredth_by_default():
    toy = Toy()
    ahead, p = toy.ahead(), flat(toy.weights)
    v = torch.autograd.functional.jacobian(lambda w: toy.loss(w, p, toy.valid), ahead)
    toy.objective = Spy(toy.module).watch(toy.train)
    toy.unrolled()
    forth, back = (point - toy.w for point in toy.objective.points)
    torch.testing.assert_close(forth, 0.01 * v / v.norm(), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(back, -0.01 * v / v.norm(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_momentum_buffers_is_an_error(count):
    toy = Toy()
    toy.buffers = [*toy.buffers, toy.buffers[0]][:count]
    with pytest.raises(ValueError, match="zip"):
        toy.unrolled()


def test_exact_derivatives_request_a_loss_that_can_be_differentiated_twice():
    """A compiled supernet has no second derivative, so such a request runs the supernet eagerly."""
    toy = Toy()
    toy.objective = Spy(toy.module).watch(toy.train)
    toy.unrolled(derivatives="exact")
    toy.implicit(1, derivatives="exact")
    assert toy.objective.twice == [True, True]
    toy.unrolled()
    assert toy.objective.twice == [True, True, False]


@pytest.mark.parametrize("derivatives", ["exact", "difference"])
def test_an_architecture_gradient_is_detached_from_the_graph(derivatives):
    toy = Toy()
    for result in (
        first_order(toy.objective, toy.weights, toy.valid),
        toy.unrolled(derivatives=derivatives),
        toy.implicit(2, derivatives=derivatives, residual=True),
    ):
        parts = [result.loss, result.logits, *result.direct, *result.indirect, *result.mixed, *result.noise]
        assert not any(part.requires_grad for part in [*parts, *result.total])


def test_the_implicit_gradient_converges_to_the_implicit_function_theorem():
    toy = Toy()
    # H is singular: adding a number to all logits changes nothing. v_0 is orthogonal to its null space.
    pseudo_inverse = torch.linalg.pinv(toy.hessian, rtol=1e-10, hermitian=True)
    assert torch.linalg.matrix_rank(toy.hessian, rtol=1e-10, hermitian=True) == 10
    torch.testing.assert_close(toy.hessian @ pseudo_inverse @ toy.v_0, toy.v_0, rtol=1e-9, atol=1e-12)
    exact = toy.direct - toy.v_0 @ pseudo_inverse @ toy.mixed
    errors = [
        ((flat(toy.implicit(terms, derivatives="exact").total) - exact).norm() / exact.norm()).item()
        for terms in (0, 1, 2, 5, 10, 20, 50, 100, 200)
    ]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[0] > 0.1
    assert errors[-1] < 1e-8


@pytest.mark.parametrize("terms", [0, 1, 2, 7])
@pytest.mark.parametrize(("derivatives", "radius", "tolerance"), [("exact", 0.01, 1e-9), ("difference", 1e-5, 1e-4)])
def test_the_implicit_gradient_of_k_terms_equals_its_closed_form(terms, derivatives, radius, tolerance):
    """With K = 0 it is dL_val/dp - gamma * d2L_train/dp dw . dL_val/dw."""
    toy = Toy()
    result = toy.implicit(terms, derivatives=derivatives, radius=radius)
    s = toy.v_0 if terms == 0 else toy.series(terms)
    mixed = toy.mixed.T @ s
    assert [g.shape for g in result.total] == [(2, 2), (2, 2)]
    for measured, expected in [
        (result.direct, toy.direct),
        (result.mixed, mixed),
        (result.indirect, -toy.gamma * mixed),
        (result.total, toy.direct - toy.gamma * mixed),
    ]:
        assert ((flat(measured) - expected).norm() / expected.norm()).item() < tolerance
    assert result.loss.item() == pytest.approx(toy.loss(toy.w, flat(toy.weights), toy.valid).item(), rel=1e-12)
    assert torch.equal(flat(toy.module.parameters()), toy.w)


@pytest.mark.parametrize("derivatives", ["exact", "difference"])
@pytest.mark.parametrize("terms", [0, 2, 9])
def test_the_neumann_residual_is_the_relative_residual_of_the_linear_system(terms, derivatives):
    toy = Toy()
    rest = toy.v_0 - toy.hessian @ (toy.gamma * toy.series(terms))
    measured = toy.implicit(terms, derivatives=derivatives, residual=True)
    assert measured.residual.item() == pytest.approx((rest.norm() / toy.v_0.norm()).item(), rel=1e-9)
    # measuring the residual does not change the gradient
    assert torch.equal(flat(measured.total), flat(toy.implicit(terms, derivatives=derivatives).total))
    assert toy.implicit(terms, derivatives=derivatives).residual is None


@pytest.mark.parametrize("terms", [0, 2])
def test_differences_step_by_r_s_and_the_noise_is_the_error_of_stepping_back_by_r_v_0(terms):
    toy = Toy()
    toy.objective = Spy(toy.module).watch(toy.train)
    result = toy.implicit(terms)
    s, r = toy.series(terms), 0.01 / toy.v_0.norm()
    forth, back = (point - toy.w for point in toy.objective.points)
    torch.testing.assert_close(forth, r * s, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(back, -r * s, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(flat(result.noise), r * (toy.v_0 - s), rtol=1e-9, atol=1e-15)
    assert (norm(result.noise) > 1e-4) == (terms > 0)


class ZeroOnBlack(Regression):
    """The regression, with logits of 0 for black images."""

    def forward(self, images, *others):
        return super().forward(images, *others) * (images != 0).any()


def test_the_indirect_part_is_zero_if_the_validation_loss_ignores_the_weights():
    toy = Toy()
    black = Batch(torch.zeros_like(toy.valid.images), toy.valid.labels, 2)
    result = implicit(Objective(ZeroOnBlack()), toy.weights, toy.train, black, 0.1, 2)
    for part in (result.mixed, result.indirect, result.noise):
        assert part and not flat(part).any()
