"""Statistics of a few seeds: an interval of the mean, and a paired test of two methods."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

#: resamplings of the bootstrap; the permutation test takes all signs up to this many
RESAMPLINGS = 9999


class Paired(NamedTuple):
    """Two methods, seed by seed."""

    pairs: int  # seeds that both methods have
    difference: float  # mean of the second less the first
    p: float | None  # p-value; None for a single pair


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float | None, float | None]:
    """The percentile bootstrap's interval of the mean (Efron, 1979); None for fewer than two values.

    It resamples the values at hand: for a handful of seeds it is too narrow, and for two it is their range.
    """
    if len(values) < 2:
        return None, None
    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=RESAMPLINGS,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def compare_paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Fisher's permutation test of the signs, two-sided, over the seeds that both methods have.

    Under the null hypothesis each seed's difference has either sign with the same chance; nothing else is assumed.

    Args:
        first, second: seed -> value.

    Returns:
        None if they have no seed in common.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    difference = float(np.mean(differences))
    if len(seeds) < 2:
        return Paired(1, difference, None)
    # In whole millionths: sums of equal differences are then equal, which those of 93.1 - 93.0 in floats are not.
    whole = np.round(differences * 1e6)
    result = stats.permutation_test(
        (whole, np.zeros_like(whole)),
        lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLINGS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return Paired(len(seeds), difference, float(result.pvalue))
