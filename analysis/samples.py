"""Statistics of a few seeds: an interval of the mean, and a paired test of two methods."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

#: resamplings of the bootstrap; the permutation test takes all signs up to this many
RESAMPLINGS = 9999


class Paired(NamedTuple):
    """The comparison of two methods, seed by seed."""

    pairs: int  # seeds that both methods have
    difference: float  # mean of second minus first
    p: float | None  # p-value; None for a single pair


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % interval of the mean by the percentile bootstrap (Efron, 1979); None for fewer than two values.

    It is too narrow for a handful of seeds. For two it is their range.
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
    """Fisher's two-sided permutation test of the signs, over the seeds that both methods have; None if there are none.

    Under the null hypothesis each seed's difference has either sign with the same probability.

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
    # Whole millionths, so that equal sums compare equal in floating point.
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
