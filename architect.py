"""The architecture: its parameters alpha, the mixing weights they stand for, and the gradient that moves them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data import Batch
from gradients import Derivatives, Objective, Tensors, central_difference, leaves


class Architecture(nn.Module):
    """alpha of each kind of cell, (edges, operations) each, shared by all cells of the kind.

    Starts at 1e-3 * standard normal, as DARTS does.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.alphas = nn.ParameterDict(
            {kind: nn.Parameter(1e-3 * torch.randn(shape)) for kind, shape in shapes.items()}
        )

    def mixing_weights(self) -> dict[str, Tensor]:
        """p = softmax(alpha) on each edge (DARTS, equation 2)."""
        return {kind: alpha.softmax(dim=-1) for kind, alpha in self.alphas.items()}

    def gradients(self, kinds: list[str], layer_gradients: Tensors) -> list[Tensor]:
        """dL/dalpha of dL/dp_l, by the chain rule: cells of a kind share alpha, so their gradients add up.

        Args:
            kinds: the kind of each layer.
            layer_gradients: dL/dp_l of every layer.

        Returns:
            One gradient for each alpha, in the order of `parameters()`.
        """
        mixing = self.mixing_weights()
        totals = [
            torch.stack([g for kind, g in zip(kinds, layer_gradients, strict=True) if kind == name]).sum(dim=0)
            for name in mixing
        ]
        return list(torch.autograd.grad(list(mixing.values()), list(self.alphas.values()), totals))


class ArchitectureGradient(NamedTuple):
    """What the alpha step needs, and the validation batch's figures."""

    loss: Tensor
    logits: Tensor
    layer_gradients: list[Tensor]  # dL/dp_l of every layer, of the gradient that moves alpha
    validation_gradients: list[Tensor]  # dL_val/dp_l alone, whose alignment is logged; at w' in the unrolled gradient
    mixed: list[Tensor]  # d2L_train / dp_l dw . v of the unrolled gradient; empty in the first-order one


def first_order(objective: Objective, weights: Tensors, valid_batch: Batch) -> ArchitectureGradient:
    """grad_p L_val(w, p) for each layer (DARTS, section 2.3, xi = 0). No weight gradient is computed."""
    weights = leaves(weights)
    for parameter in objective.parameters:
        parameter.requires_grad_(False)
    try:
        loss, logits = objective(weights, valid_batch)
        gradients = list(torch.autograd.grad(loss, weights))
    finally:
        for parameter in objective.parameters:
            parameter.requires_grad_(True)
    return ArchitectureGradient(loss.detach(), logits.detach(), gradients, gradients, [])


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
) -> ArchitectureGradient:
    """grad_p L_val(w'(p), p) for each layer, w' one step of SGD ahead (DARTS, equations 6 to 8).

    w' = w - xi (momentum * buffer + grad_w L_train(w, p) + weight_decay * w), and
    gradient = grad_p L_val(w', p) - xi * d2L_train / dp dw . v, with v = grad_w' L_val(w', p).

    Args:
        xi: the weights' current learning rate.
        momentum_buffers: the weights' optimizer's, in the order of the parameters; zeros before its first step.
        radius: |eps v| of the differences.
    """
    names = [name for name, _ in objective.supernet.named_parameters()]
    parameters = objective.parameters
    weights = leaves(weights)

    loss, _ = objective(weights, train_batch)
    train_gradients = torch.autograd.grad(loss, parameters, create_graph=derivatives == "exact")
    ahead = [
        (w - xi * (momentum * buffer + gradient + weight_decay * w)).detach().requires_grad_()
        for w, buffer, gradient in zip(parameters, momentum_buffers, train_gradients, strict=True)
    ]
    valid_loss, logits = objective(weights, valid_batch, dict(zip(names, ahead, strict=True)))
    gradients = torch.autograd.grad(valid_loss, [*weights, *ahead])
    direct, v = gradients[: len(weights)], gradients[len(weights) :]

    if derivatives == "exact":
        mixed = torch.autograd.grad(train_gradients, weights, v)
    else:

        def gradient_at(point: list[Tensor]) -> Tensors:
            trial_loss, _ = objective(weights, train_batch, dict(zip(names, point, strict=True)))
            return torch.autograd.grad(trial_loss, weights)

        mixed = central_difference(gradient_at, parameters, v, radius)
    total = [d - xi * m for d, m in zip(direct, mixed, strict=True)]
    return ArchitectureGradient(valid_loss.detach(), logits.detach(), total, list(direct), list(mixed))
