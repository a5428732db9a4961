"""The regularizers of the weights, such as layer alignment (Λ-DARTS, ICLR 2023, section 4), and those of alpha.

Each layer l has an architecture gradient g_l = dL/dp_l, the gradient of the training loss in its mixing weights. The
layer alignment is the mean cosine over pairs of layers:

    Lambda = 1 / (n (n - 1)) * sum_{i != j} <g_i, g_j> / (|g_i| |g_j|)

The weights descend L - lambda_t * Lambda. With u_l = dLambda / dg_l held fixed,

    grad_w Lambda = grad_w sum_l <u_l, g_l> = sum_l d2L / (dw dp_l) u_l,

which is computed exactly by a second backward pass, or by a central difference of grad_w L along u in p:

    grad_w Lambda ~ [grad_w L(w, p + eps u) - grad_w L(w, p - eps u)] / (2 eps),  eps = epsilon_0 / |u|.

To add a regularizer of the weights, write a function of g_1, ..., g_n that returns a scalar, which the weights then
increase, and add it to REGULARIZERS. To add a regularizer of alpha, write a function of alpha and p that returns a
scalar, which alpha then decreases, and add it to ALPHA_REGULARIZERS. Both can be in a plugin; docs/extending.md has
examples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib.batches import Batch
from lib.cli import InputError
from lib.objective import Derivatives, Objective, Tensors, central_difference, leaves, norm
from lib.registry import Registry, check_arguments


def _corr(gradients: Tensors) -> Tensor:
    """Compute Lambda by sums over layers instead of pairs of layers."""
    g = torch.stack([gradient.flatten() for gradient in gradients])  # (L, edges * operations)
    norms = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    # A layer with a zero gradient adds 0 to the value and to the derivative.
    n = torch.where(norms > 0, g, 0) / torch.where(norms > 0, norms, 1)
    total = n.sum(dim=0)
    # sum over i != j of <n_i, n_j>
    return (total @ total - (n * n).sum()) / (len(g) * (len(g) - 1))


def _signcorr(gradients: Tensors) -> Tensor:
    """The mean over pairs of layers of <g_i, g_j> / <|g_i|, |g_j|> (Λ-DARTS's released code)."""
    g = torch.stack([gradient.flatten() for gradient in gradients])
    scale = g.abs() @ g.abs().T
    rho = torch.where(scale > 0, g @ g.T, 0) / torch.where(scale > 0, scale, 1)
    return (rho.sum() - rho.diagonal().sum()) / (len(g) * (len(g) - 1))


#: name -> function of the layer gradients; the weights increase it
REGULARIZERS: Registry[Callable[[Tensors], Tensor]] = Registry(
    "regularizer",
    {"corr": _corr, "signcorr": _signcorr},
    lambda function: check_arguments(function, "gradients"),
    reserved=("none", "noise"),
)


def check_scalar(value: object, flag: str) -> Tensor:
    """Return the value of a regularizer if it is a scalar tensor.

    Raises:
        InputError: It is not a scalar tensor.
    """
    if not isinstance(value, Tensor) or value.dim() != 0:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{flag}: its function returns {shape}, expected a scalar tensor")
    return value


def aligned_layers(kinds: Sequence[str]) -> list[int]:
    """The layers that take part in the alignment: all but the reduction cells (Λ-DARTS, section 4)."""
    return [layer for layer, kind in enumerate(kinds) if kind != "reduce"]


def _aligned_layers(objective: Objective) -> list[int]:
    kinds: Sequence[str] = objective.supernet.kinds  # type: ignore[assignment]  # torch: a tensor or a module
    return aligned_layers(kinds)


def layer_alignment(gradients: Tensors, regularizer: str = "corr") -> Tensor:
    """Compute the layer alignment Lambda, or another entry of REGULARIZERS.

    Args:
        gradients: The gradient of each layer, (edges, operations); two layers or more.

    Returns:
        A scalar, in [-1, 1] for "corr" and "signcorr". A layer with a zero gradient adds 0.

    Raises:
        ValueError: The name is unknown, or there are fewer than two layers.
    """
    function = REGULARIZERS.find(regularizer)
    if len(gradients) < 2:
        raise ValueError(
            f"{len(gradients)} layer gradients, expected two or more: alignment is between pairs of layers"
        )
    return check_scalar(function(gradients), f"--reg {regularizer}")


def layer_alignment_derivative(gradients: Tensors, regularizer: str = "corr") -> list[Tensor]:
    """Compute u_l = dLambda / dg_l for each layer, (edges, operations) each, without a graph."""
    with torch.enable_grad():
        g = leaves(gradients)
        value = layer_alignment(g, regularizer)
        if not value.requires_grad:
            raise InputError(f"--reg {regularizer}: its value does not depend on the gradients")
        return list(torch.autograd.grad(value, g, materialize_grads=True))


class WeightGradient(NamedTuple):
    """The gradients of a training batch that the weight step needs."""

    loss: Tensor
    logits: Tensor
    gradient: list[Tensor]  # grad_w L
    layer_gradients: list[Tensor]  # g_l of the aligned layers; empty if not requested
    regularizer_gradient: list[Tensor]  # grad_w Lambda; empty without a regularizer


def weight_gradient(objective: Objective, weights: Tensors, batch: Batch, layers: bool = False) -> WeightGradient:
    """Compute grad_w L and, with `layers`, also the g_l of the aligned layers at no extra cost."""
    wanted = _aligned_layers(objective) if layers else []
    return WeightGradient(*objective.gradients(weights, batch, wanted), [])


def regularized_gradient(
    objective: Objective,
    weights: Tensors,
    batch: Batch,
    regularizer: str,
    derivatives: Derivatives = "difference",
    epsilon_0: float = 1e-4,
) -> WeightGradient:
    """Compute grad_w L and grad_w Lambda on one batch (Λ-DARTS, section 4).

    Args:
        weights: The mixing weights of each layer.
        regularizer: A name in REGULARIZERS, or "noise": a random vector with the norm of the gradient of "corr".
        epsilon_0: The norm of eps * u over all layers together.
    """
    if regularizer == "noise":
        result = regularized_gradient(objective, weights, batch, "corr", derivatives, epsilon_0)
        noise = [torch.randn_like(gradient) for gradient in result.regularizer_gradient]
        scale = norm(result.regularizer_gradient) / norm(noise)
        return result._replace(regularizer_gradient=[scale * gradient for gradient in noise])
    if derivatives == "exact":
        return _exactly(objective, weights, batch, regularizer)
    return _by_differences(objective, weights, batch, regularizer, epsilon_0)


def _by_differences(
    objective: Objective, weights: Tensors, batch: Batch, regularizer: str, epsilon_0: float
) -> WeightGradient:
    """Compute the gradients in three passes: at p for g_l and u_l, then at p + eps u and p - eps u."""
    result = weight_gradient(objective, weights, batch, layers=True)
    aligned = _aligned_layers(objective)

    def gradient_at(layer_weights: Tensors) -> Tensors:
        moved = dict(zip(aligned, layer_weights, strict=True))
        p = [moved.get(layer, weight) for layer, weight in enumerate(weights)]
        return weight_gradient(objective, p, batch).gradient

    u = layer_alignment_derivative(result.layer_gradients, regularizer)
    p = [weights[layer] for layer in aligned]
    return result._replace(regularizer_gradient=central_difference(gradient_at, p, u, epsilon_0))


def _exactly(objective: Objective, weights: Tensors, batch: Batch, regularizer: str) -> WeightGradient:
    """Compute the gradients by differentiating one pass twice."""
    parameters, weights = objective.parameters, leaves(weights)
    loss, logits = objective(weights, batch, create_graph=True)
    aligned = [weights[layer] for layer in _aligned_layers(objective)]
    gradients = torch.autograd.grad(loss, [*parameters, *aligned], create_graph=True, materialize_grads=True)
    gradient, layer_gradients = gradients[: len(parameters)], gradients[len(parameters) :]
    value = layer_alignment(layer_gradients, regularizer)
    if not value.requires_grad:
        raise InputError(f"--reg {regularizer}: its value does not depend on the gradients")
    regularizer_gradient = torch.autograd.grad(value, parameters, materialize_grads=True)
    return WeightGradient(
        loss.detach(),
        logits.detach(),
        [g.detach() for g in gradient],
        [g.detach() for g in layer_gradients],
        list(regularizer_gradient),
    )


#: alpha or p of each kind of cell, (edges, operations) each. Where an edge has no operation, alpha is -inf and p is 0.
ByKind = Mapping[str, Tensor]


def _mean_over_gates(values: ByKind, alpha: ByKind) -> Tensor:
    gates = torch.cat([alpha[kind].flatten() for kind in values]).isfinite()
    total = torch.where(gates, torch.cat([value.flatten() for value in values.values()]), 0).sum()
    return total / gates.sum()


def _zero_one_l2(alpha: ByKind, p: ByKind) -> Tensor:
    """-mean((p - 0.5)^2) over all gates (FairDARTS, ECCV 2020, section 3.3)."""
    return -_mean_over_gates({kind: (weights - 0.5).square() for kind, weights in p.items()}, alpha)


def _zero_one_l1(alpha: ByKind, p: ByKind) -> Tensor:
    """-mean(|p - 0.5|) over all gates (FairDARTS, ECCV 2020, section 3.3)."""
    return -_mean_over_gates({kind: (weights - 0.5).abs() for kind, weights in p.items()}, alpha)


def _logsumexp(alpha: ByKind, p: ByKind) -> Tensor:
    """The mean over edges of log(sum_k exp(alpha_k)) (beta-DARTS, CVPR 2022)."""
    return torch.cat([values.logsumexp(dim=-1) for values in alpha.values()]).mean()


#: name -> function of alpha and p; alpha decreases it
ALPHA_REGULARIZERS: Registry[Callable[[ByKind, ByKind], Tensor]] = Registry(
    "regularizer of alpha",
    {"zero_one_l2": _zero_one_l2, "zero_one_l1": _zero_one_l1, "logsumexp": _logsumexp},
    lambda function: check_arguments(function, "alpha", "p"),
    reserved=("none",),
)
