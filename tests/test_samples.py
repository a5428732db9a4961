"""Statistics of a few seeds, against cases worked out by hand."""

from itertools import product

import numpy as np
import pytest

from analysis.samples import compare_paired, interval


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        # two values: the mean is each of them with probability 1/4, so that 2.5 % on both sides leave all
        ([0.0, 1.0], 0.0, 1.0),
        # three: the mean is 1 or 3 with probability 1/27 = 3.7 % each
        ([1.0, 2.0, 3.0], 1.0, 3.0),
        # five, one of them 1: ones ~ Binomial(5, 1/5); none with 32.8 %; 2 or fewer with 94.2 %, 3 or fewer with 99.3 %
        ([0.0, 0.0, 0.0, 0.0, 1.0], 0.0, 0.6),
        # ten, five of them 1: Binomial(10, 1/2); 1 or fewer 1.07 %, 2 or fewer 5.5 %
        ([0.0, 1.0] * 5, 0.2, 0.8),
    ],
)
def test_the_bootstrap_interval_of_the_mean_equals_cases_worked_out_by_hand(values, low, high):
    assert interval(values) == (pytest.approx(low), pytest.approx(high))
    assert interval(values[:1]) == (None, None)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # of 8 signs, all plus and all minus are as far from 0
        ([3.0, -1.0], 1.0),  # sums 2, 4, -2, -4: every one is as far as 2
        ([5.0, 4.0, -1.0], 0.5),  # sums of 8 or more: 10 and 8, and their negatives, of 8
    ],
)
def test_the_paired_test_equals_cases_counted_by_hand(differences, p):
    first = {seed: 90.0 + seed for seed in range(len(differences))}
    second = {seed: first[seed] + difference for seed, difference in enumerate(differences)}
    paired = compare_paired(first, second)
    assert paired.p == pytest.approx(p)
    assert paired.difference == pytest.approx(sum(differences) / len(differences))
    assert compare_paired(second, first).p == pytest.approx(p)


@pytest.mark.parametrize("seed", [1, 2, 17])
def test_the_paired_test_equals_an_enumeration_of_all_signs(seed):
    """Hundredths of a percent in floats: equal differences are ties although their floats differ."""
    random = np.random.default_rng(seed)
    first, second = (np.round(random.normal(90, 0.1, size=6), 2) for _ in range(2))
    differences = np.round(100 * (second - first)).astype(int)
    sums = [abs(int(np.dot(signs, differences))) for signs in product((1, -1), repeat=6)]
    exact = np.mean([total >= abs(differences.sum()) for total in sums])
    assert compare_paired(dict(enumerate(first)), dict(enumerate(second))).p == pytest.approx(min(1, exact))


def test_only_seeds_that_both_methods_have_are_compared():
    paired = compare_paired({0: 1.0, 1: 2.0, 2: 9.0}, {1: 3.0, 2: 11.0, 7: 50.0})
    assert (paired.pairs, paired.difference) == (2, 1.5)
    assert compare_paired({0: 1.0}, {1: 1.0}) is None
    assert compare_paired({0: 1.0}, {0: 3.0}) == (1, 2.0, None)


def test_the_p_value_of_many_pairs_is_sampled_and_never_zero():
    first = dict.fromkeys(range(20), 0.0)
    paired = compare_paired(first, {seed: 1.0 + 0.01 * seed for seed in range(20)})
    assert 0 < paired.p < 0.001
