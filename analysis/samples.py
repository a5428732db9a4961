"""What a few seeds allow to say: mean, deviation, an interval of the mean, and a paired test of two methods."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

#: resamplings of the bootstrap; a permutation test that has no more than so many signs takes them all
RESAMPLINGS = 9999


class Summary(NamedTuple):
    """What the values of several seeds say together."""

    count: int
    mean: float
    deviation: float | None  # of a sample (n - 1); None of a single value
    low: float | None  # of the interval of the mean
    high: float | None


class Paired(NamedTuple):
    """Two methods, seed by seed."""

    count: int  # seeds that both have
    difference: float  # mean of the second less the first
    p: float | None  # that chance alone makes it so large or larger; None of a single pair
    least: float | None  # the smallest p that so many pairs can give


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, deviation and the percentile bootstrap's interval of the mean (Efron, 1979).

    The interval resamples the values at hand: of a handful of seeds it is too narrow, and of two it is their range.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Summary(len(values), mean, None, None, None)
    interval = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=RESAMPLINGS,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Summary(len(values), mean, float(np.std(values, ddof=1)), float(interval.low), float(interval.high))


def compare_paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Whether two methods differ, by the seeds that both have: the permutation test of Fisher's signs, two-sided.

    Under the null hypothesis each seed's difference has either sign with the same chance; nothing else is assumed.

    Args:
        first, second: seed -> value.

    Returns:
        None where they have no seed in common.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    pairs = [np.array([values[seed] for seed in seeds], dtype=float) for values in (second, first)]
    difference = float(np.mean(pairs[0] - pairs[1]))
    if len(seeds) < 2:
        return Paired(1, difference, None, None)
    result = stats.permutation_test(
        pairs,
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLINGS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return Paired(len(seeds), difference, float(result.pvalue), max(2.0 ** (1 - len(seeds)), 2 / (RESAMPLINGS + 1)))
