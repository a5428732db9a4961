"""Learning rate schedules."""

import math
from collections.abc import Callable

#: maps an epoch, counted from 0, to the factor of the learning rate
LearningRateFactor = Callable[[int], float]


def cosine_decay(done: float) -> float:
    """Half a cosine, from 1 to 0 as `done` goes from 0 to 1."""
    return (1 + math.cos(math.pi * done)) / 2


def cosine_schedule(epochs: int) -> LearningRateFactor:
    """A cosine from 1 in epoch 0 towards 0 in epoch `epochs`."""
    return lambda epoch: cosine_decay(epoch / epochs)


def linear_schedule(epochs: int) -> LearningRateFactor:
    """A linear decrease from 1 in epoch 0 towards 0, five times slower in the last five epochs.

    This is the schedule of PC-DARTS's released code for ImageNet, which later papers use too. The first of the last
    five epochs has the same learning rate as the epoch before.
    """
    steep = max(epochs - 5, 1)

    def factor(epoch: int) -> float:
        remaining = epochs - epoch
        return (remaining - 5) / steep if remaining > 5 else remaining / (5 * steep)

    return factor


def warm_up(schedule: LearningRateFactor, epochs: int) -> LearningRateFactor:
    """Multiply a schedule by 1/epochs, 2/epochs, ... in its first `epochs` epochs."""
    return lambda epoch: schedule(epoch) * min(1, (epoch + 1) / epochs) if epochs else schedule(epoch)
