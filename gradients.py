"""The loss L(w, p) as a function of network weights w and mixing weights p, and its first and second derivatives.

Every second derivative that a method needs is a mixed one, d2L / dw dp, contracted with a vector. The papers take it by
central differences (`difference`); a second backward pass gives it exactly (`exact`).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from data import Batch
from kernels import differentiated_twice
from regularizers import layer_alignment, layer_alignment_derivative

Tensors = Sequence[Tensor]
Derivatives = Literal["difference", "exact"]


@dataclass
class Objective:
    """The cross-entropy of a supernet: loss, logits = objective(weights, batch).

    Attributes:
        supernet: maps images and a list of mixing weights, one tensor a layer, to logits.
        autocast: makes the context of a forward pass in lower precision.
        drop_path_prob: of the supernet's operations.
        skip_beta: weight of the auxiliary skip connections (DARTS-), where the supernet has them.
        accelerated: parts of the supernet are compiled.
    """

    supernet: nn.Module
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    drop_path_prob: float | Tensor = 0.0
    skip_beta: float | Tensor = 0.0
    accelerated: bool = False

    def __call__(
        self,
        weights: Tensors,
        batch: Batch,
        parameters: dict[str, Tensor] | None = None,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and logits (B, classes) of a batch.

        Args:
            parameters: to be taken in place of the supernet's own, by name.
            create_graph: the loss is to be differentiated twice.
        """
        torch.manual_seed(batch.seed)
        # What torch.compile makes has no second derivative, and takes a call with other parameters for another network.
        eager = self.accelerated and (create_graph or parameters is not None)
        stance = torch.compiler.set_stance("force_eager") if eager else nullcontext()
        with stance, differentiated_twice() if create_graph else nullcontext():
            return self.forward(weights, batch, parameters)

    def forward(
        self, weights: Tensors, batch: Batch, parameters: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A call whose random numbers are the next ones, whatever the batch's seed."""
        inputs = (batch.images, weights, self.drop_path_prob, self.skip_beta)
        with self.autocast():
            if parameters is None:
                logits = self.supernet(*inputs)
            else:
                logits = functional_call(self.supernet, parameters, inputs)
            return F.cross_entropy(logits, batch.labels), logits

    def gradients(self, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool = True) -> "Gradients":
        """One pass forth and back: the loss of a batch and its gradients.

        Args:
            layers: those whose dL/dp_l is wanted.
            parameters: whether grad_w L is wanted.
        """
        torch.manual_seed(batch.seed)
        return self.pass_over(weights, batch, layers, parameters)

    def pass_over(self, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool) -> "Gradients":
        """`gradients`, but for the seed."""
        weights = [weight.detach().requires_grad_(layer in layers) for layer, weight in enumerate(weights)]
        wanted = [weights[layer] for layer in layers]
        own = self.parameters if parameters else []
        for parameter in self.parameters:
            parameter.requires_grad_(parameters)
        try:
            loss, logits = self.forward(weights, batch)
            gradients = torch.autograd.grad(loss, [*own, *wanted])
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
        return Gradients(loss.detach(), logits.detach(), list(gradients[: len(own)]), list(gradients[len(own) :]))

    @property
    def parameters(self) -> list[Tensor]:
        """w, in the supernet's order."""
        return list(self.supernet.parameters())

    def named(self, values: Tensors) -> dict[str, Tensor]:
        """Values of the parameters by name, as a call takes them."""
        return {name: value for (name, _), value in zip(self.supernet.named_parameters(), values, strict=True)}

    @property
    def aligned_layers(self) -> list[int]:
        """The layers that take part in the alignment: all but the reduction cells (Λ-DARTS, section 4)."""
        # An attribute of a module is a tensor or a module to torch.
        kinds: Sequence[str] = self.supernet.kinds  # type: ignore[assignment]
        return [layer for layer, kind in enumerate(kinds) if kind != "reduce"]


def leaves(weights: Tensors) -> list[Tensor]:
    """The same values as tensors to differentiate with respect to, each layer's its own."""
    return [weight.detach().requires_grad_() for weight in weights]


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm over all tensors together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def cosine(a: Tensors, b: Tensors) -> Tensor:
    """Cosine between two lists of tensors, each taken as one vector; 0 where one vanishes."""
    lengths = norm(a) * norm(b)
    product = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
    return torch.where(lengths > 0, product / lengths, 0)


def central_difference(
    gradient: Callable[[Tensors], Tensors],
    point: Tensors,
    direction: Tensors,
    radius: float,
    measure: Tensors | None = None,
) -> list[Tensor]:
    """[gradient(point + eps * direction) - gradient(point - eps * direction)] / (2 eps), eps = radius / |direction|.

    A zero direction gives zeros. `radius` is epsilon_0 of Λ-DARTS and the 0.01 of DARTS and iDARTS.

    Args:
        measure: what eps is measured by, in place of the direction: eps = radius / |measure|.
    """
    length = norm(direction if measure is None else measure)
    eps = torch.where(length > 0, radius / length, 0)  # no host synchronization
    point, step = [x.detach() for x in point], torch._foreach_mul(list(direction), eps)
    plus = gradient(torch._foreach_add(point, step))
    minus = gradient(torch._foreach_sub(point, step))
    return list(torch._foreach_mul(torch._foreach_sub(list(plus), list(minus)), length / (2 * radius)))


def neumann(
    hessian_vector_product: Callable[[Tensors], Tensors], vector: Tensors, gamma: float, terms: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The Neumann series of the inverse Hessian: gamma * sum_k v_k approaches H^-1 v_0 (iDARTS, equation 9).

    v_0 = vector and v_{k+1} = v_k - gamma H v_k; it converges where |1 - gamma h| < 1 for every eigenvalue h.

    Args:
        terms: K, the last term's index; 0 leaves v_0 alone.

    Returns:
        sum_k v_k for k = 0..K, and v_K.
    """
    term = total = list(vector)
    for _ in range(terms):
        term = [v - gamma * h for v, h in zip(term, hessian_vector_product(term), strict=True)]
        total = [s + v for s, v in zip(total, term, strict=True)]
    return total, term


class Gradients(NamedTuple):
    """What a pass over a batch leaves."""

    loss: Tensor
    logits: Tensor
    parameters: list[Tensor]  # grad_w L; empty where not asked for
    layers: list[Tensor]  # dL/dp_l of the layers asked for


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
