"""Statistics of a few seeds: a confidence interval of the mean, and a paired test of two methods."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

#: number of bootstrap resamplings; the permutation test is exact up to this number of sign patterns
RESAMPLINGS = 9999


class Paired(NamedTuple):
    """A paired comparison of two methods over their common seeds."""

    pairs: int  # number of common seeds
    difference: float  # mean of the second method minus mean of the first
    p: float | None  # p-value; None for a single pair


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % confidence interval of the mean (percentile bootstrap; Efron, 1979), or Nones for fewer than two values.

    For a handful of seeds the interval is too narrow. For two seeds it is their range.
    """
    if len(values) < 2:
        return None, None
    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=RESAMPLINGS,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def compare_paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Fisher's two-sided sign permutation test over the common seeds, or None if there are no common seeds.

    Under the null hypothesis, the difference of each seed is positive or negative with equal probability.

    Args:
        first, second: seed -> value.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = np.array([second[seed] - first[seed] for seed in seeds])
    difference = float(np.mean(differences))
    if len(seeds) < 2:
        return Paired(1, difference, None)
    # Round to whole millionths, so that equal sums compare equal in floating point.
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
