"""Perturbed mixing weights for the step of the network weights (SmoothDARTS, Chen and Hsieh, ICML 2020).

The weights descend L_train(w, p + delta) with |delta| <= epsilon in each mixing weight, so that the supernet is good
near p, too. p + delta is then clipped to [0, 1] and divided by its sum on each edge. The step of alpha uses p itself.
All cells of a kind share delta. To add a perturbation, write a function and add it to SMOOTHING, here or in a plugin.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lib.registry import Registry, check_arguments

#: the mixing weights of each kind of cell, (edges, operations) each
Mixing = Mapping[str, Tensor]
#: (p, epsilon, gradient, project) -> the perturbed p. gradient(p) is the gradient of the training loss in p on the
#: batch of the step; project(q) turns q into mixing weights (`Architecture.project`).
Smoothing = Callable[[Mixing, float, Callable[[Mixing], Mixing], Callable[[Mixing], Mixing]], Mixing]

#: number of ascent steps of `adversarial`
STEPS = 7


def random(
    p: Mixing, epsilon: float, gradient: Callable[[Mixing], Mixing], project: Callable[[Mixing], Mixing]
) -> Mixing:
    """SDARTS-RS: p + U(-epsilon, epsilon)."""
    return project({kind: weights + epsilon * (2 * torch.rand_like(weights) - 1) for kind, weights in p.items()})


def adversarial(
    p: Mixing, epsilon: float, gradient: Callable[[Mixing], Mixing], project: Callable[[Mixing], Mixing]
) -> Mixing:
    """SDARTS-ADV: maximize the training loss in the ball by projected ascent along the sign of the gradient.

    The supernet is in training mode, because it keeps no running statistics. The released code uses evaluation mode.
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
