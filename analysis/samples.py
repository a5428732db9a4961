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
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    difference = float(np.mean(differences))
    if len(seeds) < 2:
        return Paired(1, difference, None, None)
    # In millionths and whole: sums of equal differences are equal, and those of 93.1 - 93.0 in floats are not.
    whole = np.round(differences * 1e6)
    result = stats.permutation_test(
        (whole, np.zeros_like(whole)),
        lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=RESAMPLINGS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return Paired(len(seeds), difference, float(result.pvalue), max(2.0 ** (1 - len(seeds)), 2 / (RESAMPLINGS + 1)))
