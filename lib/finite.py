"""A check that losses, gradients and alpha are finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class FiniteCheck:
    """A check that numbers are finite: at every step on a CPU, at every fiftieth on a GPU, because it waits for it.

    Args:
        device: The device of the numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else 50
        self._seen: list[tuple[int, int, tuple[str, ...], Tensor]] = []

    def add(self, epoch: int, step: int, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of a step, in the order of their computation; epoch and step are counted from 0.

        Raises:
            FloatingPointError: One of this or an earlier step is not finite; the message names it.
        """
        self._seen.append((epoch, step, tuple(values), torch.stack([value.float() for value in values.values()])))
        if len(self._seen) >= self._every:
            self.check()

    def check(self) -> None:
        """Check the scalars that were added since the last check.

        Raises:
            FloatingPointError: One of them is not finite; the message names it.
        """
        if not self._seen:
            return
        seen, self._seen = self._seen, []
        values = iter(torch.cat([numbers for *_, numbers in seen]).tolist())  # waits once
        for epoch, step, names, _ in seen:
            for name, value in zip(names, values, strict=False):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} in epoch {epoch + 1}, step {step + 1}")
