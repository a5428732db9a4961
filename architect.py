"""The architecture: its parameters alpha, their mixing weights, and the gradient that moves them.

The gradient is dL_val/dp of each layer: at the current weights (first order), after one weight step (unrolled), or by
the implicit function theorem (implicit).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lib.batches import Batch
from lib.objective import Derivatives, Objective, Tensors, central_difference, leaves, norm, vector_product

Relaxation = Literal["softmax", "sigmoid"]


class Architecture(nn.Module):
    """alpha of each kind of cell, (edges, operations) each, shared by all cells of the kind.

    If edges differ in the number of their operations, the row of an edge with fewer ends in places that have no effect:
    their mixing weight is 0, and alpha stays 0 there.

    Args:
        counts: The number of operations of each edge, for each kind of cell.
        relaxation: "softmax" (DARTS), for which alpha starts at 1e-3 * standard normal, or "sigmoid" (FairDARTS), for
            which it starts at 0.
    """

    def __init__(self, counts: Mapping[str, Sequence[int]], relaxation: Relaxation = "softmax") -> None:
        super().__init__()
        self.relaxation = relaxation
        self.alphas = nn.ParameterDict()
        for kind, operations in counts.items():
            places = torch.arange(max(operations)) < torch.tensor(operations)[:, None]  # (edges, operations)
            alpha = 1e-3 * torch.randn(places.shape) if relaxation == "softmax" else torch.zeros(places.shape)
            self.alphas[kind] = nn.Parameter(alpha * places)
            self.register_buffer(f"places_{kind}", places, persistent=False)
        for kind, alpha in self.alphas.items():
            self.register_buffer(f"fixed_{kind}", torch.full_like(alpha, torch.nan))

    @property
    def places(self) -> dict[str, Tensor]:
        """True where an edge has an operation, (edges, operations) for each kind of cell."""
        return {kind: self.get_buffer(f"places_{kind}") for kind in self.alphas}

    @property
    def fixed(self) -> dict[str, Tensor]:
        """Mixing weights that DARTS-PT has decided, for each kind of cell; nan where alpha still decides."""
        return {kind: self.get_buffer(f"fixed_{kind}") for kind in self.alphas}

    def logits(self) -> dict[str, Tensor]:
        """alpha of each kind of cell, with -inf in the places without an operation."""
        places = self.places
        return {kind: torch.where(places[kind], alpha, -torch.inf) for kind, alpha in self.alphas.items()}

    def mixing_weights(self) -> dict[str, Tensor]:
        """p = softmax(alpha) on each edge (DARTS, equation 2), or sigmoid(alpha) (FairDARTS, section 3.2)."""
        fixed = self.fixed
        return {
            kind: torch.where(fixed[kind].isnan(), relax(alpha, self.relaxation), fixed[kind])
            for kind, alpha in self.logits().items()
        }

    def project(self, mixing: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mixing weights near `mixing`: clipped to [0, 1], and with softmax divided by their sum on each edge.

        This is how SmoothDARTS's released code returns to the simplex. An edge whose weights are all clipped to 0, and
        an edge that DARTS-PT has decided, keep their own mixing weights.
        """
        places, projected = self.places, {}
        for kind, own in self.mixing_weights().items():
            clipped = torch.where(places[kind], mixing[kind].clamp(0, 1), 0)
            total = clipped.sum(dim=-1, keepdim=True) if self.relaxation == "softmax" else torch.ones_like(own)
            free = self.fixed[kind].isnan() & (total > 0)
            projected[kind] = torch.where(free, clipped / torch.where(total > 0, total, 1), own.detach())
        return projected

    def layer_sums(self, kinds: Sequence[str], layer_gradients: Tensors) -> dict[str, Tensor]:
        """dL/dp of each kind of cell, from the dL/dp_l of all layers: cells of a kind share p.

        Args:
            kinds: The kind of each layer.
        """
        return {
            name: torch.stack([g for kind, g in zip(kinds, layer_gradients, strict=True) if kind == name]).sum(dim=0)
            for name in self.alphas
        }

    def gradients(self, kinds: Sequence[str], layer_gradients: Tensors) -> list[Tensor]:
        """dL/dalpha, from the dL/dp_l of all layers.

        Args:
            kinds: The kind of each layer.

        Returns:
            One gradient for each alpha, in the order of `parameters()`.
        """
        mixing, totals = self.mixing_weights(), self.layer_sums(kinds, layer_gradients)
        return list(torch.autograd.grad(list(mixing.values()), list(self.alphas.values()), list(totals.values())))


def relax(alpha: Tensor, relaxation: Relaxation) -> Tensor:
    """The mixing weights of alpha (..., operations)."""
    return alpha.softmax(dim=-1) if relaxation == "softmax" else alpha.sigmoid()


class ArchitectureGradient(NamedTuple):
    """The gradient of a validation batch that the alpha step needs, and its parts."""

    loss: Tensor
    logits: Tensor
    direct: list[Tensor]  # dL_val/dp_l of every layer, at fixed weights; at w' in the unrolled gradient
    indirect: Tensors = ()  # the part through the weights, which depend on p; empty in the first-order gradient
    mixed: Tensors = ()  # d2L_train / dp_l dw . v, of which `indirect` is a multiple
    noise: Tensors = ()  # the change of the weights by the differences of iDARTS's released code
    residual: Tensor | None = None  # |v_0 - H (gamma s)| / |v_0| of the Neumann series, if requested

    @property
    def total(self) -> list[Tensor]:
        """The gradient that moves alpha, as dL/dp_l of every layer."""
        return [d + i for d, i in zip(self.direct, self.indirect, strict=True)] if self.indirect else self.direct


def first_order(objective: Objective, weights: Tensors, valid_batch: Batch) -> ArchitectureGradient:
    """grad_p L_val(w, p) for each layer (DARTS, section 2.3, xi = 0). No weight gradient is computed."""
    result = objective.gradients(weights, valid_batch, range(len(weights)), parameters=False)
    return ArchitectureGradient(result.loss, result.logits, result.layers)


def unrolled(
    objective: Objective,
    weights: Tensors,
    train_batch: Batch,
    valid_batch: Batch,
    xi: float,
    momentum_buffers: Tensors,
    momentum: float,
    weight_decay: float,
    derivatives: Derivatives = "difference",
    radius: float = 0.01,
    nesterov: bool = False,
) -> ArchitectureGradient:
    """grad_p L_val(w'(p), p) for each layer, w' one step of SGD ahead (DARTS, equations 6 to 8).

    w' = w - xi (momentum * buffer + grad_w L_train(w, p) + weight_decay * w), and
    gradient = grad_p L_val(w', p) - xi * d2L_train / dp dw . v, with v = grad_w' L_val(w', p). With Nesterov's
    momentum, dw'/dgrad_w L_train is -xi (1 + momentum) in place of -xi.

    Args:
        xi: The current learning rate of the weights.
        momentum_buffers: The momentum of each parameter; zeros before the first step.
        radius: |eps v| of the differences.
        nesterov: w' is a step of Nesterov's momentum ahead.
    """
    parameters = objective.parameters
    weights = leaves(weights)

    exact, slope = derivatives == "exact", xi * (1 + momentum) if nesterov else xi
    loss, _ = objective(weights, train_batch, create_graph=exact)
    train_gradients = torch.autograd.grad(loss, parameters, create_graph=exact, materialize_grads=True)
    ahead = []
    for w, buffer, gradient in zip(parameters, momentum_buffers, train_gradients, strict=True):
        step = momentum * buffer + gradient + weight_decay * w
        step = momentum * step + gradient + weight_decay * w if nesterov else step
        ahead.append((w - xi * step).detach().requires_grad_())
    valid_loss, logits = objective(weights, valid_batch, objective.named(ahead))
    gradients = torch.autograd.grad(valid_loss, [*weights, *ahead], materialize_grads=True)
    direct, v = gradients[: len(weights)], gradients[len(weights) :]

    if exact:
        mixed: Tensors = vector_product(train_gradients, weights, v)
    else:
        mixed = _mixed_difference(objective, weights, train_batch, v, radius, v)
    return ArchitectureGradient(
        valid_loss.detach(), logits.detach(), list(direct), [-slope * m for m in mixed], list(mixed)
    )


def implicit(
    objective: Objective,
    weights: Tensors,
    train_batch: Batch,
    valid_batch: Batch,
    gamma: float,
    terms: int,
    derivatives: Derivatives = "difference",
    radius: float = 0.01,
    residual: bool = False,
) -> ArchitectureGradient:
    """grad_p L_val(w*(p), p) for each layer by the implicit function theorem, with a Neumann series for H^-1 (iDARTS).

    gradient = grad_p L_val - gamma * d2L_train / dp dw . s, s = sum_{k=0..K} (I - gamma H)^k v_0 (equation 9), with
    v_0 = grad_w L_val and H = d2L_train / dw2. Hessian-vector products are exact, on one training batch.

    Args:
        gamma: The current learning rate of the weights.
        terms: K.
        radius: |R v_0| of the differences w +- R s.
        residual: Compute |v_0 - H (gamma s)| / |v_0| too, which takes one more Hessian-vector product.
    """
    parameters = objective.parameters
    weights = leaves(weights)
    valid_loss, logits = objective(weights, valid_batch)
    gradients = torch.autograd.grad(valid_loss, [*weights, *parameters], materialize_grads=True)
    direct, v_0 = gradients[: len(weights)], gradients[len(weights) :]

    exact = derivatives == "exact"
    train_gradients: Tensors = ()
    if exact or terms or residual:
        loss, _ = objective(weights, train_batch, create_graph=True)
        train_gradients = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)

    def hessian_vector_product(vector: Tensors) -> Tensors:
        return vector_product(train_gradients, parameters, vector)

    s, last = neumann(hessian_vector_product, v_0, gamma, terms)
    measured = None
    if residual:
        rest, _ = neumann(hessian_vector_product, last, gamma, 1)  # v_K + v_{K+1}
        measured = norm(torch._foreach_sub(rest, last)) / norm(v_0)
    noise: Tensors = ()
    if exact:
        mixed: Tensors = vector_product(train_gradients, weights, s)
    else:
        del train_gradients
        mixed = _mixed_difference(objective, weights, train_batch, s, radius, v_0)
        # The released code steps back from w - R s by R v_0.
        length = norm(v_0)
        step = torch.where(length > 0, radius / length, 0)
        noise = torch._foreach_mul(torch._foreach_sub(list(v_0), s), step)
    return ArchitectureGradient(
        valid_loss.detach(), logits.detach(), list(direct), [-gamma * m for m in mixed], list(mixed), noise, measured
    )


def neumann(
    hessian_vector_product: Callable[[Tensors], Tensors], vector: Tensors, gamma: float, terms: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The Neumann series of the inverse Hessian: gamma * sum_k v_k approaches H^-1 v_0 (iDARTS, equation 9).

    v_0 = vector and v_{k+1} = v_k - gamma H v_k. It converges if |1 - gamma h| < 1 for every eigenvalue h of H.

    Args:
        terms: K, the index of the last term.

    Returns:
        sum_k v_k for k = 0..K, and v_K.
    """
    term = total = list(vector)
    for _ in range(terms):
        term = list(torch._foreach_sub(term, torch._foreach_mul(list(hessian_vector_product(term)), gamma)))
        total = list(torch._foreach_add(total, term))
    return total, term


def _mixed_difference(
    objective: Objective, weights: Tensors, batch: Batch, vector: Tensors, radius: float, measure: Tensors
) -> list[Tensor]:
    """d2L / dp_l dw . vector by differences in w, with a step of radius / |measure|."""

    def gradient_at(point: Tensors) -> Tensors:
        loss, _ = objective(weights, batch, objective.named(point))
        return torch.autograd.grad(loss, weights, materialize_grads=True)

    return central_difference(gradient_at, objective.parameters, vector, radius, measure)
