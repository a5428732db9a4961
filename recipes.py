"""How a network is trained from scratch: the learning rate of each epoch, and the loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor

#: the learning rate of an epoch, counted from 0
Schedule = Callable[[int], float]

#: the label of an image that does not count
IGNORED = -100


def cosine(learning_rate: float, epochs: int) -> Schedule:
    """A cosine from `learning_rate` in epoch 0 towards 0 in epoch `epochs`."""
    return lambda epoch: learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


def linear(learning_rate: float, epochs: int) -> Schedule:
    """A line from `learning_rate` in epoch 0 towards 0, whose last five epochs fall at a fifth of its slope.

    That is PC-DARTS's released code, whose recipe for ImageNet the later papers share: the first of the five epochs is
    as the one before.
    """
    whole = max(epochs - 5, 1)

    def schedule(epoch: int) -> float:
        remaining = epochs - epoch
        return learning_rate * ((remaining - 5) / whole if remaining > 5 else remaining / (5 * whole))

    return schedule


def warm_up(schedule: Schedule, epochs: int) -> Schedule:
    """The first `epochs` epochs of a schedule under 1/epochs, 2/epochs, ... of its learning rate."""
    return lambda epoch: schedule(epoch) * min(1, (epoch + 1) / epochs) if epochs else schedule(epoch)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum, one learning rate an epoch.

    Attributes:
        grad_clip: largest norm of the gradient; None for any.
        label_smoothing: share of a label that is spread over all classes.
        auxiliary_weight: of the auxiliary head's loss, where the network has that head.
        drop_path_prob: reached linearly from 0 in the first epoch.
        ema_decay: of a running mean of the weights, which is then what is scored and saved; 0 for none.
    """

    epochs: int
    learning_rate: Schedule
    momentum: float
    weight_decay: float
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.0
    drop_path_prob: float = 0.0
    nesterov: bool = False
    ema_decay: float = 0.0

    @classmethod
    def of(cls, settings: Any, learning_rate: Schedule, **others: Any) -> "Recipe":
        """The recipe in a script's settings, which have the names of these attributes; `others` are not among them."""
        names = {field.name for field in fields(cls)} & vars(settings).keys() - {"learning_rate"}
        return cls(learning_rate=learning_rate, **{name: getattr(settings, name) for name in names}, **others)

    def drop_path_prob_of(self, epoch: int) -> float:
        """The drop path probability of an epoch (DARTS's code)."""
        return self.drop_path_prob * epoch / self.epochs

    def loss(self, logits: Tensor, auxiliary_logits: Tensor | None, labels: Tensor) -> Tensor:
        """Mean cross-entropy, and the auxiliary head's under its weight (DARTS, section 3.2)."""
        loss = cross_entropy(logits, labels, self.label_smoothing)
        if auxiliary_logits is None:
            return loss
        return loss + self.auxiliary_weight * cross_entropy(auxiliary_logits, labels, self.label_smoothing)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the images, to which those that do not count add nothing."""
    total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing, ignore_index=IGNORED)
    return total / len(labels)
