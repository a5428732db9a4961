"""Check that losses, gradients and alpha are finite."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class FiniteCheck:
    """Check that numbers are finite: at every step on a CPU, at every 50th on a GPU, because a check waits for it.

    Args:
        device: The device of the numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else 50
        self._seen: list[tuple[int, int, tuple[str, ...], Tensor]] = []

    def add(self, epoch: int, step: int, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of a step in the order of their computation. Epoch and step are counted from 0.

        Raises:
            FloatingPointError: A scalar of this or an earlier step is not finite; the message names it.
        """
        self._seen.append((epoch, step, tuple(values), torch.stack([value.float() for value in values.values()])))
        if len(self._seen) >= self._every:
            self.check()

    def check(self) -> None:
        """Check the scalars that were added since the last check.

        Raises:
            FloatingPointError: A scalar is not finite; the message names it.
        """
        if not self._seen:
            return
        seen, self._seen = self._seen, []
        values = iter(torch.cat([numbers for *_, numbers in seen]).tolist())  # a single wait for the GPU
        for epoch, step, names, _ in seen:
            for name, value in zip(names, values, strict=False):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} in epoch {epoch + 1}, step {step + 1}")
