"""The architecture parameters alpha, their mixing weights p, and the architecture gradient.

The gradient is dL_val/dp of each layer. It is computed at the current weights (first order), after one weight step
(unrolled), or by the implicit function theorem (implicit).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lib.batches import Batch
from lib.objective import Derivatives, Objective, Tensors, central_difference, leaves, norm, vector_product

Relaxation = Literal["softmax", "sigmoid"]


class Architecture(nn.Module):
    """The parameters alpha: an (edges, operations) matrix for each kind of cell, shared by all cells of that kind.

    Edges may have different numbers of operations. The rows of edges with fewer operations are padded with places in
    which alpha and the mixing weight are always 0.

    Args:
        counts: The number of operations of each edge, for each kind of cell.
        relaxation: "softmax" (DARTS), which initializes alpha to 1e-3 * standard normal, or "sigmoid" (FairDARTS),
            which initializes it to 0.
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
        """The mixing weights that DARTS-PT has fixed, for each kind of cell; nan where alpha still sets them."""
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
        """Clip mixing weights to [0, 1] and, with softmax, divide them by their sum on each edge.

        SmoothDARTS's released code returns to the simplex in the same way. Edges whose weights are all clipped to 0 and
        edges that DARTS-PT has decided get the mixing weights of alpha.
        """
        places, projected = self.places, {}
        for kind, own in self.mixing_weights().items():
            clipped = torch.where(places[kind], mixing[kind].clamp(0, 1), 0)
            total = clipped.sum(dim=-1, keepdim=True) if self.relaxation == "softmax" else torch.ones_like(own)
            free = self.fixed[kind].isnan() & (total > 0)
            projected[kind] = torch.where(free, clipped / torch.where(total > 0, total, 1), own.detach())
        return projected

    def layer_sums(self, kinds: Sequence[str], layer_gradients: Tensors) -> dict[str, Tensor]:
        """Compute dL/dp of each kind of cell: the sum of dL/dp_l over the layers of that kind, which share p.

        Args:
            kinds: The kind of each layer.
        """
        return {
            name: torch.stack([g for kind, g in zip(kinds, layer_gradients, strict=True) if kind == name]).sum(dim=0)
            for name in self.alphas
        }

    def gradients(self, kinds: Sequence[str], layer_gradients: Tensors) -> list[Tensor]:
        """Compute dL/dalpha from the dL/dp_l of all layers.

        Args:
            kinds: The kind of each layer.

        Returns:
            One gradient for each alpha, in the order of `parameters()`.
        """
        mixing, totals = self.mixing_weights(), self.layer_sums(kinds, layer_gradients)
        return list(torch.autograd.grad(list(mixing.values()), list(self.alphas.values()), list(totals.values())))


def relax(alpha: Tensor, relaxation: Relaxation) -> Tensor:
    """Compute the mixing weights p of alpha, both (..., operations)."""
    return alpha.softmax(dim=-1) if relaxation == "softmax" else alpha.sigmoid()


class ArchitectureGradient(NamedTuple):
    """The architecture gradient on a validation batch, and its parts."""

    loss: Tensor
    logits: Tensor
    direct: list[Tensor]  # dL_val/dp_l of every layer with fixed weights (w' in the unrolled gradient)
    indirect: Tensors = ()  # the gradient through the weights, which depend on p; empty in the first-order gradient
    mixed: Tensors = ()  # d2L_train / dp_l dw . v; `indirect` is a multiple of it
    noise: Tensors = ()  # the change that the finite differences of iDARTS's released code leave in the weights
    residual: Tensor | None = None  # |v_0 - H (gamma s)| / |v_0| of the Neumann series, if requested

    @property
    def total(self) -> list[Tensor]:
        """The full gradient dL_val/dp_l of every layer: direct plus indirect."""
        return [d + i for d, i in zip(self.direct, self.indirect, strict=True)] if self.indirect else self.direct


def first_order(objective: Objective, weights: Tensors, valid_batch: Batch) -> ArchitectureGradient:
    """Compute grad_p L_val(w, p) for each layer (DARTS, section 2.3, xi = 0), without weight gradients."""
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
    """Compute grad_p L_val(w'(p), p) for each layer, where w' is w after one SGD step (DARTS, equations 6 to 8).

    w' = w - xi (momentum * buffer + grad_w L_train(w, p) + weight_decay * w), and
    gradient = grad_p L_val(w', p) - xi * d2L_train / dp dw . v, with v = grad_w' L_val(w', p). With Nesterov
    momentum, dw'/dgrad_w L_train is -xi (1 + momentum) instead of -xi.

    Args:
        xi: The current learning rate of the weights.
        momentum_buffers: The momentum of each parameter; zeros before the first step.
        radius: The norm |eps v| of the step of the finite differences.
        nesterov: Use Nesterov momentum in the step to w'.
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
    """Compute grad_p L_val(w*(p), p) for each layer by the implicit function theorem (iDARTS).

    H^-1 is approximated by a Neumann series:
    gradient = grad_p L_val - gamma * d2L_train / dp dw . s, s = sum_{k=0..K} (I - gamma H)^k v_0 (equation 9), with
    v_0 = grad_w L_val and H = d2L_train / dw2. Hessian-vector products are exact and use one training batch.

    Args:
        gamma: The current learning rate of the weights.
        terms: K, the index of the last term.
        radius: The norm |R v_0|, which sets R in the finite differences at w +- R s.
        residual: Also compute |v_0 - H (gamma s)| / |v_0|, with one more Hessian-vector product.
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
        # The released code returns from w - R s by adding R v_0 instead of R s.
        length = norm(v_0)
        step = torch.where(length > 0, radius / length, 0)
        noise = torch._foreach_mul(torch._foreach_sub(list(v_0), s), step)
    return ArchitectureGradient(
        valid_loss.detach(), logits.detach(), list(direct), [-gamma * m for m in mixed], list(mixed), noise, measured
    )


def neumann(
    hessian_vector_product: Callable[[Tensors], Tensors], vector: Tensors, gamma: float, terms: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Sum the Neumann series of the inverse Hessian: gamma * sum_k v_k approximates H^-1 v_0 (iDARTS, equation 9).

    v_0 = vector and v_{k+1} = v_k - gamma H v_k. The series converges if |1 - gamma h| < 1 for every eigenvalue h of H.

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
    """Compute d2L / dp_l dw . vector by central differences in w, with a step of radius / |measure|."""

    def gradient_at(point: Tensors) -> Tensors:
        loss, _ = objective(weights, batch, objective.named(point))
        return torch.autograd.grad(loss, weights, materialize_grads=True)

    return central_difference(gradient_at, objective.parameters, vector, radius, measure)
