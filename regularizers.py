"""Regularizers: of the weight step, functions of the layers' architecture gradients; of alpha, of the mixing weights.

A regularizer takes g_1, ..., g_L, the gradients of the training loss with respect to the mixing weights of each layer,
and returns the scalar that the weights are to increase: they descend L_train - lambda * R(g_1, ..., g_L). To add one,
write a function of that signature and name it in REGULARIZERS; its derivative is taken by autograd.

A regularizer of alpha takes the mixing weights p of all kinds of cells and returns the scalar that alpha is to
decrease: alpha descends L_val + w01 * R(p). Its registry is ALPHA_REGULARIZERS.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.batches import Batch
from lib.objective import Derivatives, Objective, Tensors, central_difference, leaves, norm


def _corr(gradients: Tensors) -> Tensor:
    """Mean over pairs of layers of the cosine <g_i, g_j> / (|g_i| |g_j|) (Λ-DARTS, ICLR 2023, section 4)."""
    g = torch.stack([gradient.flatten() for gradient in gradients])  # (L, edges * operations)
    norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    # A layer whose gradient vanishes contributes 0, to the value and to the derivative.
    n = torch.where(norm > 0, g, 0) / torch.where(norm > 0, norm, 1)
    total = n.sum(dim=0)
    # sum over i != j of <n_i, n_j>, without the L x L products
    return (total @ total - (n * n).sum()) / (len(g) * (len(g) - 1))


def _signcorr(gradients: Tensors) -> Tensor:
    """Mean over pairs of layers of <g_i, g_j> / <|g_i|, |g_j|> (Λ-DARTS's released code)."""
    g = torch.stack([gradient.flatten() for gradient in gradients])
    scale = g.abs() @ g.abs().T
    rho = torch.where(scale > 0, g @ g.T, 0) / torch.where(scale > 0, scale, 1)
    return (rho.sum() - rho.diagonal().sum()) / (len(g) * (len(g) - 1))


#: name -> function of the layer gradients; the weights ascend it
REGULARIZERS: dict[str, Callable[[Tensors], Tensor]] = {
    "corr": _corr,
    "signcorr": _signcorr,
}


def layer_alignment(gradients: Tensors, kind: str = "corr") -> Tensor:
    """The layer alignment Lambda of Λ-DARTS, or another entry of REGULARIZERS.

    Args:
        gradients: one tensor a layer, all of one shape (edges, operations); two layers at least.
        kind: a name in REGULARIZERS.

    Returns:
        A scalar tensor, in [-1, 1] for "corr" and "signcorr". A layer with a zero gradient contributes 0.

    Raises:
        ValueError: the name is unknown, or there are fewer than two layers.
    """
    if kind not in REGULARIZERS:
        raise ValueError(f"regularizer {kind!r}, expected one of {', '.join(REGULARIZERS)}")
    if len(gradients) < 2:
        raise ValueError(
            f"{len(gradients)} layer gradients, expected two or more: alignment is between pairs of layers"
        )
    return REGULARIZERS[kind](gradients)


def layer_alignment_derivative(gradients: Tensors, kind: str = "corr") -> list[Tensor]:
    """The derivative u_l = dLambda / dg_l of `layer_alignment`, one tensor a layer, in the layers' shape.

    The gradients are taken as numbers: the result carries no graph. For "corr" the work is O(L).
    """
    with torch.enable_grad():
        leaves = [gradient.detach().requires_grad_() for gradient in gradients]
        return list(torch.autograd.grad(layer_alignment(leaves, kind), leaves))


class WeightGradient(NamedTuple):
    """What the weight step needs of a training batch."""

    loss: Tensor
    logits: Tensor
    gradient: list[Tensor]  # grad_w L
    layer_gradients: list[Tensor]  # dL/dp_l of the aligned layers; empty where not asked for
    regularizer_gradient: list[Tensor]  # grad_w R; empty where there is no regularizer


def weight_gradient(objective: Objective, weights: Tensors, batch: Batch, layers: bool = False) -> WeightGradient:
    """grad_w L, with p as plain numbers; with `layers` also dL/dp_l, which costs no other pass."""
    return WeightGradient(*objective.gradients(weights, batch, objective.aligned_layers if layers else []), [])


def regularized_gradient(
    objective: Objective,
    weights: Tensors,
    batch: Batch,
    kind: str,
    derivatives: Derivatives = "difference",
    epsilon_0: float = 1e-4,
) -> WeightGradient:
    """grad_w L and grad_w R(g_1, ..., g_L) on one batch (Λ-DARTS, section 4), g_l = dL/dp_l of the aligned layers.

    grad_w R = grad_w sum_l <u_l, g_l> with u_l = dR/dg_l held fixed: by central differences along u in p, or exactly by
    a second backward pass.

    Args:
        kind: a name in REGULARIZERS, or "noise": a random vector of the norm that grad_w R has for "corr".
        epsilon_0: radius of the differences, over all layers together.
    """
    if kind == "noise":
        result = regularized_gradient(objective, weights, batch, "corr", derivatives, epsilon_0)
        noise = [torch.randn_like(gradient) for gradient in result.regularizer_gradient]
        scale = norm(result.regularizer_gradient) / norm(noise)
        return result._replace(regularizer_gradient=[scale * gradient for gradient in noise])

    if derivatives == "difference":
        result = weight_gradient(objective, weights, batch, layers=True)
        aligned = objective.aligned_layers

        def gradient_at(layer_weights: Tensors) -> Tensors:
            moved = dict(zip(aligned, layer_weights, strict=True))
            return weight_gradient(
                objective, [moved.get(layer, weight) for layer, weight in enumerate(weights)], batch
            ).gradient

        direction = layer_alignment_derivative(result.layer_gradients, kind)
        point = [weights[layer] for layer in aligned]
        return result._replace(regularizer_gradient=central_difference(gradient_at, point, direction, epsilon_0))

    parameters = objective.parameters
    weights = leaves(weights)
    loss, logits = objective(weights, batch, create_graph=True)
    wanted = [weights[layer] for layer in objective.aligned_layers]
    gradients = torch.autograd.grad(loss, [*parameters, *wanted], create_graph=True)
    gradient, layer_gradients = gradients[: len(parameters)], gradients[len(parameters) :]
    value = layer_alignment(layer_gradients, kind)
    regularizer_gradient = torch.autograd.grad(value, parameters, materialize_grads=True)
    return WeightGradient(
        loss.detach(),
        logits.detach(),
        [g.detach() for g in gradient],
        [g.detach() for g in layer_gradients],
        list(regularizer_gradient),
    )


def _zero_one_l2(mixing_weights: Tensors) -> Tensor:
    """-mean((p - 0.5)^2) over all gates (FairDARTS, ECCV 2020, section 3.3)."""
    return -torch.cat([weights.flatten() - 0.5 for weights in mixing_weights]).square().mean()


def _zero_one_l1(mixing_weights: Tensors) -> Tensor:
    """-mean(|p - 0.5|) over all gates (FairDARTS, ECCV 2020, section 3.3)."""
    return -torch.cat([weights.flatten() - 0.5 for weights in mixing_weights]).abs().mean()


#: name -> function of the mixing weights, one tensor for each kind of cell; alpha descends it
ALPHA_REGULARIZERS: dict[str, Callable[[Tensors], Tensor]] = {
    "zero_one_l2": _zero_one_l2,
    "zero_one_l1": _zero_one_l1,
}
