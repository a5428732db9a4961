"""Averages, accuracy, and the TensorBoard log of a search."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class Averages:
    """Weighted means of scalars and vectors, kept on the device: `add` does not wait for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1) -> None:
        """Add a value with a weight. All values of a name have the same shape."""
        value = value.detach() * weight
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._weights[name] = self._weights.get(name, 0) + weight

    def compute(self) -> dict[str, Any]:
        """The means, as numbers and lists."""
        return {name: (total / self._weights[name]).tolist() for name, total in self._sums.items()}


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The fraction of correct predictions, a scalar in [0, 1]. logits: (B, classes), labels: (B,)."""
    return (logits.argmax(dim=1) == labels).float().mean()


class TensorBoardLog:
    """A log of the rows of metrics.csv as TensorBoard events. A resumed run writes the earlier rows again.

    Args:
        run: The run folder.
        rows: The rows of the epochs so far.
    """

    def __init__(self, run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        if (run / "tensorboard").exists():
            shutil.rmtree(run / "tensorboard")
        self._writer = SummaryWriter(run / "tensorboard")
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write the row of an epoch."""
        for name, value in row.items():
            if value is not None and name != "epoch":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
