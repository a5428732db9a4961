"""The loss L(w, p) as a function of network weights w and mixing weights p, and its derivatives.

The methods need only mixed second derivatives, d2L / dw dp, multiplied by a vector. The papers use central differences
("difference"); a second backward pass gives the exact product ("exact").
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lib.batches import Batch
from lib.kernels import differentiated_twice
from lib.seeds import mix

Tensors = Sequence[Tensor]
Derivatives = Literal["difference", "exact"]


@dataclass
class Objective:
    """The cross-entropy of a supernet: loss, logits = objective(weights, batch).

    Attributes:
        supernet: Maps images and the mixing weights of each layer to logits.
        autocast: Returns a context manager for forward passes in lower precision.
        drop_path_prob: The probability of drop path on the operations.
        skip_beta: The weight of the auxiliary skip connections (DARTS-).
        compiled: True if parts of the supernet are compiled.
        fresh_noise: Draw new noise for the network in every pass over a batch.
    """

    supernet: nn.Module
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    drop_path_prob: float | Tensor = 0.0
    skip_beta: float | Tensor = 0.0
    compiled: bool = False
    fresh_noise: bool = False
    passes: int = field(default=0, init=False)

    def __call__(
        self,
        weights: Tensors,
        batch: Batch,
        parameters: dict[str, Tensor] | None = None,
        create_graph: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and logits (B, classes) of a batch.

        Args:
            parameters: Tensors that replace the supernet's parameters, by name.
            create_graph: Set if the loss will be differentiated twice.
        """
        self.seed(batch)
        # Compiled functions have no second derivative, and are recompiled for other parameters.
        eager = self.compiled and (create_graph or parameters is not None)
        stance = torch.compiler.set_stance("force_eager") if eager else nullcontext()
        with stance, differentiated_twice() if create_graph else nullcontext():
            return self.forward(weights, batch, parameters)

    def seed(self, batch: Batch) -> None:
        """Seed the random operations of the network for a pass over a batch."""
        self.passes += 1
        torch.manual_seed(mix(batch.seed, self.passes) if self.fresh_noise else batch.seed)

    def forward(
        self, weights: Tensors, batch: Batch, parameters: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Like `__call__`, without reseeding."""
        inputs = (batch.images, weights, self.drop_path_prob, self.skip_beta)
        with self.autocast():
            if parameters is None:
                logits = self.supernet(*inputs)
            else:
                logits = functional_call(self.supernet, parameters, inputs)
            return F.cross_entropy(logits, batch.labels), logits

    def gradients(self, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool = True) -> "Gradients":
        """The loss of a batch and its gradients, from one forward and one backward pass.

        Args:
            layers: The layers l for which to compute dL/dp_l.
            parameters: Compute grad_w L.
        """
        self.seed(batch)
        return self.pass_over(weights, batch, layers, parameters)

    def pass_over(self, weights: Tensors, batch: Batch, layers: Sequence[int], parameters: bool) -> "Gradients":
        """Like `gradients`, without reseeding."""
        weights = [weight.detach().requires_grad_(layer in layers) for layer, weight in enumerate(weights)]
        wanted = [weights[layer] for layer in layers]
        own = self.parameters if parameters else []
        for parameter in self.parameters:
            parameter.requires_grad_(parameters)
        try:
            loss, logits = self.forward(weights, batch)
            # Unused tensors get zeros: an operation may not use all its weights, or a cell not all its inputs.
            gradients = torch.autograd.grad(loss, [*own, *wanted], materialize_grads=True)
        finally:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
        return Gradients(loss.detach(), logits.detach(), list(gradients[: len(own)]), list(gradients[len(own) :]))

    @cached_property  # collecting them takes milliseconds, and a step needs them several times
    def parameters(self) -> list[Tensor]:
        """The weights w: all parameters that are not frozen, in the supernet's order."""
        return [parameter for parameter in self.supernet.parameters() if parameter.requires_grad]

    def named(self, values: Tensors) -> dict[str, Tensor]:
        """Values of the parameters, by name."""
        names = [name for name, parameter in self.supernet.named_parameters() if parameter.requires_grad]
        return dict(zip(names, values, strict=True))


def leaves(weights: Tensors) -> list[Tensor]:
    """The weights of each layer as new leaf tensors that require a gradient."""
    return [weight.detach().requires_grad_() for weight in weights]


def norm(tensors: Tensors) -> Tensor:
    """Euclidean norm over all tensors together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def vector_product(outputs: Tensors, inputs: Tensors, vectors: Tensors) -> Tensors:
    """sum_i <vectors_i, d outputs_i / d inputs>. Outputs without a graph (of unused weights) count as constants."""
    pairs = [(output, vector) for output, vector in zip(outputs, vectors, strict=True) if output.requires_grad]
    outputs, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, materialize_grads=True)


def cosine_similarity(a: Tensors, b: Tensors) -> Tensor:
    """The cosine between two lists of tensors, each seen as one vector; 0 if one of them is zero."""
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

    A zero direction gives zeros. `radius` is epsilon_0 in Λ-DARTS and 0.01 in DARTS and iDARTS.

    Args:
        measure: Take eps = radius / |measure| instead.
    """
    length = norm(direction if measure is None else measure)
    eps = torch.where(length > 0, radius / length, 0)  # no host synchronization
    point, step = [x.detach() for x in point], torch._foreach_mul(list(direction), eps)
    plus = gradient(torch._foreach_add(point, step))
    minus = gradient(torch._foreach_sub(point, step))
    return list(torch._foreach_mul(torch._foreach_sub(list(plus), list(minus)), length / (2 * radius)))


class Gradients(NamedTuple):
    """The result of a pass over a batch."""

    loss: Tensor
    logits: Tensor
    parameters: list[Tensor]  # grad_w L; empty if not requested
    layers: list[Tensor]  # dL/dp_l of the requested layers
