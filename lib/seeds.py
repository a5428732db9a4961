"""Random numbers as functions of a key, such as (seed, epoch)."""

import numpy as np
import torch
from torch import Tensor


def random_numbers(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator whose stream is a function of the numbers in `key`."""
    return torch.Generator(device).manual_seed(mix(*key))


def shuffled(count: int, *key: int) -> Tensor:
    """The numbers from 0 to `count` - 1 in a random order that is a function of `key`."""
    return torch.randperm(count, generator=random_numbers("cpu", *key))


def mix(*key: int) -> int:
    """A seed that is a function of the numbers in `key`. Different keys of the same length give different seeds."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
