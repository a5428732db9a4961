"""Perturbed mixing weights for the step of the network weights (SmoothDARTS, Chen and Hsieh, ICML 2020).

The weights descend L_train(w, p + delta) with |delta| <= epsilon in each mixing weight, so that the supernet stays good
around p. p + delta is then clipped to [0, 1] and divided by its sum on each edge. The step of alpha sees p itself. All
cells of a kind share delta. To add a perturbation, write a function and an entry of SMOOTHING, here or in a plugin.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib.registry import Registry, check_arguments

#: the mixing weights of each kind of cell, (edges, operations) each
Mixing = Mapping[str, Tensor]
#: (p, epsilon, gradient, project) -> the perturbed p. gradient(p) is the training loss's gradient in p on the batch of
#: the step; project(q) makes mixing weights of q, see `Architecture.project`.
Smoothing = Callable[[Mixing, float, Callable[[Mixing], Mixing], Callable[[Mixing], Mixing]], Mixing]

#: ascent steps of the adversary
STEPS = 7


def random(
    p: Mixing, epsilon: float, gradient: Callable[[Mixing], Mixing], project: Callable[[Mixing], Mixing]
) -> Mixing:
    """SDARTS-RS: p + U(-epsilon, epsilon)."""
    return project({kind: weights + epsilon * (2 * torch.rand_like(weights) - 1) for kind, weights in p.items()})


def adversarial(
    p: Mixing, epsilon: float, gradient: Callable[[Mixing], Mixing], project: Callable[[Mixing], Mixing]
) -> Mixing:
    """SDARTS-ADV: the largest training loss in the ball, by projected ascent on the gradient's sign.

    The supernet is in training mode, as a supernet keeps no running statistics; the released attack evaluates it.
    """
    q = random(p, epsilon, gradient, project)
    for _ in range(STEPS):
        ascent = gradient(q)
        q = project(
            {
                kind: torch.clamp(
                    q[kind] + 2 * epsilon / STEPS * ascent[kind].sign(), weights - epsilon, weights + epsilon
                )
                for kind, weights in p.items()
            }
        )
    return q


SMOOTHING: Registry[Smoothing] = Registry(
    "smoothing",
    {"random": random, "adversarial": adversarial},
    lambda function: check_arguments(function, "p", "epsilon", "gradient", "project"),
    reserved=("none",),
)
